"""Test-time augmentation: logits averaged over views of an image, wherever a classifier is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli import engine
from stvit_cli.data.classification import EvalSet
from stvit_cli.data.imagefolder import find_eval_images
from stvit_cli.data.transforms import eval_transform
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.classification.evaluator import logits_of
from stvit_cli.tasks.classification.task import ClassificationEvaluation
from stvit_cli.utils.views import Views


class LeftPixels(nn.Module):
    """Logits that are the red of the two leftmost columns' means, in another order for the mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :, :2].mean(1)


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Return images moved by whole pixels, one pixel after the other, the outermost row or column twice."""
    for _ in range(abs(down)):
        kept = (images[:, :, :1], images[:, :, :-1]) if down > 0 else (images[:, :, 1:], images[:, :, -1:])
        images = torch.cat(kept, dim=2)
    for _ in range(abs(right)):
        kept = (images[..., :1], images[..., :-1]) if right > 0 else (images[..., 1:], images[..., -1:])
        images = torch.cat(kept, dim=3)
    return images


def test_logits_are_the_mean_of_both_images_and_those_of_the_mirror_image(image_folder: Path) -> None:
    images = torch.randn(3, 3, 8, 8).to(memory_format=torch.channels_last)
    model, both_views = LeftPixels(), Views(hflip=True)
    both = logits_of(model, images, both_views)
    assert torch.equal(both, (model(images) + model(images.flip(-1))) / 2)
    assert torch.equal(both, logits_of(model, images.flip(-1), both_views))
    assert torch.equal(logits_of(model, images), model(images))
    val_set = EvalSet(find_eval_images(image_folder), eval_transform(32, (0.5,) * 3, (0.5,) * 3))
    losses = {
        views: engine.evaluate(ClassificationEvaluation(val_set, views=views), model)["loss"] for views in (Views(), both_views)
    }
    batch = torch.stack([val_set[index]["image"] for index in range(len(val_set))])
    target = torch.tensor([val_set[index]["target"] for index in range(len(val_set))])
    expected = F.cross_entropy((model(batch) + model(batch.flip(-1))) / 2, target)
    assert losses[both_views] == pytest.approx(float(expected), abs=1e-6)
    assert losses[both_views] != losses[Views()]


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("pixels", [1, 3])
def test_logits_are_the_mean_over_the_image_moved_in_eight_directions(pixels: int, hflip: bool) -> None:
    images, model = torch.randn(2, 3, 6, 8), LeftPixels()
    steps = (-pixels, 0, pixels)
    views = [moved(images, down, right) for down in steps for right in steps]
    if hflip:
        views += [view.flip(-1) for view in views]
    assert Views(hflip, pixels).num_views == len(views)
    expected = torch.stack([model(view) for view in views]).mean(0)
    torch.testing.assert_close(logits_of(model, images, Views(hflip, pixels)), expected)
    torch.testing.assert_close(logits_of(model, images.to(memory_format=torch.channels_last), Views(hflip, pixels)), expected)


def test_an_image_is_not_moved_out_of_itself() -> None:
    assert recipe_io.load("quickstart", ["data.image_size=32", "eval.translate=31"]).eval.translate == 31
    with pytest.raises(UserError, match=r"eval\.translate: found 32, expected less than data\.image_size, 32"):
        recipe_io.load("quickstart", ["data.image_size=32", "eval.translate=32"])


def test_what_is_averaged_is_said() -> None:
    names = {
        Views(): "",
        Views(hflip=True): "mirror images",
        Views(translate=2): "images moved by 2 pixels",
        Views(hflip=True, translate=1): "mirror images and images moved by 1 pixel",
    }
    for views, name in names.items():
        assert str(views) == name
        assert Views.of({**views._asdict(), "top1": 94.0}) == views


@pytest.mark.parametrize("setting", ["hflip: true", "translate: 1"])
def test_they_are_of_classifiers(setting: str) -> None:
    key = setting.partition(":")[0]
    with pytest.raises(UserError, match=rf"eval\.{key}: belongs to task classification, but task is detection"):
        recipe_io.from_text(f"task: detection\ndata: {{kind: coco}}\neval: {{{setting}}}")


def test_pixels_are_whole_and_not_negative() -> None:
    for value in ("-1", "0.5"):
        with pytest.raises(UserError, match=r"eval\.translate"):
            recipe_io.from_text(f"eval: {{translate: {value}}}")
