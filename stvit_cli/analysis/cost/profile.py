"""Parameters and multiply-adds of models, with the paper's numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn

from stvit_cli.analysis.cost.flops import count_flops
from stvit_cli.errors import UserError
from stvit_cli.models import create_model, list_models
from stvit_cli.utils.text import did_you_mean

MIN_IMAGE_SIZE = 32


class Paper(NamedTuple):
    """The paper's numbers for a model at one image size: parameters, multiply-adds, top-1 in percent."""

    params: float
    flops: float
    top1: float


# Table I of the supplement; sizes at 384 and accuracies from the main paper's comparison with other backbones.
PAPER = {
    ("stvit-s", 224): Paper(25e6, 4.4e9, 83.6),
    ("stvit-b", 224): Paper(52e6, 9.9e9, 84.8),
    ("stvit-l", 224): Paper(95e6, 15.6e9, 85.3),
    ("stvit-s", 384): Paper(25e6, 14.1e9, 85.0),
    ("stvit-b", 384): Paper(52e6, 32.5e9, 86.0),
    ("stvit-l", 384): Paper(95e6, 49.7e9, 86.4),
}


def build(name: str) -> nn.Module:
    """Build an untrained model of this package, torchvision or timm by name.

    Raises:
        UserError: unknown name.
    """
    if name in list_models() or name.startswith("timm/"):
        return create_model(name)
    torchvision_models = torchvision.models.list_models(module=torchvision.models)
    if name in torchvision_models:
        net: nn.Module = torchvision.models.get_model(name, weights=None)
        return net
    if name in timm.list_models():
        return timm.create_model(name)
    guess = did_you_mean(name, list_models()) or did_you_mean(name, [*torchvision_models, *timm.list_models()])
    raise UserError(
        f"no model '{name}' here, in torchvision or in timm.{guess} Built-in: {', '.join(list_models()[:4])}, isotropic-*."
    )


def profile_models(names: list[str], image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Count parameters and multiply-adds of models with 1000 classes.

    Args:
        names: models of this package, torchvision or timm.
        image_size: height and width in pixels.

    Returns:
        For each model: model, image_size, params (trainable), flops (multiply-adds), flops_by_operator, flops_by_module,
        params_by_module, uncounted (operators missing from flops), and paper: the paper's numbers at this size, or None.

    Raises:
        UserError: unknown model, or a side below 32 pixels.
    """
    require_image_size(image_size)
    with torch.device("meta"):  # all names are checked before the first count
        for name in names:
            build(name)
    return [_profile(name, image_size) for name in names]


def require_image_size(image_size: tuple[int, int]) -> None:
    """Raise UserError for an image size (height, width) below the models' minimum."""
    if min(image_size) < MIN_IMAGE_SIZE:
        raise UserError(f"image size {image_size[0]}x{image_size[1]}: each side must be at least {MIN_IMAGE_SIZE} pixels.")


def _profile(name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    paper = PAPER.get((name, image_size[0])) if image_size[0] == image_size[1] else None
    return describe_cost(name, build(name), image_size, paper)


def describe_cost(name: str, model: nn.Module, image_size: tuple[int, int], paper: Paper | None) -> dict[str, Any]:
    """Return the entry of `profile_models` for one model.

    Args:
        name: for the report.
        model: its multiply-adds are counted in eval mode.
        image_size: height and width in pixels.
        paper: the paper's numbers, if any.
    """
    flops = count_flops(model, image_size)
    return {
        "model": name,
        "image_size": list(image_size),
        "params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": flops.total,
        "flops_by_operator": flops.by_operator,
        "flops_by_module": flops.by_module,
        "params_by_module": {path: sum(p.numel() for p in module.parameters()) for path, module in model.named_modules()},
        "uncounted": flops.uncounted,
        "paper": paper._asdict() if paper else None,
    }
