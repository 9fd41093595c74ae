"""The test-time flip: logits of an image and its mirror image averaged, wherever a classifier is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stvit_cli import engine
from stvit_cli.data.classification import EvalSet
from stvit_cli.data.imagefolder import find_eval_images
from stvit_cli.data.transforms import eval_transform
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.classification.evaluator import logits_of
from stvit_cli.tasks.classification.task import ClassificationEvaluation


class LeftPixels(nn.Module):
    """Logits that are the red of the two leftmost columns' means, in another order for the mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :, :2].mean(1)


def test_logits_are_the_mean_of_both_images_and_those_of_the_mirror_image(image_folder: Path) -> None:
    images = torch.randn(3, 3, 8, 8).to(memory_format=torch.channels_last)
    model = LeftPixels()
    both = logits_of(model, images, hflip=True)
    assert torch.equal(both, (model(images) + model(images.flip(-1))) / 2)
    assert torch.equal(both, logits_of(model, images.flip(-1), hflip=True))
    assert torch.equal(logits_of(model, images), model(images))
    val_set = EvalSet(find_eval_images(image_folder), eval_transform(32, (0.5,) * 3, (0.5,) * 3))
    losses = {}
    for hflip in (False, True):
        losses[hflip] = engine.evaluate(ClassificationEvaluation(val_set, hflip=hflip), model)["loss"]
    batch = torch.stack([val_set[index]["image"] for index in range(len(val_set))])
    target = torch.tensor([val_set[index]["target"] for index in range(len(val_set))])
    expected = nn.functional.cross_entropy((model(batch) + model(batch.flip(-1))) / 2, target)
    assert losses[True] == pytest.approx(float(expected), abs=1e-6)
    assert losses[True] != losses[False]


def test_it_is_of_classifiers() -> None:
    with pytest.raises(UserError, match=r"eval\.hflip: belongs to task classification, but task is detection"):
        recipe_io.from_text("task: detection\ndata: {kind: coco}\neval: {hflip: true}")
