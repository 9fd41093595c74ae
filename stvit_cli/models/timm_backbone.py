"""timm's models as backbones of detectors and segmenters: features at four strides, for images of any size.

B batch, C channels, H W rows and columns of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.errors import UserError
from stvit_cli.models.layers import LayerNorm2d
from stvit_cli.models.timm_models import (
    HasNoWeightDecay,
    as_key,
    checked_kwargs,
    create,
    from_key,
    require_buildable,
    require_known,
    set_checkpointing,
)

STRIDES = (4, 8, 16, 32)
"""The strides of the features that detectors and segmenters take."""

_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},  # Swin: windows are shifted in each stage, whatever the image's size
    {"strict_img_size": False},
    {"dynamic_img_size": True},
    {},
)
"""Arguments with which timm's models take images of any size; the first that a model accepts are used."""

_PROBED = ((64, 96), (160, 128))  # H, W


class TimmBackbone(nn.Module):
    """A model of timm without its classifier: images (B, 3, H, W) of any size -> maps at 1/4, 1/8, 1/16 and 1/32 of the size.

    Images are padded on the right and below with zeros to a multiple of 32, and the maps are cropped to ceil(H / stride). Models
    that end with a layer norm, such as Swin and ConvNeXt, get one for each map, as published for them in dense tasks.

    Args:
        name: such as ``timm/swin_tiny_patch4_window7_224``.
        drop_path_rate: the largest rate of stochastic depth.
        checkpointing: recompute activations in the backward pass.
        kwargs: arguments of the model of timm, such as ``{"embed_dim": 24}``.

    Raises:
        UserError: no such model, it cannot be built with ``kwargs``, or it has no features at these strides or for images of any
            size.
    """

    timm_prefix = "model.model."
    """Before timm's names of its tensors."""

    def __init__(
        self,
        name: str,
        *,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        own = require_known(name)
        options, has_norm = _feature_options(own, as_key(checked_kwargs(own, kwargs or {})))
        self.timm_name = name
        self.model = create(name, options, drop_path_rate)
        self.feature_info = [{"num_chs": n, "reduction": s} for n, s in zip(_channels(self.model), STRIDES, strict=True)]
        self.norms = nn.ModuleList(LayerNorm2d(info["num_chs"]) if has_norm else nn.Identity() for info in self.feature_info)
        set_checkpointing(self.model.get_submodule("model"), name, checkpointing)

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        maps = self.model(F.pad(x, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1])))
        return [
            norm(part[..., : -(-height // stride), : -(-width // stride)])
            for norm, part, stride in zip(self.norms, maps, STRIDES, strict=True)
        ]

    def forward_intermediates(self, x: Tensor, *, intermediates_only: bool = True) -> list[Tensor]:
        """Return the maps, as `STViT.forward_intermediates` does."""
        maps: list[Tensor] = self(x)
        return maps

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay, such as Swin's position tables."""
        inner = self.get_submodule("model.model")
        return {self.timm_prefix + name for name in inner.no_weight_decay()} if isinstance(inner, HasNoWeightDecay) else set()

    def compile_blocks(self) -> None:
        """Compile the model as one."""
        self.model.compile()


@cache
def _feature_options(own: str, kwargs: str = "") -> tuple[dict[str, Any], bool]:
    """Return the arguments for features at `STRIDES` of images of any size, and whether the model ends with a layer norm.

    Args:
        own: timm's name of the model.
        kwargs: its arguments, as text; they are among those returned.
    """
    import timm

    arguments = from_key(kwargs)
    require_buildable(own, arguments, arguments)
    with torch.device("meta"):
        model = timm.create_model(own, **arguments)
        has_norm = any(isinstance(_submodule(model, path), nn.LayerNorm) for path in ("norm", "head.norm"))
        options: dict[str, Any] = {**arguments, "features_only": True, "feature_cls": "getter"}
        for any_size in ({**each, **arguments} for each in _ANY_SIZE):
            try:
                strides = timm.create_model(own, **(options | any_size)).feature_info.reduction()  # type: ignore[union-attr,operator]
            except TypeError:
                continue
            except (RuntimeError, AttributeError, AssertionError):
                raise UserError(f"model.name: timm's {own} has no features for detection and segmentation.{_SUCH_AS}") from None
            options |= any_size
            break
        if not set(STRIDES) <= set(strides):
            found = ", ".join(map(str, sorted(set(strides))))
            raise UserError(f"model.name: timm's {own} has features at strides {found}; expected 4, 8, 16 and 32.{_SUCH_AS}")
        last = {stride: index for index, stride in enumerate(strides)}
        options["out_indices"] = tuple(last[stride] for stride in STRIDES)
        if not all(_gives_features(timm.create_model(own, **options), size) for size in _PROBED):
            raise UserError(f"model.name: timm's {own} takes images of one size only; expected a model for any size.{_SUCH_AS}")
    return options, has_norm


_SUCH_AS = "\nSuch as timm/swin_tiny_patch4_window7_224, timm/convnext_tiny or timm/resnet50."


def _gives_features(model: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether a model on the meta device gives maps of the expected sizes for an image."""
    try:
        with torch.no_grad():
            maps = model.eval()(torch.empty(1, 3, *size, device="meta"))
    except NotImplementedError:
        return True  # an operator without shapes: the model itself will tell
    except (AssertionError, RuntimeError, ValueError, IndexError):
        return False
    return [tuple(part.shape[-2:]) for part in maps] == [(size[0] // stride, size[1] // stride) for stride in STRIDES]


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _channels(model: nn.Module) -> list[int]:
    channels: list[int] = model.feature_info.channels()  # type: ignore[union-attr,operator]
    return channels
