"""Processes joined over gloo, as torchrun joins them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import toy
from torch import Tensor

from stvit_cli import engine
from stvit_cli.engine.distributed import joined_world

MICRO_BATCHES = 4


def test_two_processes_take_the_steps_of_one_that_accumulates(tmp_path: Path) -> None:
    settings = ("schedule.epochs=1", "schedule.warmup_epochs=0")
    tensors = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        assert {ended.code for ended in toy.start(lambda folder=folder: toy.train(folder, *settings), folder, processes)()} == {0}
        tensors[processes], rows = toy.outcome(folder / "run")
        assert rows[-1]["step"] == 5
    initial = toy.ToyTask().model.state_dict()
    for name, tensor in tensors[1].items():
        torch.testing.assert_close(tensors[2][name], tensor, rtol=0, atol=1e-5)
        if name.startswith("model/"):
            assert (tensor - initial[name.removeprefix("model/")]).abs().max() > 1e-3


def test_filled_epochs_are_the_same_over_one_two_and_three_processes(tmp_path: Path) -> None:
    settings = ("schedule.epochs=1", "schedule.warmup_epochs=0", "data.drop_last=false", "train.global_batch_size=12")
    tensors = {}
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        assert {ended.code for ended in toy.start(lambda folder=folder: toy.train(folder, *settings), folder, processes)()} == {0}
        tensors[processes], rows = toy.outcome(folder / "run")
        assert rows[-1]["step"] == 4
    for name, tensor in tensors[1].items():
        for processes in (2, 3):
            torch.testing.assert_close(tensors[processes][name], tensor, rtol=0, atol=1e-5)


def test_a_run_resumed_on_two_processes_and_on_one_again_agrees_to_1e_5(tmp_path: Path) -> None:
    """One process, then two, then one: the last resumption is 15 steps after the first one, the end 20 steps."""

    def train(folder: Path, kill_at: int = 0, resume: bool = False, size: str = "2") -> None:
        def at_loss(call: int, loss: Tensor) -> Tensor:
            if call == kill_at:
                toy.kill_self()
            return loss

        words = ["schedule.epochs=5", "optim.lr=1e-3", "checkpoint.every_steps=5", "train.eval_every_epochs=5"]
        settings = toy.recipe(*words, f"train.batch_size_per_device={size}")
        engine.fit(toy.ToyTask(norm=True, on_loss=at_loss), settings, folder / "run", resume=resume)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert {ended.code for ended in toy.start(lambda: train(whole), whole, 1)()} == {0}
    # A step is four micro-batches of two images.
    assert {ended.code for ended in toy.start(lambda: train(parts, kill_at=5 * 4 + 1), parts, 1)()} == {-9}
    assert {ended.code for ended in toy.start(lambda: train(parts, kill_at=15 * 2 + 1, resume=True), parts, 2)()} == {-9}
    assert {ended.code for ended in toy.start(lambda: train(parts, resume=True, size="auto"), parts, 1)()} == {0}
    (expected, rows), (found, others) = toy.outcome(whole / "run"), toy.outcome(parts / "run")
    assert rows[-1]["step"] == others[-1]["step"] == 25
    # The running statistics of batch norm are those of the first process, which sees other micro-batches.
    compared = [name for name in expected if "running" not in name and "tracked" not in name]
    assert len(compared) > 10
    for name in compared:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    state = json.loads(max((parts / "run" / "checkpoints").glob("*/state.json")).read_text())["state"]
    assert (state["micro_batch_size"], state["processes"]) == (2, 1)  # auto would be 8 for a new run


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_counts_depend_neither_on_processes_nor_on_batches(tmp_path: Path, processes: int) -> None:
    def count() -> None:
        task = toy.ToyTask(norm=True)
        # Joined once: who joins again at the same port may still meet the store that the first process is closing.
        with joined_world("cpu"):
            found = [engine.evaluate(task, task.model, "cpu", batch_size=size) for size in (1, 7, 64)]
        (tmp_path / f"found-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))

    assert {ended.code for ended in toy.start(count, tmp_path, processes)()} == {0}
    task = toy.ToyTask(norm=True).model.eval()
    points = [toy.ValPoints()[index] for index in range(toy.NUM_VAL)]
    with torch.no_grad():
        order = torch.stack([task(point["image"][None])[0].argsort(descending=True, stable=True) for point in points])
    hits = order == torch.tensor([point["target"] for point in points])[:, None]
    for rank in range(processes):
        for metrics in json.loads((tmp_path / f"found-{rank}.json").read_text()):
            assert metrics["num_images"] == toy.NUM_VAL == 37
            assert metrics["top1"] * 37 / 100 == pytest.approx(hits[:, :1].sum().item(), abs=1e-9)
            assert metrics["top5"] * 37 / 100 == pytest.approx(hits[:, :5].sum().item(), abs=1e-9)


def test_two_processes_killed_and_resumed_give_the_same_bits(tmp_path: Path) -> None:
    def train(folder: Path, kill_at: int = 0, resume: bool = False) -> None:
        def at_loss(call: int, loss: Tensor) -> Tensor:
            if call == kill_at:
                toy.kill_self()
            return loss

        engine.fit(toy.ToyTask(norm=True, on_loss=at_loss), toy.recipe(), folder / "run", resume=resume)

    assert {ended.code for ended in toy.start(lambda: train(tmp_path / "a"), tmp_path / "a", 2)()} == {0}
    assert {ended.code for ended in toy.start(lambda: train(tmp_path / "b", kill_at=15), tmp_path / "b", 2)()} == {-9}
    assert {ended.code for ended in toy.start(lambda: train(tmp_path / "b", resume=True), tmp_path / "b", 2)()} == {0}
    toy.assert_same_outcome(tmp_path / "b" / "run", tmp_path / "a" / "run")


def test_a_number_that_is_none_on_one_rank_stops_all_before_the_update(tmp_path: Path) -> None:
    def work() -> None:
        def at_loss(call: int, loss: Tensor) -> Tensor:
            return loss * float("nan") if call == 6 and os.environ["RANK"] == "1" else loss

        task = toy.ToyTask(on_loss=at_loss)
        try:
            engine.fit(task, toy.recipe("checkpoint.every_steps=1"), tmp_path / "run")
        finally:
            torch.save(task.model.state_dict(), tmp_path / f"weights-{os.environ['RANK']}.pt")

    ended = toy.start(work, tmp_path, 2)()
    assert [process.code for process in ended] == [2, 2]
    message = ended[0].message
    assert "The loss is not finite at step 2; stopped before the update." in message
    assert ended[1].message == ""
    # Two micro-batches of two for each process and step: the bad one is the second of process 1.
    keys = [key.index for key in third_step()]
    assert f"In the batch: {', '.join(f'point-{index}' for index in keys)}." in message
    saved, _ = toy.outcome(tmp_path / "run")
    for rank in range(2):
        for name, tensor in torch.load(tmp_path / f"weights-{rank}.pt").items():
            assert torch.equal(tensor, saved[f"model/{name}"])


def third_step() -> list[object]:
    """The samples of process 1's second micro-batch in step 2."""
    from stvit_cli.data.loader import TrainBatches

    settings = {"seed": 0, "repeats": 2, "global_batch_size": 8, "micro_batch_size": 2, "rank": 1, "world_size": 2}
    return list(TrainBatches(toy.NUM_TRAIN, **settings, start_step=2, num_steps=3))[1]


