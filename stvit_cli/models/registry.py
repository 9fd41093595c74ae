"""Create the built-in models by name."""

from __future__ import annotations

from torch import nn

from stvit_cli.errors import UserError
from stvit_cli.models import timm_models
from stvit_cli.models.isotropic_rows import VARIANTS as ISOTROPIC
from stvit_cli.models.stvit import VARIANTS, GridSizes, STViT
from stvit_cli.utils.text import did_you_mean


def list_models() -> list[str]:
    """Return the names of the built-in models.

    Example:
        >>> list_models()[:4]
        ['stvit-s', 'stvit-b', 'stvit-l', 'stvit-nano']
    """
    return [*VARIANTS, *ISOTROPIC]


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    *,
    grid_sizes: GridSizes | None = None,
    checkpointing: bool = False,
    image_size: int | None = None,
) -> nn.Module:
    """Create a randomly initialized model by name.

    Args:
        name: one of `list_models`, or ``timm/NAME`` for a model of timm, such as ``timm/resnet50``.
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of channels of an image.
        drop_path_rate: stochastic depth rate of the last block; it increases linearly from 0 at the first.
        grid_sizes: grid size of each stage instead of the model's own; the weights do not depend on it.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        image_size: side of the images in pixels, for models of timm that are built for one size; None: their own.

    Returns:
        A module from images (B, in_chans, H, W), of any size from 32 x 32, to logits (B, num_classes).

    Raises:
        UserError: no such model, ``grid_sizes`` for a model without super tokens, or a model of timm that does not take images
            of ``image_size``.

    Example:
        >>> model = create_model("stvit-nano", num_classes=10).eval()
        >>> sum(parameter.numel() for parameter in model.parameters())
        913402
    """
    name = timm_models.built_in_name(name)
    if timm_models.is_timm_name(name):
        if grid_sizes is not None:
            raise UserError(f"grid_sizes: found {list(grid_sizes)} for {name}, which has no super tokens. Leave it out.")
        return timm_models.create_classifier(
            name, num_classes, in_chans, drop_path_rate, image_size=image_size, checkpointing=checkpointing
        )
    if name in VARIANTS:
        return STViT(VARIANTS[name], num_classes, in_chans, drop_path_rate, grid_sizes=grid_sizes, checkpointing=checkpointing)
    if name not in ISOTROPIC:
        known = ", ".join(VARIANTS)
        raise UserError(
            f"no model '{name}'.{did_you_mean(name, list_models())} Known: {known}, Table II's rows isotropic-*, and timm/NAME."
        )
    if grid_sizes is not None and ISOTROPIC[name].attention == "swin":
        raise UserError(f"grid_sizes: found {list(grid_sizes)} for {name}, which has windows and no super tokens. Leave it out.")
    from stvit_cli.models.isotropic import Isotropic

    return Isotropic(ISOTROPIC[name], num_classes, in_chans, drop_path_rate, grid_sizes, checkpointing)
