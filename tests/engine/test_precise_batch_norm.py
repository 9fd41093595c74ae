"""Batch norm statistics recomputed over training images, while their moving averages still hold their initial values."""

from __future__ import annotations

import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from stvit_cli import engine, tasks
from stvit_cli.data.sampling import ClassBalance
from stvit_cli.engine import mode_gap, precise_batch_norm
from stvit_cli.engine.branch import Branch
from stvit_cli.engine.distributed import World, joined_world
from stvit_cli.engine.mode_gap import Gap, measure_gap
from stvit_cli.engine.precise_batch_norm import NUM_IMAGES, Recorder, recompute_statistics, statistics_batches
from stvit_cli.engine.session import Session, build_session
from stvit_cli.engine.trainer import fit
from stvit_cli.errors import UserError
from stvit_cli.models.layers import BatchNorm2d
from stvit_cli.recipe import io as recipe_io

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.script, at fvcore's import
    from fvcore.nn.precise_bn import update_bn_stats

ON = "train.precise_bn_steps=12"  # the evaluations after 5 and 10 of 20 steps
ALONE = World(torch.device("cpu"))


def session(*overrides: str, **settings: Any) -> Session:
    return build_session(toy.ToyTask(norm=True, **settings), toy.recipe(*overrides), ALONE)


def norms(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


@pytest.mark.parametrize("global_batch", [8, 32])
def test_the_statistics_are_those_of_fvcore(global_batch: int) -> None:
    """fvcore divides by the number of values, PyTorch's running variance by one less."""
    made = session(f"train.global_batch_size={global_batch}", "train.batch_size_per_device=auto", "optim.lr=1e-1", dropout=0.0)
    task, ema = made.task, made.ema
    assert ema is not None
    ema.module.load_state_dict({name: tensor * 2 for name, tensor in made.model.state_dict().items()})
    assert recompute_statistics(made, step=7)
    batches = [
        task.collate([task.train_set[key] for key in keys])
        for keys in statistics_batches(41, global_batch, multiple=1, seed=0, step=7)
    ]
    assert len(batches) == -(-41 // global_batch)
    for model in (made.model, ema.module):
        found = norms(model)
        model.train()
        update_bn_stats(model, [batch["image"] for batch in batches], len(batches))
        mean, var, _ = norms(model)
        torch.testing.assert_close(found[0], mean)
        torch.testing.assert_close(found[1], var * 41 / 40)
        assert found[2] == 0  # the number of batches tracked is that of the training steps


def test_nothing_else_changes() -> None:
    made = session(dropout=0.5)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items() if "running" not in name}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    momenta = [module.momentum for module in made.model if isinstance(module, nn.BatchNorm1d)]
    recompute_statistics(made, step=3)
    after = made.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [module.momentum for module in made.model if isinstance(module, nn.BatchNorm1d)] == momenta
    assert all(not module._forward_hooks for module in made.model.modules())
    first = norms(made.model)
    made.model[3].running_mean.fill_(1e30)  # what was there has no influence
    recompute_statistics(made, step=3)
    assert all(torch.equal(a, b) for a, b in zip(norms(made.model), first, strict=True))


def test_frozen_norms_keep_their_statistics() -> None:
    made = session("finetune.freeze_norm=true")
    before = norms(made.model)
    assert recompute_statistics(made, step=3)
    assert all(torch.equal(a, b) for a, b in zip(norms(made.model), before, strict=True))


def test_a_stop_leaves_the_statistics_as_they_are() -> None:
    made = session()
    before = norms(made.model)
    done: list[int] = []
    assert not recompute_statistics(made, 3, stopped=lambda: len(done) == 2, advance=lambda k, total: done.append(total))
    assert done == [6, 6]
    assert all(torch.equal(a, b) for a, b in zip(norms(made.model), before, strict=True))


def test_synchronised_norms_are_recorded_without_the_other_processes() -> None:
    """A SyncBatchNorm refuses tensors on a CPU; the recorder replaces its forward pass, and puts it back."""
    plain = nn.Sequential(BatchNorm2d(3), BatchNorm2d(3))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BatchNorm2d(3), BatchNorm2d(3)))
    x = torch.randn(4, 3, 5, 5)
    recorders = [Recorder(plain), Recorder(synced)]
    for model, recorder in zip((plain, synced), recorders, strict=True):
        with recorder:
            model(x)
        recorder.write([recorder.moments()])
    assert all("forward" not in vars(module) for module in synced)
    assert all(torch.equal(a, b) for a, b in zip(norms(plain), norms(synced), strict=True))
    torch.testing.assert_close(plain[0].running_var, x.var((0, 2, 3)))


