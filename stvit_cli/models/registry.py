"""Create the built-in models by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from stvit_cli.errors import UserError
from stvit_cli.models import timm_models
from stvit_cli.models.isotropic_rows import VARIANTS as ISOTROPIC
from stvit_cli.models.options import LACKS, OPTIONS, ModelOptions, given, options_of
from stvit_cli.models.stvit import VARIANTS, GridSizes, STViT
from stvit_cli.utils.packaged_weights import pretrained_name, weights_files
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
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
    *,
    pretrained: str | bool = False,
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
    """Create a model by name, randomly initialized or with weights that come with the package.

    Args:
        name: one of `list_models`, or ``timm/NAME`` for a model of timm, such as ``timm/resnet50``.
        num_classes: number of classes; 0 for no classifier; None: those of the weights, 1000 without. With another number
            than the weights', the classifier is new.
        in_chans: number of channels of an image; None: those of the weights, 3 without. To another number the stem is adapted.
        drop_path_rate: stochastic depth rate of the last block; it increases linearly from 0 at the first.
        pretrained: weights of this model in `list_weights`, by what follows its name, such as ``fashion-mnist``; True: the
            default ones, ``fashion-mnist`` for stvit-nano. False: random ones.
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
        UserError: no such model or weights, an option for a model without that part, such as ``grid_sizes`` for one without super
            tokens, or a model of timm that does not take images of ``image_size``, or cannot be built with ``kwargs``.

    Example:
        >>> model = create_model("stvit-nano", num_classes=10).eval()
        >>> sum(parameter.numel() for parameter in model.parameters())
        913402
        >>> create_model("stvit-nano", pretrained="digits").num_classes
        10
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
    if pretrained:
        return _create_pretrained(name, pretrained, num_classes, in_chans, drop_path_rate, checkpointing, options)
    num_classes = 1000 if num_classes is None else num_classes
    in_chans = 3 if in_chans is None else in_chans
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


def own_options(name: str) -> dict[str, Any]:
    """Return what a built-in model is built with where an option is None; empty for other models.

    Example:
        >>> own_options("stvit-nano")["num_iters"], own_options("stvit-b")["layer_scale"], own_options("timm/resnet50")
        (1, 1e-06, {})
    """
    own: dict[str, Any] = {"num_iters": 1, "pos_enc": True, "ffn_conv": True, "association_grad": False}
    if name in VARIANTS:
        return own | {"grid_sizes": VARIANTS[name].grid_sizes, "layer_scale": VARIANTS[name].layer_scale or 0.0}
    if name in ISOTROPIC and ISOTROPIC[name].attention == "stvit":
        return {key: own[key] for key in ("num_iters", "association_grad")} | {"grid_sizes": ISOTROPIC[name].grid_sizes}
    return {}


def refuse_options(name: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UserError where a model is given an option that it does not have."""
    for key, value in options.items():
        if key in known:
            continue
        if key == "kwargs":
            raise UserError(f"model.kwargs: found {dict(value)} for {name}; they are for models of timm (timm/NAME).")
        found = list(value) if isinstance(value, tuple) else value
        raise UserError(f"model.{key}: found {found} for {name}, which has no {LACKS[key]}. Leave it out.")


def _create_pretrained(
    name: str,
    pretrained: str | bool,
    num_classes: int | None,
    in_chans: int | None,
    drop_path_rate: float,
    checkpointing: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    """Create a model with packaged weights; see `create_model`. Options that are not given are those of the weights."""
    from stvit_cli.models.weights.file import load_weights, read_info

    if timm_models.is_timm_name(name):
        own = name.removeprefix(timm_models.PREFIX)
        raise UserError(
            f"pretrained: no weights of {name} come with the package; timm downloads its own: "
            f'timm.create_model("{own}", pretrained=True), or model.pretrained=true in a recipe.'
        )
    path = weights_files()[pretrained_name(name, pretrained)]
    info = read_info(path)
    if info.task != "classification":
        raise UserError(f"pretrained: {path.stem} is for {info.task}; load it by stvit_cli.load({path.stem!r}).model.")
    model = create_model(
        name,
        info.num_classes if num_classes is None else num_classes,
        info.in_chans if in_chans is None else in_chans,
        drop_path_rate,
        checkpointing=checkpointing,
        **{**given(options_of(info)), **options},
    )
    load_weights(model, path, new_head=True)
    return model
