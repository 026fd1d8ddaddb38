"""The adapter of the Hugging Face Trainer, with a real Trainer and a tiny random model."""

from pathlib import Path
from typing import Any

from adapters_support import Said, module_or_skip

torch = module_or_skip("torch")
transformers = module_or_skip("transformers")

from warptrace.adapters import failures  # noqa: E402
from warptrace.adapters.transformers import WarptraceCallback  # noqa: E402


def rows(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": [n % 30 + 1] * 8, "labels": [n % 30 + 1] * 8} for n in range(count)]


def trainer(folder: Path, callback: Any, **options: Any) -> Any:
    config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    options = {"max_steps": 6, "save_strategy": "no", **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(
        model=transformers.GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=rows(24),
        eval_dataset=rows(4),
        callbacks=[callback],
    )


def test_training_says_each_step_once_in_order(said: Said, tmp_path: Path) -> None:
    callback = WarptraceCallback(writer=said.writer, run_id="r")
    trainer(tmp_path, callback, max_steps=-1, num_train_epochs=2).train()
    assert said.steps() == [(str(n), str(n // 12)) for n in range(24)]
    assert said.phases() == []
    for line in said.lines():
        assert line["labels"].items() >= {"run_id": "r", "rank": "0", "world_size": "1"}.items()
    said.in_order()
    assert failures() == {}


def test_accumulated_batches_are_one_step(said: Said, tmp_path: Path) -> None:
    trainer(tmp_path, WarptraceCallback(writer=said.writer), gradient_accumulation_steps=3, max_steps=4).train()
    assert [step for step, _ in said.steps()] == ["0", "1", "2", "3"]
    assert failures() == {}


def test_evaluations_and_checkpoints_are_phases_between_steps(said: Said, tmp_path: Path) -> None:
    callback = WarptraceCallback(writer=said.writer)
    trainer(tmp_path, callback, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=3).train()
    assert said.words() == [
        *("0", "1", "", "validation", "2", "", "checkpoint", "3", "", "validation"),
        *("4", "5", "", "validation", "checkpoint"),
    ]
    said.in_order()
    assert failures() == {}


def test_an_evaluation_by_hand_is_a_phase(said: Said, tmp_path: Path) -> None:
    trainer(tmp_path, WarptraceCallback(writer=said.writer)).evaluate()
    assert said.phases() == ["validation"]
    assert failures() == {}