def test_a_norm_without_values_keeps_its_statistics_and_one_called_twice_counts_both() -> None:
    model = nn.ModuleList([BatchNorm2d(2), BatchNorm2d(2), BatchNorm2d(2)])
    recorder, x, y = Recorder(model), torch.randn(2, 2, 3, 3), torch.randn(3, 2, 1, 1)
    with recorder:
        model[0](torch.randn(1, 2, 1, 1))  # a single value has no variance
        model[1](x)
        model[1](y)
    recorder.write([recorder.moments()])
    assert [module.running_mean.tolist() for module in (model[0], model[2])] == [[0, 0], [0, 0]]
    both = torch.cat([x.transpose(0, 1).flatten(1), y.transpose(0, 1).flatten(1)], 1)
    torch.testing.assert_close(model[1].running_mean, both.mean(1))
    torch.testing.assert_close(model[1].running_var, both.var(1))


def test_batches_are_nearly_equal_and_hold_no_image_twice() -> None:
    for num, batch, multiple in (
        (48, 64, 1),
        (33, 64, 2),
        (5000, 1024, 2),
        (3, 2, 2),
        (7, 3, 1),
        (5, 2, 1),
        (7, 1, 1),
        (1, 1, 1),
    ):
        batches = statistics_batches(num, batch, multiple=multiple, seed=0, step=12)
        indices = [key.index for keys in batches for key in keys]
        assert len(indices) == len(set(indices)) == min(num, NUM_IMAGES) // multiple * multiple
        sizes = [len(keys) for keys in batches]
        assert max(sizes) <= 32
        assert min(sizes) > 1 or num == 1
        assert max(sizes) - min(sizes) <= multiple
        assert all(size % multiple == 0 for size in sizes)
    drawn = [statistics_batches(48, 64, multiple=1, seed=seed, step=step) for seed, step in ((0, 12), (0, 13), (1, 12))]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    balance = ClassBalance(np.array([0] * 40 + [1] * 8), 1.0)
    rare = [key.index >= 40 for keys in statistics_batches(48, 64, multiple=1, seed=0, step=1, balance=balance) for key in keys]
    assert sum(rare) == 24


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_get_the_bits_of_one(tmp_path: Path, processes: int) -> None:
    def work() -> None:
        with joined_world("cpu") as world:
            made = build_session(toy.ToyTask(norm=True), toy.recipe("train.global_batch_size=12"), world)
            assert recompute_statistics(made, 5)
        torch.save(made.model.state_dict(), tmp_path / f"{os.environ['RANK']}.pt")

    assert {ended.code for ended in toy.start(work, tmp_path, processes)()} == {0}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = session("train.global_batch_size=12", "train.batch_size_per_device=3")
    recompute_statistics(made, 5)
    torch.set_num_threads(threads)
    for rank in range(processes):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(found[name], tensor) for name, tensor in made.model.state_dict().items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precise")
    assert [ended.code for ended in toy.start(lambda: train(folder), folder)()] == [0]
    return folder / "run"


def train(folder: Path, *, resume: bool = False, kill_at: int = 0, signal_at: int = 0) -> None:
    def at_loss(call: int, loss: Tensor) -> Tensor:
        if call == kill_at:
            toy.kill_self()
        if call == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    fit(toy.ToyTask(norm=True, on_loss=at_loss), toy.recipe(ON), folder / "run", resume=resume)


MICRO_BATCHES, PASS = 20, 12  # losses up to the first evaluation; and in it: 6 batches for the model and its moving average


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ({"kill_at": MICRO_BATCHES}, -9),  # before the evaluation
        ({"kill_at": MICRO_BATCHES + 5}, -9),  # in it
        ({"kill_at": MICRO_BATCHES + PASS + 1}, -9),  # after it
        ({"signal_at": MICRO_BATCHES}, 143),
        ({"signal_at": MICRO_BATCHES + 5}, 143),
    ],
)
def test_stopped_around_an_evaluation_and_resumed_gives_the_same_bits(
    whole: Path, tmp_path: Path, what: dict[str, int], code: int
) -> None:
    assert [ended.code for ended in toy.start(lambda: train(tmp_path, **what), tmp_path)()] == [code]
    assert [ended.code for ended in toy.start(lambda: train(tmp_path, resume=True), tmp_path)()] == [0]
    toy.assert_same_outcome(tmp_path / "run", whole)


