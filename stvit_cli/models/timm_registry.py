"""STViT in timm's registry: ``timm.create_model("stvit_small")`` after ``import stvit_cli``.

The names follow timm (`stvit_small`, `stvit_base`, `stvit_large`, `stvit_nano`); the arguments are those of `STViT`, and all that
timm itself takes: ``features_only``, ``out_indices``, ``pretrained_cfg``, ``checkpoint_path``. The classifiers that come with the
package are there as weights: ``timm.create_model("stvit_nano.digits", pretrained=True)``. None is downloaded.

`stvit_cli` imports this module together with timm, whichever of the two is imported first. At module level it imports nothing of
the package but its ground floor, so that it can be imported while any other module of the package is.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn

from stvit_cli.errors import UserError
from stvit_cli.utils import model_catalog
from stvit_cli.utils.crop import default_crop_pct
from stvit_cli.utils.packaged_weights import default_tag, read_description, weights_files

__all__ = ["stvit_base", "stvit_large", "stvit_nano", "stvit_small"]


def _cfg(size: int = 224, crop_pct: float = 224 / 256) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, size, size),
        "min_input_size": (3, 32, 32),
        "pool_size": (size // 32, size // 32),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.0.conv",
        "classifier": "head",
        "paper_name": "Vision Transformer with Super Token Sampling",
        "paper_ids": "arXiv:2211.11167",
        "origin_url": model_catalog.AUTHORS_PAGE,
    }


def _packaged() -> dict[str, dict[str, Any]]:
    """Return the descriptions of the packaged classifiers by their names in timm, such as ``stvit_nano.fashion_mnist``."""
    names = {model.name: model.timm for model in model_catalog.MODELS}
    described = {name: {**read_description(path), "file": str(path)} for name, path in weights_files().items()}
    return {
        f"{names[info['model']]}.{_tag(name.partition('.')[2])}": info
        for name, info in described.items()
        if info["task"] == "classification"
    }


def _tag(name: str) -> str:
    return name.replace("-", "_")


def _packaged_cfg(info: dict[str, Any]) -> dict[str, Any]:
    size = info["image_size"]
    return _cfg(size, info["crop_pct"] or default_crop_pct(size)) | {
        "file": info["file"],
        "input_size": (info["in_chans"], size, size),
        "interpolation": info["interpolation"],
        "mean": tuple(info["mean"]),
        "std": tuple(info["std"]),
        "num_classes": info["num_classes"],
        "label_names": tuple(info["class_names"]),
        "license": info["licence"],
    }


PACKAGED = _packaged()

default_cfgs = generate_default_cfgs(
    {
        "stvit_small.in1k": _cfg(),
        "stvit_small.in1k_384": _cfg(384, 1.0),
        "stvit_base.in1k": _cfg(),
        "stvit_base.in1k_384": _cfg(384, 1.0),
        "stvit_large.in1k": _cfg(),
        "stvit_large.in1k_384": _cfg(384, 1.0),
        **{name: _packaged_cfg(info) for name, info in PACKAGED.items()},
        "stvit_nano.untrained*": _cfg(64, 1.0),  # what the name alone means: the star, after those with weights
    }
)


def _register_leaf_modules() -> None:
    """Make leaves of the modules whose code depends on sizes, which torch.fx cannot trace symbolically."""
    from stvit_cli.models.layers import BatchNorm2d
    from stvit_cli.models.super_token import SuperTokenAttention

    for module in (SuperTokenAttention, BatchNorm2d):
        register_notrace_module(module)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the keys of a published checkpoint; timm calls it on every checkpoint that it reads."""
    from stvit_cli.models.weights.authors_checkpoint import rename_keys

    return rename_keys(state_dict)[0]


def _create(name: str, variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    from stvit_cli.models.registry import OF_STVIT
    from stvit_cli.models.stvit import VARIANTS, STViT

    cfg = kwargs.get("pretrained_cfg")
    has_source = kwargs.get("pretrained_cfg_overlay") or not isinstance(cfg, str | None)
    if pretrained and not has_source and not cfg and default_tag(name):
        cfg = kwargs["pretrained_cfg"] = _tag(default_tag(name))
    packaged = PACKAGED.get(f"{variant}.{cfg}", {}) if isinstance(cfg, str) else {}
    for option in OF_STVIT:
        if packaged.get(option) is not None:
            kwargs.setdefault(option, packaged[option])
    if pretrained and not has_source and not packaged:
        known = [own.partition(".")[2] for own in PACKAGED if own.startswith(f"{variant}.")]
        if known:
            raise UserError(f"{variant}: there are no weights {cfg!r}. Known: {', '.join(known)}.")
        raise UserError(
            f"{variant}: there are no pretrained weights to download. The authors publish theirs at https://github.com/hhb072/STViT\n"
            f"Download a file and load it: stvit_cli.load_weights(model, FILE), or "
            f'timm.create_model("{variant}", checkpoint_path=FILE).'
        )
    return build_model_with_cfg(
        partial(STViT, VARIANTS[name]),
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )


@register_model
def stvit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """STViT-S of Table I."""
    return _create("stvit-s", "stvit_small", pretrained, **kwargs)


@register_model
def stvit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """STViT-B of Table I."""
    return _create("stvit-b", "stvit_base", pretrained, **kwargs)


@register_model
def stvit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """STViT-L of Table I."""
    return _create("stvit-l", "stvit_large", pretrained, **kwargs)


@register_model
def stvit_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small STViT for tests and small data; not in the paper."""
    return _create("stvit-nano", "stvit_nano", pretrained, **kwargs)


_register_leaf_modules()
