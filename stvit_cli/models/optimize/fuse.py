"""The same function with fewer operations, for inference only.

Folded, each exactly up to rounding: a batch norm into the 1 x 1 convolution after it (the ConvFFN's) or the convolution before it
(patch merging, projection); x + dw(x) into the middle of the depth-wise kernel; layer scale into the convolution before it, past
the upsampling, which is linear. Not folded: the stem's batch norms, between which the next convolution pads with zeros, so that
their shift would be missing at the border; and the layer norm before super token attention, which compares its tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import LayerScale2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from stvit_cli.models.layers import ConvPosEnc, PatchMerging
from stvit_cli.models.stvit import Block, STViT


class Folded(nn.Identity):
    """Stands where an operation was that is now in its neighbour's weights. Such a model cannot train."""

    def train(self, mode: bool = True) -> Folded:
        if mode:
            raise RuntimeError("this is a fused copy of a model, for inference only: its norms are folded. Train the original.")
        super().train(False)
        return self


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode in which every STViT block, patch merging and projection found anywhere is folded.

    The original is left as it is. The copy holds plain convolutions: it can be copied, compiled, exported and moved as any
    model; ``train()`` on it raises RuntimeError, and its weights need no gradient. A model without such parts is only copied.
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


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """The batch norm of eval mode as x * scale + shift, in float64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _fold_norm_before(parent: nn.Module, name: str, conv: nn.Conv2d) -> None:
    """W (s x + t) + b = (W s) x + (W t + b); the kernel is 1 x 1, so that no padding comes between."""
    norm = getattr(parent, name)
    if not isinstance(norm, (_BatchNorm, FrozenBatchNorm2d)):
        return
    scale, shift = _scale_and_shift(norm)
    weight = conv.weight.double()
    _set(conv, weight * scale[:, None, None], _bias(conv) + weight.flatten(1) @ shift)
    setattr(parent, name, Folded())


def _fold_norm_after(parent: nn.Module, name: str, conv: nn.Conv2d) -> None:
    norm = getattr(parent, name)
    if not isinstance(norm, (_BatchNorm, FrozenBatchNorm2d)):
        return
    scale, shift = _scale_and_shift(norm)
    _set(conv, conv.weight.double() * scale[:, None, None, None], _bias(conv) * scale + shift)
    setattr(parent, name, Folded())


def _fold_scale(parent: nn.Module, name: str, conv: nn.Conv2d) -> None:
    layer_scale = getattr(parent, name)
    if isinstance(layer_scale, LayerScale2d):
        gamma = layer_scale.gamma.double()
        _set(conv, conv.weight.double() * gamma[:, None, None, None], _bias(conv) * gamma)
        setattr(parent, name, Folded())


def _fold_residual(module: ConvPosEnc) -> None:
    """x + dw(x) as one depth-wise convolution."""
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