def test_a_branch_is_the_runs_own_continuation(tmp_path: Path) -> None:
    settings = (ON, "checkpoint.keep=20")
    fit(toy.ToyTask(norm=True), toy.recipe(*settings), tmp_path / "run")
    fit(toy.ToyTask(norm=True), toy.recipe(*settings), tmp_path / "new", branch=Branch(tmp_path / "run", 5))
    toy.assert_same_outcome(tmp_path / "new", tmp_path / "run")


def test_weights_carry_the_statistics_and_the_weights_stay_those_of_the_run_without(tmp_path: Path) -> None:
    off, on = ("schedule.epochs=1", "schedule.warmup_epochs=0"), ("schedule.epochs=1", "schedule.warmup_epochs=0", ON)
    saved = {}
    for name, overrides in (("off", off), ("on", on)):
        engine.fit(toy.ToyTask(norm=True), toy.recipe(*overrides), tmp_path / name)
        saved[name] = load_file(tmp_path / name / "last.safetensors")
    differing = {name for name, tensor in saved["on"].items() if not torch.equal(tensor, saved["off"][name])}
    assert differing == {"3.running_mean", "3.running_var"}
    made = build_session(toy.ToyTask(norm=True), toy.recipe(*on), ALONE)
    made.model.load_state_dict(saved["on"])
    recompute_statistics(made, 5)
    assert all(torch.equal(tensor, saved["on"][name]) for name, tensor in made.model.state_dict().items())


