"""The Accelerate adapter, in real loops on the CPU."""

from pathlib import Path
from typing import Any

import pytest
from adapters_support import Said, module_or_skip

torch = module_or_skip("torch")
accelerate = module_or_skip("accelerate")

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from warptrace.adapters import failures  # noqa: E402
from warptrace.adapters.accelerate import follow  # noqa: E402


def prepared(accumulate: int = 1) -> Any:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(torch.randn(24, 4)), batch_size=2)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def train(accelerator: Any, model: Any, optimizer: Any, loader: Any) -> None:
    for (batch,) in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).pow(2).mean())
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(("accumulate", "count"), [(1, 12), (4, 3)])
def test_a_step_is_one_of_the_optimizer(said: Said, accumulate: int, count: int) -> None:
    accelerator, model, optimizer, loader = prepared(accumulate)
    follow(accelerator, optimizer, model=model, writer=said.writer)
    train(accelerator, model, optimizer, loader)
    assert [step for step, _ in said.steps()] == [str(n) for n in range(count)]
    assert said.lines()[0]["labels"].items() >= {"rank": "0", "world_size": "1"}.items()
    assert failures() == {}


def test_without_the_model_the_next_step_begins_at_once(said: Said) -> None:
    accelerator, model, optimizer, loader = prepared()
    follow(accelerator, optimizer, writer=said.writer, start=100)
    train(accelerator, model, optimizer, loader)
    assert [step for step, _ in said.steps()] == [str(n) for n in range(100, 113)]
    assert failures() == {}


def test_saving_loading_and_validating_are_phases_and_no_steps(said: Said, tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = prepared()
    steps = follow(accelerator, optimizer, model=model, writer=said.writer)
    train(accelerator, model, optimizer, loader)
    with steps.phase("validation"), torch.no_grad():
        model.eval()
        for (batch,) in loader:
            model(batch)
    model.train()
    accelerator.save_state(str(tmp_path / "c"))
    accelerator.load_state(str(tmp_path / "c"))
    assert len(said.steps()) == 12
    assert said.phases() == ["validation", "checkpoint", "checkpoint_load"]
    said.in_order()
    assert failures() == {}
