"""What `import warptrace`, and the first use of a name, cost over the bare interpreter.

    target/venv/bin/python3 python/bench/import_time.py

Each case is a new process, started with -I; they take turns, and the median counts. --python names another environment,
such as that of the wheel (target/wheel-venv/bin/python3), whose native module is stripped.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CASES = {
    "the interpreter alone": "pass",
    "import warptrace": "import warptrace",
    "... and AnnotationWriter": "import warptrace; warptrace.AnnotationWriter",
    "... and span": "import warptrace; warptrace.span",
    "... and MemoryTracker": "import warptrace; warptrace.MemoryTracker",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--python", default=sys.executable, help="of the environment that has warptrace")
    args = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.rounds):
        for name, code in CASES.items():
            begun = time.perf_counter()
            subprocess.run([args.python, "-I", "-c", code], check=True)
            taken[name].append((time.perf_counter() - begun) * 1000)
    floor = statistics.median(taken["the interpreter alone"])
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:28} {median:7.1f} ms   {median - floor:+6.1f} ms")


if __name__ == "__main__":
    main()
