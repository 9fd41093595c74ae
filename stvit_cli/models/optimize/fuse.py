"""Fold normalizations, residuals and layer scale into convolutions: the same function with fewer operations, for inference.

Folded, exact up to rounding: a batch norm into the 1 x 1 convolution after it (ConvFFN) or the convolution before it (patch
merging, projection); x + dw(x) into the center of the depth-wise kernel; layer scale into the convolution before it, past the
upsampling, which is linear. Not folded: the batch norms of the stem, since the convolution after them pads with zeros and their
shift would be missing at the border; and the layer norm before super token attention, whose output the association compares.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stvit_cli.models.layers import ConvPosEnc, LayerScale2d, PatchMerging
from stvit_cli.models.stvit import Block, STViT


class Folded(nn.Identity):
    """Replaces an operation that was folded into the weights next to it. Such a model cannot train."""

    def train(self, mode: bool = True) -> Folded:
        if mode:
            raise RuntimeError("this is a fused copy of a model, for inference only. Train the original.")
        super().train(False)
        return self


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode in which every STViT block, patch merging and projection is folded.

    The copy contains ordinary convolutions: it can be copied, compiled, exported and moved like any model. ``train()`` on it
    raises RuntimeError, and its weights need no gradient.

    Args:
        model: any model with STViT layers, left unchanged; a model without them is only copied.

    Example:
        >>> from stvit_cli import create_model
        >>> model = create_model("stvit-nano", num_classes=2).eval()
        >>> images = torch.rand(1, 3, 64, 64)
        >>> torch.allclose(fuse(model)(images), model(images), atol=1e-4)
        True
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for module in list(fused.modules()):
            if isinstance(module, Block):
                _fold_norm_before(module, "norm2", module.mlp.fc1)
                _fold_scale(module, "ls1", module.attn.proj)
                _fold_scale(module, "ls2", module.mlp.fc2)
            elif isinstance(module, PatchMerging):
                _fold_norm_after(module, "norm", module.conv)
            elif isinstance(module, STViT) and isinstance(module.proj, nn.Conv2d):
                _fold_norm_after(module, "norm", module.proj)
        for parent in list(fused.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ConvPosEnc) and child.residual:
                    _fold_residual(child)
                elif name == "drop_path":
                    setattr(parent, name, nn.Identity())
    return fused


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm, frozen or not."""
    ops = sys.modules.get("torchvision.ops")  # it takes seconds to import; where it is not imported, no model has its layers
    return isinstance(module, _BatchNorm) or (ops is not None and isinstance(module, ops.FrozenBatchNorm2d))


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the scale and shift, in float64, of a batch norm in eval mode: x * scale + shift."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _fold_norm_before(parent: nn.Module, name: str, conv: nn.Conv2d) -> None:
    """Fold by W (s x + t) + b = (W s) x + (W t + b), where W is 1 x 1 and thus without padding."""
    norm = getattr(parent, name)
    if not is_batch_norm(norm):
        return
    scale, shift = scale_and_shift(norm)
    weight = conv.weight.double()
    _set(conv, weight * scale[:, None, None], _bias(conv) + weight.flatten(1) @ shift)
    setattr(parent, name, Folded())


def _fold_norm_after(parent: nn.Module, name: str, conv: nn.Conv2d) -> None:
    norm = getattr(parent, name)
    if not is_batch_norm(norm):
        return
    scale, shift = scale_and_shift(norm)
    _set(conv, conv.weight.double() * scale[:, None, None, None], _bias(conv) * scale + shift)
    setattr(parent, name, Folded())


def _fold_scale(parent: nn.Module, name: str, conv: nn.Conv2d) -> None:
    layer_scale = getattr(parent, name)
    if isinstance(layer_scale, LayerScale2d):
        gamma = layer_scale.gamma.double()
        _set(conv, conv.weight.double() * gamma[:, None, None, None], _bias(conv) * gamma)
        setattr(parent, name, Folded())


def _fold_residual(module: ConvPosEnc) -> None:
    """Fold x + dw(x) into one depth-wise convolution."""
    weight = module.conv.weight.double()
    weight[:, :, 1, 1] += 1
    _set(module.conv, weight, _bias(module.conv))
    module.residual = False


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.double()


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight.copy_(weight)
    assert conv.bias is not None
    conv.bias.copy_(bias)
