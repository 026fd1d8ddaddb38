"""The Ray adapter, with a real Ray on this machine: two workers of Ray Train, and tasks."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters_support import Said, module_or_skip

ray = module_or_skip("ray")
module_or_skip("torch")

# As the workers have it: it decides what the names below are.
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
# Otherwise Ray leaves a token in the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
from ray.train import RunConfig, ScalingConfig  # noqa: E402
from ray.train.torch import TorchTrainer  # noqa: E402

BATCHES = 5


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    # Workers find what the tests import.
    path = os.environ.get("PYTHONPATH", "")
    folder = str(Path(__file__).parents[1])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{folder}:{path}"}},
    )
    yield
    ray.shutdown()


def train_loop(config: dict[str, Any]) -> None:
    from warptrace import AnnotationWriter
    from warptrace.adapters import failures
    from warptrace.adapters.ray import worker

    steps = worker(writer=AnnotationWriter(config["socket"]))
    for _ in steps.over(range(config["batches"])):
        pass
    steps.report({"failures": sum(failures().values())})


def test_two_workers_of_train_say_their_steps_each_with_its_rank(local: None, said: Said, tmp_path: Path) -> None:
    config = {"socket": str(said.recorder.path), "batches": BATCHES}
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="try", storage_path=str(tmp_path / "ray")),
    )
    assert trainer.fit().error is None
    ranks = {}
    for connection in range(2):
        lines = said.ended(connection)
        assert {line["labels"]["world_size"] for line in lines} == {"2"}
        assert {line["labels"]["run_id"] for line in lines} == {"try"}
        (rank,) = {line["labels"]["rank"] for line in lines}
        ranks[rank] = [line["labels"].get("step", line["labels"].get("phase")) for line in lines]
    assert ranks == {rank: ["0", "1", "2", "3", "4", "", "report"] for rank in ("0", "1")}


def test_a_task_is_an_interval_with_its_id(local: None, said: Said) -> None:
    path = str(said.recorder.path)

    @ray.remote
    def shard(number: int) -> str:
        from warptrace import AnnotationWriter
        from warptrace.adapters.ray import task

        with AnnotationWriter(path) as writer, task("shard", writer=writer, number=number):
            pass
        return str(ray.get_runtime_context().get_task_id())

    task_id = ray.get(shard.remote(7))
    (line,) = said.ended(0)
    assert line["labels"].items() >= {"task_id": task_id, "task_name": "shard", "number": "7"}.items()
    assert line["span_start"] <= line["span_end"]
