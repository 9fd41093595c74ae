"""What engine and tools do on a GPU beside plain runs: batch size, kernels, compilation, inference, export, throughput."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy
from helpers.gpu_devices import REAL, require_gpus
from torch import nn

import stvit_cli
from stvit_cli import engine
from stvit_cli.analysis.cost.throughput import Setting, measure
from stvit_cli.engine.distributed import World
from stvit_cli.engine.session import build_session
from stvit_cli.models import create_model, kernels
from stvit_cli.models.kernels import choice
from stvit_cli.models.optimize.inference import for_inference

NANO = ("model.name=stvit-nano", "data.image_size=32", "data.num_workers=0")
ON_CPU = pytest.param("cpu", marks=pytest.mark.slow)
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


def tiny_run(device: str, *words: str) -> list[str]:
    """Return the overrides of a run of seconds."""
    settings = [*NANO, "train.report=false"]
    return [*settings, "schedule.warmup_epochs=0", f"train.device={device}", *words]


class LargeBatchesDoNotFit(toy.ToyTask):
    """Runs out of memory with more than two images."""

    def training_loss(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        if len(batch["image"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().training_loss(model, batch)


@pytest.mark.parametrize("gpu", [REAL], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_automatic_batch_size_is_the_largest_that_fits_and_leaves_no_trace(
    gpu: str, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.device=cuda", "schedule.epochs=2", f"train.precision={precision}"]
    for name, size in (("auto", "auto"), ("given", "2")):
        recipe = toy.recipe(*words, f"train.batch_size_per_device={size}")
        engine.fit(LargeBatchesDoNotFit(norm=True), recipe, tmp_path / name)
        assert "8 = 2 per device x 4 accumulated" in capsys.readouterr().err
    toy.assert_same_outcome(tmp_path / "auto", tmp_path / "given")


def test_a_run_resumed_on_another_gpu_keeps_the_kernels_it_began_with(
    gpu: str, tmp_path: Path, image_folder: Path, stvit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another GPU, or another measurement, would choose otherwise; the sums would have another order, and other bits."""
    measured: list[tuple[str, ...]] = [("ConvPosEnc 32", "ConvFFN 64, 256 hidden"), ()]
    monkeypatch.setattr(choice, "choose", lambda *_: measured.pop(0))
    monkeypatch.setattr(kernels, "is_available", lambda device_type: True)
    words = tiny_run("cuda", "schedule.steps=2", "train.global_batch_size=4", "train.eval_every_steps=2")
    run = tmp_path / "run"
    for arguments in (["--recipe", "quickstart", "--data", image_folder, "--output", run, *words], ["--resume", run]):
        ended = stvit("train", *arguments)
        assert ended.code == 0, ended.err
        assert "on cuda:0 with custom kernels" in ended.err
        assert "custom kernels than before" not in ended.err
        newest = max((run / "checkpoints").iterdir())
        assert json.loads((newest / "state.json").read_text())["state"]["kernel_layers"] == [
            "ConvFFN 64, 256 hidden",
            "ConvPosEnc 32",
        ]
    assert measured == []


class OnAnotherRank(World):
    """A process to which the first one has sent its choice."""

    def on_main(self, work: Callable[[], Any]) -> Any:
        timeline, _ = work()
        return timeline, ("ConvFFN 8, 32 hidden",)


@pytest.mark.parametrize("gpu", [REAL], indirect=True)
@pytest.mark.parametrize(("key", "expected"), [("auto", ("ConvFFN 8, 32 hidden",)), ("false", False)])
def test_all_processes_take_the_choice_of_the_first(gpu: str, key: str, expected: object) -> None:
    task, given = toy.ToyTask(), []
    prepare = task.prepare

    def recorded(*arguments: Any, **settings: Any) -> Any:
        given.append(settings["kernels"])
        return prepare(*arguments, **settings)

    task.prepare = recorded  # type: ignore[method-assign]
    recipe = toy.recipe("train.device=cuda", f"train.kernels={key}")
    build_session(task, recipe, OnAnotherRank(torch.device("cuda", 0)))
    assert given == ["auto" if key == "auto" else False, expected]


@pytest.mark.parametrize("device", [REAL])
@pytest.mark.filterwarnings("ignore")  # what the compiler says of its own
def test_a_compiled_run_with_kernels_resumes_to_the_same_bits(
    device: str, tmp_path: Path, image_folder: Path, stvit: Callable[..., Any]
) -> None:
    if device == "cuda":
        require_gpus()
    torch.compiler.reset()
    words = tiny_run(device, "schedule.steps=2", "train.global_batch_size=4", "train.eval_every_steps=2")
    words += ["train.compile=true", "train.kernels=true"]
    words += ["checkpoint.every_steps=1", "model.drop_path_rate=0.2", "checkpoint.keep=5"]
    run = tmp_path / "run"
    ended = stvit("train", "--recipe", "quickstart", "--data", image_folder, "--output", run, *words)
    assert ended.code == 0, ended.err
    last = run / "checkpoints" / "step_00000002"
    expected = (last / "model.safetensors").read_bytes()
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    torch.compiler.reset()
    assert stvit("train", "--resume", run).code == 0
    assert (last / "model.safetensors").read_bytes() == expected
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_for_inference_is_the_same_function(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=7).eval()
    images = torch.randn(2, 3, 64, 80)
    fast = for_inference(model, device)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = fast(images.to(device)).float().cpu()
    assert (found - expected).abs().max() < (1e-3 if dtype == torch.float32 else 5e-2) * expected.abs().max()


@pytest.mark.parametrize("device", [REAL])
@pytest.mark.filterwarnings("ignore")  # what the exporter says of its own
def test_a_run_of_a_gpu_is_exported_and_loaded(device: str, tmp_path: Path, image_folder: Path) -> None:
    if device == "cuda":
        require_gpus()
    words = tiny_run(device, "schedule.epochs=1", "train.global_batch_size=8")
    stvit_cli.train("quickstart", words, data=image_folder, output=tmp_path / "run")
    trained = stvit_cli.load(tmp_path / "run", device=device)
    image = next(image_folder.glob("val/*/*.png"))
    (predicted,) = trained.predict([image])
    assert predicted.error is None
    trained.export(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 1000


@pytest.mark.parametrize("device", [ON_CPU, REAL])
@pytest.mark.parametrize("train", [False, True])
def test_throughput_is_measured(device: str, train: bool) -> None:
    if device == "cuda":
        require_gpus()
    setting = Setting((32, 32), 3, 2, train, "fp32", kernels=False, rounds=1, device=device)
    result = measure(["stvit-nano"], setting)["stvit-nano"]
    assert result["images_per_second"] > 0
    assert result["peak_memory_bytes"] > 0
    assert not result["kernels"]
