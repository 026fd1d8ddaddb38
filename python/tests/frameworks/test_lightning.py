"""The Lightning adapter in real fits, with a recorder that listens."""

from pathlib import Path
from typing import Any

import pytest
from adapters_support import Said, module_or_skip

torch = module_or_skip("torch")
pl = module_or_skip("lightning.pytorch")

from lightning.pytorch.plugins.io import AsyncCheckpointIO  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from warptrace.adapters import failures  # noqa: E402
from warptrace.adapters.lightning import WarptraceCallback  # noqa: E402


class Model(pl.LightningModule):
    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.fail_at = fail_at

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.fail_at == self.global_step:
            raise RuntimeError("no such luck")
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(batches: int) -> Any:
    return DataLoader(TensorDataset(torch.randn(2 * batches, 4)), batch_size=2)


def trainer(folder: Path, callback: Any, **options: Any) -> Any:
    options = {"max_epochs": 1, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **options,
    )


def test_a_fit_says_each_step_once_in_order_and_its_phases(said: Said, tmp_path: Path) -> None:
    callback = WarptraceCallback(writer=said.writer, run_id="r1")
    fit = trainer(tmp_path, callback, max_epochs=2, enable_checkpointing=True)
    fit.fit(Model(), loader(5), loader(3))
    assert said.steps() == [(str(n), str(n // 5)) for n in range(10)]
    assert said.phases() == ["setup", "sanity_check", *["validation", "checkpoint"] * 2]
    for line in said.lines():
        assert line["labels"].items() >= {"run_id": "r1", "rank": "0", "world_size": "1"}.items()
    said.in_order()
    assert failures() == {}


def test_accumulated_batches_are_one_step(said: Said, tmp_path: Path) -> None:
    callback = WarptraceCallback(writer=said.writer)
    trainer(tmp_path, callback, accumulate_grad_batches=4, limit_val_batches=0).fit(Model(), loader(10))
    assert [step for step, _ in said.steps()] == ["0", "1", "2"]
    assert failures() == {}


def test_a_test_and_a_resumed_fit_are_said(said: Said, tmp_path: Path) -> None:
    callback = WarptraceCallback(writer=said.writer)
    first = trainer(tmp_path, callback, limit_val_batches=0)
    model = Model()
    first.fit(model, loader(3))
    first.save_checkpoint(tmp_path / "c.ckpt")
    first.test(model, loader(2), verbose=False)
    second = trainer(tmp_path, WarptraceCallback(writer=said.writer), limit_val_batches=0, max_epochs=2)
    second.fit(Model(), loader(3), ckpt_path=tmp_path / "c.ckpt")
    assert [step for step, _ in said.steps()] == ["0", "1", "2", "3", "4", "5"]
    assert said.phases() == ["setup", "checkpoint", "test", "checkpoint_load", "setup"]
    assert failures() == {}


def test_checkpoints_of_another_thread_are_said_when_they_are_written(said: Said, tmp_path: Path) -> None:
    callback = WarptraceCallback(writer=said.writer)
    plugin = AsyncCheckpointIO()
    fit = trainer(tmp_path, callback, max_epochs=3, enable_checkpointing=True, plugins=[plugin], limit_val_batches=0)
    fit.fit(Model(), loader(2))
    phases = said.phases()
    assert sorted(phases) == ["checkpoint"] * 3 + ["checkpoint_write"] * 3 + ["setup"]
    assert failures() == {}


def test_the_jobs_own_exception_comes_out_unchanged(said: Said, tmp_path: Path) -> None:
    callback = WarptraceCallback(writer=said.writer)
    with pytest.raises(RuntimeError, match="no such luck"):
        trainer(tmp_path, callback, limit_val_batches=0).fit(Model(fail_at=2), loader(5))
    assert [step for step, _ in said.steps()] == ["0", "1", "2"]
    assert failures() == {}


def test_nothing_listens_and_the_fit_is_the_same(tmp_path: Path) -> None:
    callback = WarptraceCallback()
    model = Model()
    trainer(tmp_path, callback).fit(model, loader(4), loader(1))
    assert failures() == {}