def test_a_model_trained_for_12_steps_is_right_with_it_and_not_without(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The case of the issue in small: 48 images of three classes, stvit-nano."""
    for split, count in (("train", 16), ("val", 4)):
        for color in ("red", "green", "blue"):
            (tmp_path / "data" / split / color).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.RandomState(index).randint(90, 160, (32, 32, 3), np.uint8)
                pixels[..., ("red", "green", "blue").index(color)] += 30
                Image.fromarray(pixels).save(tmp_path / "data" / split / color / f"{index}.png")
    overrides = {
        "data.kind": "imagefolder",
        "data.dir": str(tmp_path / "data"),
        "data.image_size": "32",
        "data.num_workers": "0",
        "train.global_batch_size": "48",
        "train.eval_every_epochs": "12",
        "train.precise_bn_steps": "0",
        "train.device": "cpu",
        "schedule.steps": "12",
    }
    recipe = recipe_io.load("quickstart", [f"{key}={value}" for key, value in overrides.items()])
    without = fit(tasks.build(recipe), recipe, tmp_path / "run")
    said = capfd.readouterr().err
    assert "Warning: on 48 training images the last weights have top1 100 with the statistics of each batch,\nbut " in said
    assert "Train with train.precise_bn_steps=12, which" in said
    made = build_session(tasks.build(recipe), recipe, ALONE)
    made.model.load_state_dict(load_file(tmp_path / "run" / "last.safetensors"))
    assert recompute_statistics(made, 12)
    found = engine.evaluate(made.task, made.model)
    assert found["top1"] == 100 > 70 > without["top1"]
    gap = measure_gap(made, 12)
    assert gap is not None
    assert (gap.num_images, gap.batch, gap.running) == (48, 100, 100)
    assert found["loss"] < 0.1 < 0.7 < without["loss"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("shapes-cascade-mask-rcnn", ["detection.short_sides=[32]", "detection.long_side=64", "detection.num_samples=8"]),
        ("shapes-upernet", ["segmentation.max_size=[64, 64]", "segmentation.channels=8", "segmentation.aux_channels=8"]),
    ],
)
def test_every_task_has_precise_statistics(recipe: str, words: list[str], tmp_path: Path) -> None:
    """In the heads too, from batches of lists, the same each time."""
    data = ["data.image_size=48", "data.num_workers=0", "shapes.num_train=5", "shapes.num_val=1", f"data.dir={tmp_path}"]
    small = ["train.global_batch_size=2", "train.device=cpu"]
    settings = recipe_io.load(recipe, [*data, *small, *words])
    made = build_session(tasks.build(settings), settings, ALONE)
    found = []
    for _ in range(2):
        assert recompute_statistics(made, 1)
        found.append([module.running_mean.clone() for module in made.model.modules() if isinstance(module, nn.BatchNorm2d)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(mean.isfinite().all() and mean.abs().sum() > 0 for mean in found[0])
    assert len(found[0]) > 20
    gap = measure_gap(made, 1)
    assert gap is not None
    assert gap.running == pytest.approx(gap.batch, rel=0.5)
    assert not gap.is_large()
    for module in made.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.mul_(100)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    after = measure_gap(made, 1)
    assert after is not None
    assert after.batch == gap.batch != after.running
    assert all(torch.equal(before[name], tensor) for name, tensor in made.model.state_dict().items())


@pytest.mark.parametrize(
    ("gap", "is_large"),
    [
        (Gap("top1", 48, 100.0, 33.3), True),
        (Gap("top1", 48, 60.0, 45.0), False),
        (Gap("top1", 10, 80.0, 50.0), False),  # three images
        (Gap("top1", 256, 30.0, 100.0), False),
        (Gap("loss", 32, 0.5, 1.1), True),
        (Gap("loss", 32, 0.5, 0.9), False),
    ],
)
def test_a_gap_is_reported_where_it_is_large(gap: Gap, is_large: bool) -> None:
    assert gap.is_large() is is_large


@pytest.mark.parametrize("processes", [2, 3])
def test_the_gap_is_the_same_over_processes(tmp_path: Path, processes: int) -> None:
    def work() -> None:
        with joined_world("cpu") as world:
            made = build_session(toy.ToyTask(norm=True), toy.recipe("train.global_batch_size=12"), world)  # 2 per device
            gap = measure_gap(made, 5)
            assert gap is not None
        (tmp_path / f"{world.rank}").write_text(repr((gap.num_images, gap.batch, gap.running)))

    assert {ended.code for ended in toy.start(work, tmp_path, processes)()} == {0}
    gap = measure_gap(session("train.global_batch_size=12"), 5)
    assert gap is not None
    for rank in range(processes):
        assert (tmp_path / f"{rank}").read_text() == repr((gap.num_images, gap.batch, gap.running))


def test_an_unreadable_image_at_the_end_costs_the_note_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = session()

    def refuse(self: Any, key: Any) -> Any:
        raise UserError("unreadable")

    monkeypatch.setattr(toy.TrainPoints, "__getitem__", refuse)
    assert measure_gap(made, 5) is None


@pytest.mark.parametrize(("micro", "num_images"), [(2, 40), (8, 41)])  # of 41 images one is left out, where a batch would be of 3
def test_the_gap_is_measured_in_micro_batches(micro: int, num_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = session(f"train.batch_size_per_device={micro}")
    monkeypatch.setattr(mode_gap, "NUM_IMAGES_OF_LOSS", 41)
    sizes, collate = [], made.task.collate
    monkeypatch.setattr(made.task, "collate", lambda samples: (sizes.append(len(samples)), collate(samples))[1], raising=False)
    gap = measure_gap(made, 5)
    assert gap is not None
    assert gap.num_images == sum(sizes) == num_images
    assert max(sizes) <= micro


def refuse_more_than(size: int) -> Any:
    def forward(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    return forward


def test_a_pass_that_does_not_fit_into_the_memory_is_repeated_in_smaller_batches(caplog: pytest.LogCaptureFixture) -> None:
    made, small = (session("train.global_batch_size=32", "train.batch_size_per_device=8") for _ in range(2))
    expected = {name: value.clone() for name, value in small.model.state_dict().items()}
    made.model.register_forward_pre_hook(refuse_more_than(8))
    assert recompute_statistics(made, 5)
    assert "recomputed with 8" in caplog.text
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(precise_batch_norm, "BATCH_SIZE", 8)
        assert recompute_statistics(small, 5)
    assert all(torch.equal(a, b) for a, b in zip(norms(made.model), norms(small.model), strict=True))
    assert not torch.equal(made.model[3].running_mean, expected["3.running_mean"])
    made.model.register_forward_pre_hook(refuse_more_than(0))
    with pytest.raises(torch.OutOfMemoryError, match="memory"):
        recompute_statistics(made, 5)


def test_an_evaluation_without_memory_names_its_own_batch_size(tmp_path: Path) -> None:
    task = toy.ToyTask(norm=True)
    task.model.register_forward_pre_hook(refuse_more_than(8))
    with pytest.raises(UserError, match=r"in an evaluation, with 16 images at once.\nTry eval.batch_size=8.\n"):
        fit(task, toy.recipe(), tmp_path / "run")
    fit(task, toy.recipe("eval.batch_size=8"), tmp_path / "run", resume=True)


@pytest.mark.parametrize("where", ["measure_gap", "_combined"])
def test_a_failure_at_the_end_costs_the_comparison_and_not_the_run(
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(mode_gap._Measured, "add", refuse) if where == "measure_gap" else monkeypatch.setattr(
        mode_gap, where, refuse
    )
    result = fit(toy.ToyTask(norm=True), toy.recipe("schedule.epochs=2"), tmp_path / "run")
    assert result["steps"] == 10
    said = capsys.readouterr().err
    assert "Best top-1" in said
    assert "not compared with those of a batch (" in said + caplog.text
