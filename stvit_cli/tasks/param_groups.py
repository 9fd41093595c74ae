"""The optimiser's groups of the dense tasks."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def without_decay_on_norms(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of what is trained: as in the published settings biases decay, and norms, found by their type, do not."""
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, (_BatchNorm, nn.LayerNorm)))
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0.0 if name.startswith(norms) else weight_decay].append(parameter)
    return [{"params": params, "weight_decay": decay, "lr_scale": 1.0} for decay, params in groups.items() if params]
