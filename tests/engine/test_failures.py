"""What goes wrong around a run ends it with a message, and leaves what was saved."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy
from torch import Tensor

from stvit_cli import engine
from stvit_cli.engine import checkpoint
from stvit_cli.errors import UserError


def fit(folder: Path, *overrides: str, at: int = 0, then: Any = None, resume: bool = False) -> dict[str, float]:
    """Train; at training loss number ``at`` do ``then``."""

    def on_loss(call: int, loss: Tensor) -> Tensor:
        return then(loss) if call == at else loss

    return engine.fit(toy.ToyTask(on_loss=on_loss), toy.recipe("schedule.epochs=2", *overrides), folder / "run", resume=resume)


def test_a_loss_that_is_no_number_names_the_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fit(tmp_path, "train.batch_size_per_device=8", at=4, then=lambda loss: loss * float("inf"))
    message = str(caught.value)
    assert "The loss is not finite at step 3" in message
    assert "and 4 more" in message
    assert "optim.lr" in message
    named = (tmp_path / "run" / "non_finite_step_3.txt").read_text().split()
    assert len(named) == 8
    assert all(name.startswith("point-") for name in named)
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == 2


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float("inf")


def test_so_does_a_gradient(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The gradient is not finite at step 1; stopped before the update"):
        fit(tmp_path, at=6, then=InfiniteGradient.apply)


def test_with_fp16_the_scaler_takes_care_of_it(tmp_path: Path) -> None:
    fit(tmp_path, "train.precision=fp16", at=6, then=InfiniteGradient.apply)
    newest = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert newest.state["scaler"]["scale"] == 2.0**15
    assert newest.tensors["optimizer"]["0.weight/step"] == 9  # of ten steps, one was left out


def test_memory_that_runs_out_names_a_setting_that_keeps_the_batch(tmp_path: Path) -> None:
    def refuse(loss: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with pytest.raises(UserError) as caught:
        fit(tmp_path, "train.batch_size_per_device=8", at=5, then=refuse)
    assert "Out of memory on the machine with 8 images per device" in str(caught.value)
    assert "train.batch_size_per_device=4 (the global batch stays 8)" in str(caught.value)
    assert f"--resume {tmp_path / 'run'}" in str(caught.value)
    assert fit(tmp_path, "train.batch_size_per_device=4", resume=True)["steps"] == 10


def test_a_loader_worker_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    item = toy.TrainPoints.__getitem__

    def fatal(points: Any, key: Any) -> Any:
        if os.getpid() != parent and key.epoch == 1:
            toy.kill_self()
        return item(points, key)

    monkeypatch.setattr(toy.TrainPoints, "__getitem__", fatal)
    with pytest.raises(
        UserError, match=r"(?s)DataLoader worker .*(killed by signal|was read from|exited unexpectedly).*data.num_workers"
    ):
        fit(tmp_path, "data.num_workers=1", "checkpoint.every_steps=1")
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step >= 1


def test_a_full_disk_ends_the_run_with_the_state_intact(unbroken: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(loss: Tensor) -> Tensor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # bytes, less than the moments of the optimiser take
        return loss

    try:
        with pytest.raises(UserError, match=r"(?s)step_00000004 cannot be written: File too large.*--resume"):
            fit(tmp_path, at=11, then=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == 2
    assert fit(tmp_path, resume=True)["steps"] == 10


def test_metrics_that_cannot_be_written_end_it_too(tmp_path: Path) -> None:
    def take_away(loss: Tensor) -> Tensor:
        (tmp_path / "run" / "metrics.jsonl").mkdir()
        return loss

    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written: Is a directory"):
        fit(tmp_path, "checkpoint.every_steps=null", at=2, then=take_away)


def test_a_fault_of_ours_is_not_hidden(tmp_path: Path) -> None:
    def fail(loss: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(tmp_path, at=2, then=fail)


def test_resuming_is_advised_only_once_the_run_can_be_resumed(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # bytes, less than the first checkpoint takes
        with pytest.raises(UserError, match="step_00000000 cannot be written: File too large") as ended:
            fit(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "resume" not in str(ended.value)
    assert fit(tmp_path)["steps"] == 10


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("could not create a primitive"), "Out of memory on the machine with 2 images per device"),
        (RuntimeError("can't start new thread"), "No further thread or process can be started"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_0>: Success (0)"), "docker run --shm-size"),
        (OSError(24, "Too many open files"), "Raise the limit .ulimit -n"),
    ],
    ids=str,
)
def test_a_machine_at_its_limit_is_said_and_the_checkpoint_named(tmp_path: Path, error: Exception, expected: str) -> None:
    def refuse(loss: Tensor) -> Tensor:
        raise error

    with pytest.raises(UserError, match=rf"(?s){expected}.*--resume {tmp_path / 'run'}$") as caught:
        fit(tmp_path, at=5, then=refuse)
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.parametrize("start", [engine.dry_run, lambda task, recipe: engine.fit(task, recipe, Path("never"))])
def test_memory_that_runs_out_as_the_run_is_built_is_said(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("stvit_cli.engine.session.build_optimizer", refuse)
    with pytest.raises(UserError, match=r"^Out of memory: .*\n.*train.batch_size_per_device"):
        start(toy.ToyTask(), toy.recipe())


def test_a_checkpoint_that_there_is_no_memory_to_read_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path)
    newest = checkpoint.load_newest(tmp_path / "run" / "checkpoints").path

    def refuse(path: Path) -> bytes:
        raise OSError(12, "Cannot allocate memory", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert newest.is_dir()
