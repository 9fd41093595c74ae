"""What the command line does, from Python: `stvit_cli.train`, `resume`, `dry_run`, `evaluate` and `load`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stvit_cli
from stvit_cli.api.overrides import as_words
from stvit_cli.data.images import open_image
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import registry

TINY = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "train.device": "cpu", "data.image_size": 32, "data.num_workers": 0}
DIGIT = Path(__file__).parent / "images" / "digit-3.png"


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> stvit_cli.TrainingResult:
    """A run of one epoch on two classes of noise."""
    overrides = {**TINY, "data.kind": "imagefolder", "train.global_batch_size": 16}
    output = tmp_path_factory.mktemp("api") / "run"
    return stvit_cli.train("quickstart", overrides, data=image_folder, output=output)


@pytest.fixture(scope="module")
def loaded(run: stvit_cli.TrainingResult) -> stvit_cli.TrainedModel:
    return stvit_cli.load(run.run_dir, device="cpu")


@pytest.fixture(scope="module")
def file(image_folder: Path) -> Path:
    return image_folder / "val" / "red" / "0.png"


def test_metrics_of_a_run_are_those_of_its_evaluation(run: stvit_cli.TrainingResult) -> None:
    again = stvit_cli.evaluate(run.run_dir)
    assert again.task == "classification"
    assert again.metrics["top1"] == run.metrics["top1"] == run.to_dict()["top1"]


def test_resuming_a_finished_run_returns_its_metrics(run: stvit_cli.TrainingResult) -> None:
    assert stvit_cli.resume(run.run_dir).metrics["top1"] == run.metrics["top1"]


def test_resume_refuses_another_directory_without_a_step(run: stvit_cli.TrainingResult, tmp_path: Path) -> None:
    with pytest.raises(stvit_cli.UserError, match="from_step=N"):
        stvit_cli.resume(run.run_dir, output=tmp_path / "other")


def test_dry_run_writes_nothing(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = {**TINY, "data.kind": "imagefolder", "train.global_batch_size": 16}
    result = stvit_cli.dry_run("quickstart", overrides, data=image_folder)
    assert result.steps == result.to_dict()["steps"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_saves_and_says_what_its_task_resolved_and_a_resumed_one_resolves_nothing(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    asked: list[Recipe] = []

    def smaller(given: Recipe) -> tuple[Recipe, list[str]]:
        asked.append(given)
        return given.model_copy(update={"eval": given.eval.model_copy(update={"batch_size": 3})}), ["3 images at a time"]

    spec = dataclasses.replace(registry.get("classification"), resolve=smaller)
    monkeypatch.setitem(registry.TASKS, "classification", lambda: spec)
    overrides = {**TINY, "data.kind": "imagefolder", "train.global_batch_size": 16}
    trained = stvit_cli.train("quickstart", overrides, data=image_folder, output=tmp_path / "run")
    assert recipe_io.load(trained.run_dir / "recipe.yaml").eval.batch_size == 3
    assert [record.message for record in caplog.records].count("3 images at a time") == 1
    stvit_cli.resume(trained.run_dir)
    assert len(asked) == 1


def test_single_image_gives_a_single_prediction(loaded: stvit_cli.TrainedModel, file: Path) -> None:
    result = loaded.predict(str(file), top=2)
    assert result.path == file
    assert {found["name"] for found in result.to_dict()["classes"]} == {"red", "blue"} == set(loaded.class_names)


def test_path_image_and_array_give_the_same_prediction(loaded: stvit_cli.TrainedModel, file: Path) -> None:
    image = open_image(file)
    by_path, by_image, by_array = loaded.predict([file, image, np.asarray(image)])
    assert by_path.to_dict()["classes"] == by_image.to_dict()["classes"] == by_array.to_dict()["classes"]
    assert by_image.path is None
    assert by_array.to_dict()["file"] is None


def test_prediction_of_an_array_can_be_drawn(loaded: stvit_cli.TrainedModel, file: Path, tmp_path: Path) -> None:
    loaded.predict(np.asarray(open_image(file))).draw(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width == 160


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "float", "empty"],
)
def test_array_of_another_shape_or_type_is_refused(loaded: stvit_cli.TrainedModel, array: np.ndarray) -> None:
    with pytest.raises(stvit_cli.UserError, match=r"expected an RGB image: \(H, W, 3\), uint8"):
        loaded.predict(array)


def test_unreadable_image_raises_alone_and_is_noted_among_others(loaded: stvit_cli.TrainedModel, file: Path) -> None:
    with pytest.raises(stvit_cli.UserError, match="no such file"):
        loaded.predict("missing.png")
    missing, found = loaded.predict(["missing.png", file])
    assert "no such file" in (missing.error or "")
    assert found.error is None


@pytest.mark.parametrize("arguments", [{"top": 0}, {"score_threshold": 2.0}])
def test_arguments_out_of_range_are_named(loaded: stvit_cli.TrainedModel, arguments: dict[str, float]) -> None:
    with pytest.raises(stvit_cli.UserError, match=next(iter(arguments))):
        loaded.predict(DIGIT, **arguments)


def test_changed_weights_are_seen_by_the_next_prediction(run: stvit_cli.TrainingResult, file: Path) -> None:
    model = stvit_cli.load(run.run_dir, device="cpu")
    before = model.predict(file).to_dict()["classes"]
    assert model.predict(file).to_dict()["classes"] == before
    with torch.no_grad():
        model.model.head.weight.neg_()
    assert model.predict(file).to_dict()["classes"] != before


def test_loaded_model_evaluates_on_another_folder(
    loaded: stvit_cli.TrainedModel, image_folder: Path, run: stvit_cli.TrainingResult
) -> None:
    by_model = loaded.evaluate(image_folder, {"data.num_workers": 0})
    by_path = stvit_cli.evaluate(run.run_dir / "best.safetensors", image_folder, ["data.num_workers=0"])
    assert by_model.to_dict() == by_path.to_dict()
    assert by_model.metrics["num_images"] == 6


def test_weights_file_needs_data(run: stvit_cli.TrainingResult) -> None:
    with pytest.raises(stvit_cli.UserError, match="data=DIR"):
        stvit_cli.evaluate(run.run_dir / "best.safetensors")


def test_export_writes_half_precision(loaded: stvit_cli.TrainedModel, tmp_path: Path) -> None:
    result = loaded.export(tmp_path / "half.safetensors", precision="fp16")
    assert result.size_bytes == (tmp_path / "half.safetensors").stat().st_size
    assert result.to_dict()["precision"] == "fp16"
    with pytest.raises(stvit_cli.UserError, match="exists"):
        loaded.export(tmp_path / "half.safetensors")


def test_associations_are_written(loaded: stvit_cli.TrainedModel, file: Path, tmp_path: Path) -> None:
    written = loaded.visualize_associations(file, tmp_path, layers=["stage1.block1"], image_size=64)
    assert [item.kind for item in written] == ["overview", "layer"]
    assert all(item.file.is_file() for item in written)


def test_json_of_the_command_line_is_to_dict(run: stvit_cli.TrainingResult, stvit, file: Path) -> None:
    ended = stvit("predict", file, "--weights", run.run_dir, "--json", "-")
    assert json.loads(ended.out) == [stvit_cli.load(run.run_dir).predict(file).to_dict()]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"optim.lr": 1e-5, "model.name": "stvit-s"}, ["optim.lr=1.0e-05", "model.name=stvit-s"]),
        ({"model.grid_sizes": (8, 4, 1, 1)}, ["model.grid_sizes=[8, 4, 1, 1]"]),
        ({"data.dir": Path("a b")}, ["data.dir=a b"]),
        ({"optim.clip_grad_norm": None}, ["optim.clip_grad_norm=null"]),
        (["optim.lr=1e-3"], ["optim.lr=1e-3"]),
    ],
)
def test_overrides_are_written_as_on_the_command_line(overrides: stvit_cli.api.Overrides, expected: list[str]) -> None:
    assert as_words(overrides) == expected


def test_overrides_in_one_text_are_refused() -> None:
    with pytest.raises(stvit_cli.UserError, match="overrides"):
        stvit_cli.train("quickstart", "optim.lr=1e-3")


def test_every_public_name_is_there() -> None:
    assert all(getattr(stvit_cli, name) is not None for name in stvit_cli.__all__)
    assert set(dir(stvit_cli)) >= {"train", "load"}


@pytest.mark.parametrize("code", ["import stvit_cli, stvit_cli.api", "from stvit_cli.cli import main; main(['--help'])"])
def test_importing_the_package_and_the_help_wait_for_no_library(code: str) -> None:
    code += "; import sys; sys.exit(bool({'torch', 'timm', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_messages_name_arguments_in_python_and_options_on_the_command_line(
    stvit, run: stvit_cli.TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(stvit_cli.UserError, match="add from_step=N") as raised:
        stvit_cli.resume(run.run_dir, {"optim.lr": 0.5})
    assert "--from-step" not in str(raised.value)
    assert "add --from-step N" in stvit("train", "--resume", run.run_dir, "optim.lr=0.5").err
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(stvit_cli.UserError, match="output=DIR"):
        stvit_cli.train("quickstart")
