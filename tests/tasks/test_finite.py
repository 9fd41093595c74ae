"""A model whose outputs are infinite or not a number is never ranked, thresholded or evaluated like a sound one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stvit_cli import engine, tasks
from stvit_cli.engine.evaluation import NonFiniteEvaluationError
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.classification.task import ClassificationEvaluator
from stvit_cli.tasks.detection.detector import create_detector
from stvit_cli.tasks.finite import require_finite
from stvit_cli.tasks.segmentation.label_maps import Inferer

SMALL: dict[str, Any] = {
    "short_sides": (64,),
    "long_side": 96,
    "channels": 16,
    "fc_dim": 16,
    "anchor_scale": 4.0,
    "num_samples": 16,
    "score_threshold": 0.0,
}


class Given(nn.Module):
    """Takes its inputs for its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_not_finite_is_no_right_answer(value: float) -> None:
    logits = torch.tensor([[1.0, 0, 0], [value, 0, 0], [0, 0, value]])
    evaluator = ClassificationEvaluator()
    with pytest.raises(NonFiniteOutputsError, match="for 2 of 3 images") as caught:
        evaluator.update(Given(), {"image": logits, "target": torch.zeros(3, dtype=torch.long)})
    assert caught.value.finite == [True, False, False]
    assert evaluator.state() is None


def test_values_whose_sum_overflows_are_finite() -> None:
    require_finite(torch.full((2, 4), 3e38), torch.full((2, 4), -3e38))
    require_finite(torch.full((2, 4), 6e4, dtype=torch.float16))
    require_finite(torch.full((2, 4), 1e300, dtype=torch.float64))
    require_finite(torch.zeros(0, 4), counts=[0, 0])
    with pytest.raises(NonFiniteOutputsError) as caught:
        require_finite(torch.tensor([1.0, 2, float("nan")])[:, None], counts=[0, 2, 1, 0])
    assert caught.value.finite == [True, True, False, True]


@pytest.mark.parametrize("head", ["mask-rcnn", "cascade-mask-rcnn"])
@pytest.mark.parametrize(
    ("layer", "value"),
    [
        ("backbone.body.stem.0.conv.bias", float("nan")),
        ("rpn.head.cls_logits.bias", float("nan")),
        ("rpn.head.bbox_pred.bias", float("inf")),  # a size is clamped, so that the boxes are finite
        ("cls_score.bias", float("nan")),
        ("bbox_pred.bias", float("inf")),
        ("mask_fcn_logits.bias", float("nan")),
    ],
)
def test_a_detector_never_drops_what_is_not_a_number(head: str, layer: str, value: float) -> None:
    """Non-maximum suppression and the least score would: no object in the images, it would seem."""
    detector = create_detector("stvit-nano", 2, **(SMALL | {"head": head})).eval()
    parameters = [p for name, p in detector.named_parameters() if (name.endswith(layer) and "rpn" not in name) or name == layer]
    assert len(parameters) == (3 if "cascade" in head and "." not in layer.removesuffix(".bias") else 1)
    with torch.no_grad():
        parameters[-1][-1] = value
        with pytest.raises(NonFiniteOutputsError) as caught:
            detector([torch.rand(3, 64, 64), torch.rand(3, 40, 90)])
    assert caught.value.finite == [False, False]


def test_one_image_of_a_detector_s_batch_is_told_from_the_others() -> None:
    detector = create_detector("stvit-nano", 2, **SMALL).eval()
    with torch.no_grad(), pytest.raises(NonFiniteOutputsError) as caught:
        detector([torch.rand(3, 64, 64), torch.full((3, 64, 64), float("inf"))])
    assert caught.value.finite == [True, False]


def test_a_cascade_that_trains_astray_gives_a_loss_that_is_not_finite() -> None:
    """Boxes of NaN would have RoIAlign ask for memory without end."""
    detector = create_detector("stvit-nano", 2, **(SMALL | {"head": "cascade-mask-rcnn"}))
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 64).byte()}
    with torch.no_grad():
        detector.roi_heads.stages[0].box_predictor.bbox_pred.bias.fill_(float("nan"))
    losses = detector([torch.rand(3, 64, 64)], [target])
    assert losses["box_1"].isnan()
    assert losses["class_2"].isfinite()


@pytest.mark.parametrize("infer", [Inferer(), Inferer(window=32, flip=True)])
def test_one_pixel_that_is_not_finite_is_no_label_map(infer: Inferer) -> None:
    image = torch.rand(1, 3, 40, 40)
    assert infer(Given(), [image], (40, 40)).shape == (40, 40)
    image[0, 1, 20, 20] = float("-inf")  # in no pixel the largest
    with pytest.raises(NonFiniteOutputsError):
        infer(Given(), [image], (40, 40))


WORDS = {
    "shapes-mask-rcnn": ["detection.short_sides=[64]", "detection.long_side=96", "detection.channels=16", "detection.fc_dim=16"],
    "shapes-upernet": ["segmentation.max_size=[64, 64]", "segmentation.channels=16", "segmentation.aux_channels=8"],
}


@pytest.mark.parametrize("recipe", WORDS)
def test_an_evaluation_of_the_dense_tasks_names_the_images(
    recipe: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    small = ["data.image_size=64", "data.num_workers=0", "shapes.num_train=8", "shapes.num_val=3", "train.device=cpu"]
    task = tasks.build(recipe_io.load(recipe, [*WORDS[recipe], *small, "model.name=stvit-nano", "model.drop_path_rate=0.0"]))
    with torch.no_grad():
        next(task.model.parameters())[0] = 1e38  # finite
    with pytest.raises(NonFiniteEvaluationError) as caught:
        engine.evaluate(task, task.model, batch_size=2)
    first, second, *_ = str(caught.value).splitlines()
    assert "for 3 images of the validation set" in first
    names = second.removeprefix("Images: ").removesuffix(".").split(", ")
    assert len(names) == 3
    assert all(Path(name).is_file() for name in names)
    assert isinstance(caught.value, UserError)
    assert not re.search("ap|miou", first)
