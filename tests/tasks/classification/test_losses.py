"""The losses against timm's, torch's and torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torchvision.ops import sigmoid_focal_loss

from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.classification.losses import build_loss, class_weights, dense_targets

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 3, 1, 1])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0])


def mixed(smoothing: float = 0.1) -> torch.Tensor:
    np.random.seed(0)
    return Mixup(label_smoothing=smoothing, num_classes=4)(torch.rand(6, 3, 8, 8), CLASSES)[1]


@pytest.mark.parametrize("settings", [{}, {"sum_classes": True}, {"target_threshold": 0.2}, {"pos_weight": WEIGHTS}])
@pytest.mark.parametrize("target", ["classes", "mixed"])
def test_bce_is_timms(settings: dict[str, Any], target: str) -> None:
    names = {"sum_classes": "bce_sum", "target_threshold": "bce_target_thresh", "pos_weight": "weights"}
    ours = build_loss("bce", 4, smoothing=0.1, **{names[key]: value for key, value in settings.items()})
    given = CLASSES if target == "classes" else mixed()
    torch.testing.assert_close(ours(LOGITS, given), BinaryCrossEntropy(0.1, **settings)(LOGITS, given), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["classes", "mixed"])
def test_focal_is_torchvisions_summed_over_the_classes(target: str) -> None:
    given = CLASSES if target == "classes" else mixed()
    dense = dense_targets(CLASSES, 4, 0.0) if target == "classes" else given
    for alpha, theirs in ((0.25, 0.25), (None, -1)):
        loss = build_loss("focal", 4, focal_alpha=alpha, focal_gamma=1.5)(LOGITS, given)
        torch.testing.assert_close(loss, sigmoid_focal_loss(LOGITS, dense, theirs, 1.5, reduction="sum") / 6)


def test_weighted_cross_entropy_is_torchs_over_probabilities_and_adds_up_over_micro_batches() -> None:
    loss = build_loss("cross-entropy", 4, smoothing=0.1, weights=WEIGHTS)
    dense = dense_targets(CLASSES, 4, 0.1)
    torch.testing.assert_close(loss(LOGITS, CLASSES), F.cross_entropy(LOGITS, dense, weight=WEIGHTS))
    summed = F.cross_entropy(LOGITS, CLASSES, weight=WEIGHTS, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(loss(LOGITS, CLASSES), summed / 6)
    halves = (loss(LOGITS[:3], CLASSES[:3]) + loss(LOGITS[3:], CLASSES[3:])) / 2
    torch.testing.assert_close(loss(LOGITS, CLASSES), halves)
    torch.testing.assert_close(loss(LOGITS, mixed()), F.cross_entropy(LOGITS, mixed(), weight=WEIGHTS))


def test_balanced_weights_average_to_one_over_the_images() -> None:
    counts = np.array([2, 8, 10])
    weights = class_weights("balanced", counts, 20, "cross-entropy")
    assert weights.tolist() == pytest.approx([20 / 6, 20 / 24, 20 / 30])
    assert (weights.numpy() * counts).sum() / 20 == pytest.approx(1)
    assert class_weights("balanced", counts, 20, "bce").tolist() == pytest.approx([9, 1.5, 1])
    assert class_weights((1.0, 2.0, 3.0), counts, 20, "bce").tolist() == [1, 2, 3]


@pytest.mark.parametrize("given", [(1.0, 2.0), "balanced"])
def test_class_weights_that_do_not_fit_the_classes_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"data\.class_weights"):
        class_weights(given, np.array([3, 0, 1]), 4, "cross-entropy")


def recipe(*overrides: str) -> Recipe:
    return recipe_io.from_text("name: test", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["loss.bce_sum=true"], "loss.bce_sum"),
        (["loss.kind=bce", "loss.focal_gamma=1"], "loss.focal_gamma"),
        (["loss.kind=focal", "data.class_weights=balanced"], "data.class_weights"),
        (["augment.color_jitter=[0.1,0.1]"], "augment.color_jitter"),
        (["augment.color_jitter=[0.1,0.1,0.1,0.9]"], "augment.color_jitter"),
        (["augment.color_jitter_prob=0.5"], "augment.color_jitter_prob"),
        (["task=detection", "data.kind=coco", "augment.vflip=0.5"], "augment.vflip"),
        (["task=detection", "data.kind=coco", "data.balance=1"], "data.balance"),
        (["task=detection", "data.kind=coco", "loss.kind=bce"], "loss.kind"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_key(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}: "):
        recipe(*overrides)