def test_a_signal_to_one_rank_stops_all_with_the_state_saved(tmp_path: Path) -> None:
    def train(folder: Path, signalled: bool = False, resume: bool = False) -> None:
        def at_loss(call: int, loss: Tensor) -> Tensor:
            if signalled and call == 13 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGUSR1)
            return loss

        overrides = ("checkpoint.every_steps=null", "schedule.epochs=2")
        engine.fit(toy.ToyTask(on_loss=at_loss), toy.recipe(*overrides), folder / "run", resume=resume)

    assert {ended.code for ended in toy.start(lambda: train(tmp_path / "a"), tmp_path / "a", 2)()} == {0}
    assert {ended.code for ended in toy.start(lambda: train(tmp_path / "b", signalled=True), tmp_path / "b", 2)()} == {143}
    assert {ended.code for ended in toy.start(lambda: train(tmp_path / "b", resume=True), tmp_path / "b", 2)()} == {0}
    toy.assert_same_outcome(tmp_path / "b" / "run", tmp_path / "a" / "run")


def test_a_rank_that_dies_takes_the_others_along_with_a_message(tmp_path: Path) -> None:
    def work() -> None:
        def at_loss(call: int, loss: Tensor) -> Tensor:
            if call == 9 and os.environ["RANK"] == "1":
                toy.kill_self()
            return loss

        engine.fit(toy.ToyTask(on_loss=at_loss), toy.recipe(), tmp_path / "run")

    began = time.monotonic()
    ended = toy.start(work, tmp_path, 2)()
    assert [process.code for process in ended] == [2, -9]
    assert "Process 0 has lost the others" in ended[0].message
    assert f"--resume {tmp_path / 'run'}" in ended[0].message
    assert time.monotonic() - began < 60


def test_a_restarted_group_takes_up_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(kill: bool) -> None:
        def at_loss(call: int, loss: Tensor) -> Tensor:
            if kill and call == 30:
                toy.kill_self()
            return loss

        engine.fit(toy.ToyTask(on_loss=at_loss), toy.recipe("schedule.epochs=2"), tmp_path / "run")

    assert [ended.code for ended in toy.start(lambda: work(kill=True), tmp_path)()] == [-9]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [ended.code for ended in toy.start(lambda: work(kill=False), tmp_path)()] == [0]
    assert toy.outcome(tmp_path / "run")[1][-1]["step"] == 10
