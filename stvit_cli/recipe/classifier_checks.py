"""Checks across the keys that only a classifier has: its augmentation, loss, class weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stvit_cli.recipe import Recipe

CLASSIFIER_KEYS = {
    "augment": ("vflip", "color_jitter", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob"),
    "data": ("class_weights", "balance"),
}
"""Keys in sections that other tasks have too."""

_LOSS_KEYS = {"bce_sum": "bce", "bce_target_thresh": "bce", "focal_gamma": "focal", "focal_alpha": "focal"}


def classifier_contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield contradictions, one line each, starting with the key to change."""
    if recipe.task != "classification":
        yield from _of_another_task(recipe)
        return
    jitter = recipe.augment.color_jitter
    if isinstance(jitter, tuple) and len(jitter) not in (3, 4):
        yield f"augment.color_jitter: found {list(jitter)}, expected a number, or 3 or 4: brightness, contrast, saturation, hue"
    if isinstance(jitter, tuple) and len(jitter) == 4 and jitter[3] > 0.5:
        yield f"augment.color_jitter: found a hue of {jitter[3]:g}, expected at most 0.5"
    if recipe.augment.color_jitter_prob is not None and not jitter:
        yield f"augment.color_jitter_prob: found {recipe.augment.color_jitter_prob:g}, but augment.color_jitter is 0"
    kind = recipe.loss.kind or "cross-entropy"
    for key, needed in _LOSS_KEYS.items():
        value = getattr(recipe.loss, key)
        if kind != needed and value != type(recipe.loss).model_fields[key].default:
            yield f"loss.{key}: found {value}, but loss.kind is {kind}; set loss.kind={needed}"
    if kind == "focal" and recipe.data.class_weights is not None:
        yield "data.class_weights: found weights beside loss.kind focal, expected null; loss.focal_alpha weighs what is present"
    if recipe.distill.teacher is None:
        for key, field in type(recipe.distill).model_fields.items():
            if getattr(recipe.distill, key) != field.default:
                yield f"distill.{key}: found {getattr(recipe.distill, key)}, but there is no teacher; set distill.teacher"


def _of_another_task(recipe: Recipe) -> Iterator[str]:
    for section, keys in CLASSIFIER_KEYS.items():
        mine = getattr(recipe, section)
        for key in keys:
            if getattr(mine, key) != type(mine).model_fields[key].default:
                yield f"{section}.{key}: belongs to task classification, but task is {recipe.task}"
