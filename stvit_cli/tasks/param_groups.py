"""Parameter groups of the optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stvit_cli.models.layers import layer_scales
from stvit_cli.models.timm_backbone import TimmBackbone


def without_decay_on_norms(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of the dense tasks: all but norm layers and position tables decays, biases too, as published.

    Args:
        model: its parameters that require a gradient are in a group.
        weight_decay: of the parameters that decay.
    """
    kinds = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, kinds))
    exempt = {
        f"{name}.{parameter}" if name else parameter
        for name, module in model.named_modules()
        if isinstance(module, TimmBackbone)
        for parameter in module.no_weight_decay()
    }
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0.0 if name.startswith(norms) or name in exempt else weight_decay].append(parameter)
    return [{"params": params, "weight_decay": decay, "lr_scale": 1.0} for decay, params in groups.items() if params]


def decay_layer_scale(model: nn.Module, groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups with the parameters of layer scale moved into groups that decay; the learning rates stay the same.

    Args:
        model: the model of the parameters.
        groups: the optimizer's groups.
        weight_decay: of layer scale.
    """
    gammas = {module.gamma for module in model.modules() if isinstance(module, layer_scales())}
    result = []
    for group in groups:
        moved = [parameter for parameter in group["params"] if parameter in gammas]
        rest = [parameter for parameter in group["params"] if parameter not in gammas]
        result += [{**group, "params": rest}] if rest else []
        result += [{**group, "params": moved, "weight_decay": weight_decay}] if moved else []
    return result
