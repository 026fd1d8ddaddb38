"""The adapter of plain loops, with real loaders and optimizers of PyTorch."""

import copy
import pickle
from typing import Any

from adapters_support import Said, module_or_skip

torch = module_or_skip("torch")

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from warptrace.adapters import failures  # noqa: E402
from warptrace.adapters.torch import follow, steps  # noqa: E402


def loader(workers: int = 0) -> Any:
    return DataLoader(TensorDataset(torch.randn(10, 4)), batch_size=2, num_workers=workers)


def test_each_batch_of_a_loader_with_forked_workers_is_a_step(said: Said) -> None:
    seen = [batch for (batch,) in steps(loader(workers=2), writer=said.writer, epoch=3)]
    assert len(seen) == 5
    assert said.steps() == [(str(n), "3") for n in range(5)]
    assert said.recorder.connections == 1
    assert failures() == {}


def test_steps_of_an_optimizer_are_followed_without_a_change_of_the_loop(said: Said) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follow(optimizer, model=model, writer=said.writer)
    for _ in range(2):
        model.train()
        for (batch,) in loader():
            model(batch).sum().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            model(torch.randn(1, 4))
    assert [step for step, _ in said.steps()] == [str(n) for n in range(10)]
    assert failures() == {}


def test_a_copy_of_a_followed_model_is_not_followed_and_has_its_own_weights(said: Said) -> None:
    model = torch.nn.Linear(4, 1)
    follow(torch.optim.SGD(model.parameters(), lr=0.1), model=model, writer=said.writer)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    batch = torch.ones(1, 4)
    for its in copies:
        with torch.no_grad():
            its.weight += 1
        assert not torch.equal(its(batch), model(batch).detach())
    assert [step for step, _ in said.steps()] == ["0"]
    assert failures() == {}


def test_who_follows_twice_follows_once(said: Said) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        follow(optimizer, model=model, writer=said.writer)
    for (batch,) in loader():
        model(batch).sum().backward()
        optimizer.step()
    assert [step for step, _ in said.steps()] == [str(n) for n in range(5)]


def test_a_compiled_model_is_followed_as_well(said: Said) -> None:
    model = torch.compile(torch.nn.Linear(4, 1), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follow(optimizer, model=model, writer=said.writer)
    for (batch,) in loader():
        model(batch).sum().backward()
        optimizer.step()
    assert [step for step, _ in said.steps()] == [str(n) for n in range(5)]
    assert failures() == {}
