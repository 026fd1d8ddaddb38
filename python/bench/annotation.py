"""What an annotation costs the thread that says it: ours, the drop-in names, and the package ``ingero-annotate``.

    target/venv/bin/python3 python/bench/annotation.py

Each writes two labels and the process to a recorder that reads as fast as it can, in another process. CPU time of the
writing thread, the best of several rounds that take turns.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import tempfile
import time
from collections.abc import Callable

import ingero_annotate as theirs

import warptrace
from warptrace.compat import ingero_annotate as compat


def serve(path: str) -> int:
    """A recorder in a process of its own, which reads and throws away; returns its process id."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    child = os.fork()
    if child:
        listener.close()
        return child
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif not key.fileobj.recv(1 << 18):  # type: ignore[union-attr]
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]


def cost_us(say: Callable[[int], object], count: int) -> float:
    begun = time.thread_time_ns()
    for step in range(count):
        say(step)
    spent = time.thread_time_ns() - begun
    # The reader catches up: a full socket would cost lines here, and waiting there.
    time.sleep(0.005)
    return spent / count / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        recorder = serve(path)
        pid = os.getpid()
        their_writer = theirs.AnnotationWriter(path)
        our_writer = warptrace.AnnotationWriter(path)
        compat_writer = compat.AnnotationWriter(path)
        nobody = warptrace.AnnotationWriter(f"{folder}/nobody")
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(path)
        line = theirs.encode_annotation({"step": "10000", "epoch": "3"}, pid=pid)
        cases: dict[str, Callable[[int], object]] = {
            "one send of the same bytes (floor)": lambda step: raw.send(line),
            "ingero_annotate write": lambda step: their_writer.write({"step": str(step), "epoch": "3"}, pid=pid),
            "warptrace write": lambda step: our_writer.write({"step": step, "epoch": 3}),
            "warptrace.compat write": lambda step: compat_writer.write({"step": str(step), "epoch": "3"}, pid=pid),
            "warptrace write, nobody listens": lambda step: nobody.write({"step": step, "epoch": 3}),
        }
        best = dict.fromkeys(cases, float("inf"))
        for _ in range(args.rounds):
            for name, say in cases.items():
                best[name] = min(best[name], cost_us(say, args.count))
        os.kill(recorder, 9)
        os.waitpid(recorder, 0)
    peer = best["ingero_annotate write"]
    for name, us in best.items():
        print(f"{name:36} {us:6.2f} us   {us / peer:5.3f} of the package")
    print(f"dropped of ours: {our_writer.counts}")


if __name__ == "__main__":
    main()
