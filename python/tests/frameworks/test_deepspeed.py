"""The DeepSpeed adapter, with a real engine on the CPU (gloo, one process)."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters_support import Said, module_or_skip

torch = module_or_skip("torch")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
deepspeed = module_or_skip("deepspeed")

from warptrace.adapters import failures  # noqa: E402
from warptrace.adapters.deepspeed import follow  # noqa: E402


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before = dict(os.environ)
    os.environ.update(place)
    deepspeed.init_distributed("gloo")
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def engine(accumulate: int = 1) -> Any:
    model = torch.nn.Linear(4, 1)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": accumulate,
        "zero_optimization": {"stage": 0},
    }
    made, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=config)
    return made


def train(made: Any, micro_batches: int) -> None:
    for _ in range(micro_batches):
        made.backward(made(torch.randn(2, 4)).pow(2).mean())
        made.step()


@pytest.mark.parametrize(("accumulate", "count"), [(1, 6), (3, 2)])
def test_a_step_is_one_of_global_steps(alone: None, said: Said, accumulate: int, count: int) -> None:
    made = engine(accumulate)
    follow(made, writer=said.writer)
    train(made, 6)
    assert made.global_steps == count
    assert [step for step, _ in said.steps()] == [str(n) for n in range(count)]
    assert said.lines()[0]["labels"].items() >= {"rank": "0", "world_size": "1"}.items()
    assert failures() == {}


def test_checkpoints_are_phases_and_an_evaluation_is_no_step(alone: None, said: Said, tmp_path: Path) -> None:
    made = engine()
    follow(made, writer=said.writer)
    train(made, 2)
    made.eval()
    with torch.no_grad():
        made(torch.randn(2, 4))
    made.train()
    made.save_checkpoint(str(tmp_path))
    made.load_checkpoint(str(tmp_path))
    train(made, 1)
    assert said.words() == ["0", "1", "", "checkpoint", "checkpoint_load", "2"]
    assert failures() == {}
