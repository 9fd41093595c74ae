"""Experiment trackers get every step once, whatever happens to the run; what happens to them never reaches the run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import toy, trackers
from PIL import Image
from torch import Tensor

from stvit_cli import engine
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.engine.loggers import base, group, tensorboard
from stvit_cli.engine.loggers.base import LoggedImage
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")

READERS: dict[str, Callable[[Path, Path], trackers.Points]] = {
    "tensorboard": trackers.tensorboard_points,
    "wandb": trackers.wandb_points,
    "mlflow": trackers.mlflow_points,
    "trackio": trackers.trackio_points,
}
LENGTH = ("schedule.epochs=2", "schedule.warmup_epochs=0", "train.log_every_steps=1", "checkpoint.every_steps=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the trackers keep what they are told, without a network."""
    kept = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as environment:
        for key, value in {
            "WANDB_MODE": "offline",
            "WANDB_CACHE_DIR": str(kept / "wandb"),
            "WANDB_CONFIG_DIR": str(kept / "wandb"),
            "MLFLOW_TRACKING_URI": (kept / "mlruns").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",
            "TRACKIO_DIR": str(kept / "trackio"),
        }.items():
            environment.setenv(key, value)
        yield kept


@pytest.fixture(scope="module")
def tracked(folder: Path) -> Path:
    """The directory of a run that all trackers follow, which was killed and resumed."""
    for name in READERS:
        pytest.importorskip(name)
    run_dir = folder / "run"
    # Killed in step 8, after the checkpoint of step 5 was written and steps 6 and 7 were logged.
    (ended,) = toy.start(lambda: train(run_dir, *READERS, die_at=30, first_images=a_sample), folder / "killed")()
    assert ended.code == -9
    assert recorded(run_dir)[-1] == ("train", 7)
    train(run_dir, *READERS, resume=True, first_images=a_sample)
    return run_dir


def train(run_dir: Path, *names: str, overrides: Sequence[str] = (), die_at: int = 0, **options: Any) -> None:
    """Train; in training loss number ``die_at`` the process is killed."""

    def on_loss(call: int, loss: Tensor) -> Tensor:
        if call == die_at:
            time.sleep(0.7)  # trackio writes twice a second
            toy.kill_self()
        return loss

    recipe = toy.recipe(*LENGTH, f"train.loggers=[{','.join(names)}]", *overrides)
    engine.fit(toy.ToyTask(on_loss=on_loss), recipe, run_dir, **options)


def recorded(run_dir: Path) -> list[tuple[str, int]]:
    log = MetricsLog(run_dir / "metrics.jsonl")
    return sorted((kind, row["step"]) for kind in ("train", "eval") for row in log.rows(kind))


def a_sample() -> list[LoggedImage]:
    return [LoggedImage("train/sample-0", thumbnail(Image.new("RGB", (40, 30), "red")), "a < b")]


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_continues_its_run_at_a_tracker_and_shows_no_step_twice(name: str, folder: Path, tracked: Path) -> None:
    points = sorted(READERS[name](tracked, folder))
    if name == "wandb":  # offline it writes 32 KB at a time, and a killed process leaves nothing of the last ones
        assert points == [("eval", 10), ("train", 8), ("train", 9), ("train", 10)]
        return
    assert points == recorded(tracked)
    assert len(points) == len(set(points)) == 12


def test_loggers_change_nothing_of_a_run(tracked: Path, tmp_path: Path) -> None:
    train(tmp_path / "run")
    toy.assert_same_outcome(tmp_path / "run", tracked)
    assert not (tmp_path / "run" / "loggers.json").exists()


