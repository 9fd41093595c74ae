"""Create the built-in models by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from stvit_cli.errors import UserError
from stvit_cli.models import timm_models
from stvit_cli.models.isotropic_rows import VARIANTS as ISOTROPIC
from stvit_cli.models.options import LACKS, OPTIONS, ModelOptions, given
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
    num_iters: int | None = None,
    pos_enc: bool | None = None,
    ffn_conv: bool | None = None,
    association_grad: bool | None = None,
    layer_scale: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
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
        num_iters: number of iterations of super token sampling, the paper's 1 if None. 0: average pooling alone: a token belongs
            to its own cell, whose super token it gets back.
        pos_enc: False: blocks without their convolutional position encoding.
        ffn_conv: False: ConvFFN without its depth-wise convolution.
        association_grad: True: the gradient flows through the association too. Training is then without the custom kernels.
        layer_scale: initial value of layer scale in stages 3 and 4 instead of the model's own; 0 for no layer scale.
        kwargs: arguments of a model of timm, as timm's ``--model-kwargs``, such as ``{"embed_dim": 48, "depths": (2, 2, 2, 2)}``.

    Returns:
        A module from images (B, in_chans, H, W), of any size from 32 x 32, to logits (B, num_classes).

    Raises:
        UserError: no such model, an option for a model without that part, such as ``grid_sizes`` for one without super tokens,
            or a model of timm that does not take images of ``image_size``, or cannot be built with ``kwargs``.

    Example:
        >>> model = create_model("stvit-nano", num_classes=10).eval()
        >>> sum(parameter.numel() for parameter in model.parameters())
        913402
    """
    name = timm_models.built_in_name(name)
    options = given(
        ModelOptions(
            grid_sizes=grid_sizes,
            num_iters=num_iters,
            pos_enc=pos_enc,
            ffn_conv=ffn_conv,
            association_grad=association_grad,
            layer_scale=layer_scale,
            kwargs=kwargs,
        )
    )
    if timm_models.is_timm_name(name):
        refuse_options(name, options, {"kwargs"})
        return timm_models.create_classifier(
            name, num_classes, in_chans, drop_path_rate, image_size=image_size, checkpointing=checkpointing, kwargs=kwargs
        )
    if name in VARIANTS:
        refuse_options(name, options, OF_STVIT)
        return STViT(VARIANTS[name], num_classes, in_chans, drop_path_rate, checkpointing=checkpointing, **options)
    if name not in ISOTROPIC:
        known = ", ".join(VARIANTS)
        raise UserError(
            f"no model '{name}'.{did_you_mean(name, list_models())} Known: {known}, Table II's rows isotropic-*, and timm/NAME."
        )
    refuse_options(name, options, OF_SUPER_TOKENS if ISOTROPIC[name].attention == "stvit" else ())
    from stvit_cli.models.isotropic import Isotropic

    return Isotropic(ISOTROPIC[name], num_classes, in_chans, drop_path_rate, checkpointing=checkpointing, **options)


OF_STVIT = frozenset(OPTIONS) - {"kwargs"}
"""The options of `STViT`."""
OF_SUPER_TOKENS = frozenset(key for key, part in LACKS.items() if part == "super tokens")
"""The options of Table II's rows with super tokens."""


def refuse_options(name: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UserError where a model is given an option that it does not have."""
    for key, value in options.items():
        if key in known:
            continue
        if key == "kwargs":
            raise UserError(f"model.kwargs: found {dict(value)} for {name}; they are for models of timm (timm/NAME).")
        found = list(value) if isinstance(value, tuple) else value
        raise UserError(f"model.{key}: found {found} for {name}, which has no {LACKS[key]}. Leave it out.")
