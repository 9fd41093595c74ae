"""The registry of tasks: a fourth task is one entry, and everything that works by task works with it."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchvision.transforms.functional import to_tensor

from stvit_cli import tasks
from stvit_cli.analysis.cost.profile_recipe import profile_recipe
from stvit_cli.analysis.evaluate import evaluate, recipe_for
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import DetectionSection, Recipe, SegmentationSection
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.field_types import Section
from stvit_cli.tasks import ImagePrediction, PredictOptions, TaskSpec, Trained, registry
from stvit_cli.tasks.detection.detector import create_detector
from stvit_cli.tasks.preparation import PreparedModel
from stvit_cli.tasks.segmentation.upernet import create_segmenter

# A toy task: the brightness of an image.


class Brightness(nn.Module):
    """(B, 3, H, W) -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3)) * self.weight).mean(1)


class GreyImages(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        brightness = torch.tensor(index / 4)
        return {"image": brightness.expand(3, 8, 8), "target": brightness}


class MeanError:
    def __init__(self) -> None:
        self.errors: list[float] = []

    def update(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.errors += (model(batch["image"]) - batch["target"]).abs().tolist()

    def state(self) -> list[float]:
        return self.errors

    def compute(self, states: list[list[float]]) -> Iterable[tuple[str, float]]:
        errors = [error for state in states for error in state]
        yield "num_images", len(errors)
        yield "mean_error", sum(errors) / len(errors)


class BrightnessTask(PreparedModel):
    name, main_metric, batch_multiple = "brightness", "mean_error", 1

    def __init__(self) -> None:
        self.model: nn.Module = Brightness()
        self.train_set = self.val_set = GreyImages()

    def collate(self, samples: list[Any]) -> Any:
        return default_collate(samples)

    collate_eval = collate

    def evaluator(self) -> MeanError:
        return MeanError()

    def training_loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"loss": (model(batch["image"]) - batch["target"]).abs().mean()}

    def heads(self) -> list[nn.Module]:
        return [self.model]

    def param_groups(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "weight_decay": weight_decay, "lr_scale": 1.0}]

    def weights_info(self) -> WeightsInfo:
        return WeightsInfo("brightness", task=self.name, num_classes=1)

    def notes(self) -> list[str]:
        return []

    check_data = data_problems = notes

    def data_fingerprint(self) -> str:
        return "grey"

    def describe_eval(self, batch: Any) -> list[str]:
        return []

    describe = skipped = describe_eval


@dataclass(frozen=True)
class BrightnessPrediction:
    path: Path
    brightness: float
    error: str | None = None

    def summary(self) -> str:
        return f"{self.brightness:.0%}"

    def to_json(self) -> dict[str, Any]:
        return {"file": str(self.path), "brightness": self.brightness}

    def draw(self, target: Path) -> None:
        Image.open(self.path).save(target)


def _predict(
    trained: Trained, images: Sequence[Path], options: PredictOptions, device: torch.device
) -> Iterator[ImagePrediction]:
    for path in images:
        yield BrightnessPrediction(path, trained.model(to_tensor(Image.open(path))[None]).item())


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TaskSpec(
        name="brightness",
        build=lambda recipe, weights: BrightnessTask(),
        build_evaluation=lambda recipe, info, *, whole: BrightnessTask(),
        create_model=lambda info: Brightness(),
        predict=_predict,
        create_cost_model=lambda recipe: Brightness(),
        folder_kind="imagefolder",
        published_size=(64, 96),
        eval_batch_size=3,
    )
    monkeypatch.setitem(registry.TASKS, "brightness", lambda: spec)


def _recipe() -> Recipe:
    return recipe_io.load("quickstart", ["train.device=cpu", "data.num_workers=0"]).model_copy(update={"task": "brightness"})


def test_a_fourth_task_is_built_evaluated_and_predicts(tmp_path: Path) -> None:
    task = tasks.build(_recipe())
    assert isinstance(task, BrightnessTask)
    trained = Trained(task.model.eval(), task.weights_info(), tmp_path / "weights.safetensors")

    found = evaluate(trained, _recipe())
    assert found.metrics == {"num_images": 5, "mean_error": pytest.approx(0, abs=1e-6)}
    assert found.predictions is None

    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "grey.png")
    (prediction,) = tasks.predict(trained, [tmp_path / "grey.png"])
    assert prediction.summary() == "20%"

    cost = profile_recipe(_recipe(), None)
    assert cost["params"] == 3
    assert cost["image_size"] == [64, 96]


@pytest.mark.parametrize(("task", "kind"), [("classification", "imagefolder"), ("detection", "coco"), ("segmentation", "ade20k")])
def test_a_folder_is_read_as_the_task_says(task: str, kind: str, tmp_path: Path) -> None:
    info = WeightsInfo("stvit-nano", task=task, num_classes=1, class_names=("cat",))
    settings = {"segmentation": '{"class_names": ["cat"]}', "detection": "{}"}.get(task, "")
    trained = Trained(nn.Identity(), WeightsInfo(**{**vars(info), "settings": settings}), tmp_path / "w.safetensors")
    recipe = recipe_for(trained, [f"data.dir={tmp_path}"])
    assert (recipe.task, recipe.data.kind) == (task, kind)
    assert (recipe.eval.batch_size == 1) == (task == "detection")


def test_a_task_resolves_what_its_recipe_leaves_to_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe()
    assert tasks.resolve(recipe) == (recipe, []), "by default nothing depends on the data"

    def smaller(given: Recipe) -> tuple[Recipe, list[str]]:
        return given.model_copy(update={"data": given.data.model_copy(update={"image_size": 32})}), ["images of 32 pixels"]

    spec = dataclasses.replace(registry.get("brightness"), resolve=smaller)
    monkeypatch.setitem(registry.TASKS, "brightness", lambda: spec)
    resolved, notes = tasks.resolve(recipe)
    assert (resolved.data.image_size, notes) == (32, ["images of 32 pixels"])


def test_a_task_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no task 'detektion'.*detection") as caught:
        registry.get("detektion")
    assert "Known: classification, detection, segmentation" in str(caught.value)


@pytest.mark.parametrize("name", ["classification", "detection", "segmentation"])
def test_the_tasks_are_registered_under_their_names(name: str) -> None:
    assert registry.get(name).name == name


def test_a_classifier_imports_no_library_of_the_other_tasks() -> None:
    code = (
        "import sys, stvit_cli.tasks as t, stvit_cli.recipe.io as io; t.build(io.load('quickstart')); "
        "sys.exit('pycocotools' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("create", "section"), [(create_detector, DetectionSection()), (create_segmenter, SegmentationSection())]
)
def test_defaults_in_python_are_those_of_a_recipe(create: Callable[..., nn.Module], section: Section) -> None:
    parameters = inspect.signature(create).parameters
    common = {name: parameters[name].default for name in type(section).model_fields if name in parameters}
    assert len(common) >= 3
    assert common == {name: getattr(section, name) for name in common}