def test_trackers_get_recipe_environment_and_samples(folder: Path, tracked: Path) -> None:
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from trackio.sqlite_storage import SQLiteStorage

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("stvit").experiment_id])
    assert run.data.params["optim.lr"] == "0.01"
    assert "torch" in run.data.tags["environment.versions"]
    assert run.info.status == "FINISHED"
    assert not [key for key in run.data.params if key.startswith("detection.")]
    assert [path.name for path in (folder / "mlruns").rglob("sample-0.png")] == ["sample-0.png"]

    events = EventAccumulator(str(tracked / "events"))
    events.Reload()
    assert events.Tags()["images"] == ["train/sample-0"]
    assert b"optim.lr | 0.01" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]

    (name,) = SQLiteStorage.get_runs("stvit")
    assert SQLiteStorage.get_run_config("stvit", name)["optim.lr"] == "0.01"
    records = trackers.wandb_records(tracked)
    configs = [{item.key for item in record.run.config.update} for record in records if record.WhichOneof("record_type") == "run"]
    assert {"optim.lr", "environment"} <= set().union(*configs)
    assert json.loads((tracked / "loggers.json").read_text())["ids"]["wandb"] in next((tracked / "wandb").glob("offline-*")).name
    assert len(list((tracked / "wandb").rglob("train/sample-0*.png"))) == 1


class Failing:
    """A logger that fails, as on a full disk, at its second row."""

    id, location, hides_repeated = "x", "nowhere", True
    rows = 0

    def __init__(self, run: base.LoggedRun) -> None:
        type(self).rows = 0

    def log(self, step: int, metrics: Any) -> None:
        random.random()
        type(self).rows += 1
        if self.rows == 2:
            raise OSError(28, "No space left on device")

    def log_images(self, step: int, images: Any) -> None: ...

    def finish(self, status: str) -> None:
        raise AssertionError("a logger that has failed is closed")


def test_a_logger_that_fails_warns_once_and_neither_ends_nor_changes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorboard, "TensorBoardLogger", Failing)
    train(tmp_path / "logged", "tensorboard")
    assert Failing.rows == 2
    assert capfd.readouterr().err.count("Warning: TensorBoard failed and gets no more metrics: [Errno 28] No space left") == 1
    train(tmp_path / "plain")
    toy.assert_same_outcome(tmp_path / "logged", tmp_path / "plain")


def test_a_tracker_that_cannot_be_had_ends_a_run_before_it_starts_and_is_a_warning_to_a_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def connect() -> None:
        raise UserError("train.loggers: the tracker is not there.")

    train(tmp_path / "old", overrides=["schedule.epochs=1"])
    monkeypatch.setattr(tensorboard, "connect", connect)
    with pytest.raises(UserError, match="the tracker is not there"):
        train(tmp_path / "run", "tensorboard")
    assert not (tmp_path / "run").exists()
    capfd.readouterr()
    train(tmp_path / "old", "tensorboard", overrides=["schedule.epochs=1"], resume=True)
    assert (
        "Warning: TensorBoard failed and gets no more metrics: train.loggers: the tracker is not there." in capfd.readouterr().err
    )


@pytest.mark.parametrize("name", READERS)
def test_a_missing_package_is_said_with_the_command_that_installs_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "is_installed", lambda name: False)
    with pytest.raises(UserError, match=rf"needs the package {name}: pip install 'stvit\[{name}\]'"):
        train(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


def test_wandb_without_a_key_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")))
    monkeypatch.setattr(wandb, "login", lambda **options: False)
    with pytest.raises(UserError, match=r"`wandb login`, or set WANDB_API_KEY, or log offline: WANDB_MODE=offline"):
        train(tmp_path / "run", "wandb")
    assert not (tmp_path / "run").exists()


def test_the_old_key_of_tensorboard_still_works(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = toy.recipe(*LENGTH, "train.tensorboard=true")
    assert recipe.loggers == ("tensorboard",)
    assert toy.recipe("train.loggers=mlflow", "train.tensorboard=true").loggers == ("mlflow", "tensorboard")
    engine.fit(toy.ToyTask(), recipe, tmp_path / "run")
    assert list((tmp_path / "run" / "events").iterdir())
    assert capfd.readouterr().err.count("train.tensorboard is deprecated; use train.loggers=[tensorboard].") == 1


def test_loggers_are_no_part_of_what_is_learned() -> None:
    plain, logged = toy.recipe(), toy.recipe("train.loggers=[wandb]")
    assert recipe_io.recipe_hash(plain) == recipe_io.recipe_hash(logged)
    assert recipe_io.difference(plain, logged) == []


def test_of_several_processes_the_first_logs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    waiting = toy.start(lambda: train(tmp_path / "run", "tensorboard"), tmp_path / "two", world_size=2)
    assert [ended.code for ended in waiting()] == [0, 0]
    assert len(list((tmp_path / "run" / "events").iterdir())) == 1
