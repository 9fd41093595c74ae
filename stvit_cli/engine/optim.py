"""The optimizer on the task's parameter groups, and its state as named tensors and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import Tensor, nn

from stvit_cli.engine.damage import ADAMW
from stvit_cli.errors import UserError
from stvit_cli.recipe import OptimSection
from stvit_cli.tasks.base import Task
from stvit_cli.utils.text import did_you_mean

SHOWN = ("betas", "eps", "momentum", "nesterov", "trust_coeff", "ns_steps")
"""Settings of an optimizer that are shown at the start of a run."""
GROUP = "param_groups."
"""Start of the names of what an optimizer keeps for a group of parameters, not for a parameter."""
GROUP_KEYS = ("step",)
"""The entries of a group that change in a step, beside the learning rate."""

Number = bool | int | float | None


def build_optimizer(task: Task, section: OptimSection, peak_lr: float) -> torch.optim.Optimizer:
    """Build the optimizer. The engine sets the learning rate before every step.

    Args:
        task: gives the groups of parameters.
        section: the recipe's section.
        peak_lr: the learning rate after warmup, which some optimizers scale their weight decay by.

    Raises:
        UserError: the optimizer is unknown, cannot be used here, or has none of the settings.
    """
    kwargs = check_optimizer(section)
    groups = task.param_groups(section.weight_decay, section.layer_decay)
    assert all({"params", "weight_decay", "lr_scale"} <= group.keys() for group in groups)
    if section.name == ADAMW:
        # Fused: one pass over memory. For stvit-nano's 146 tensors on two CPU threads 1.3 ms against 21 ms.
        return torch.optim.AdamW(groups, lr=0.0, betas=section.betas, eps=section.eps, fused=True)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, section.name, lr=peak_lr, weight_decay=section.weight_decay, momentum=section.momentum, **kwargs
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"optim.name: {section.name} cannot be built: {error}") from error
    return optimizer


def check_optimizer(section: OptimSection) -> dict[str, Any]:
    """Return the settings that differ from the schema's, for an optimizer of timm: one that is not set keeps its own value.

    Raises:
        UserError: the optimizer is unknown, cannot be used here, or has none of the settings.
    """
    name, names = section.name, supported_optimizers()
    if name not in list_optimizers():
        raise UserError(
            f"optim.name: there is no optimizer {name!r} in timm.{did_you_mean(name, names)}\n"
            f"Some of them: adamw, sgd, nadamw, lamb, lion, adan, adopt, muon, adafactor; all: timm.optim.list_optimizers()"
        )
    if name not in names:
        raise UserError(f"optim.name: {name} {_why_not(name)}.\nChoose another one, such as adamw, sgd, lamb, lion or muon.")
    info, defaults = get_optimizer_info(name), OptimSection()
    changed = {
        key: getattr(section, key) for key in ("betas", "eps", "momentum") if getattr(section, key) != getattr(defaults, key)
    }
    taken = {"betas": info.has_betas and info.num_betas == 2, "eps": info.has_eps, "momentum": info.has_momentum}
    for key in changed:
        if not taken[key]:
            why = "has three, which are its own" if key == "betas" and info.has_betas else f"has no {key}"
            raise UserError(f"optim.{key}: found {changed[key]}, but {name} {why}. Leave out optim.{key}.")
    changed.pop("momentum", None)
    return changed


def supported_optimizers() -> list[str]:
    """Return the names that ``optim.name`` can have.

    >>> {"adamw", "sgd", "lion", "muon"} <= set(supported_optimizers())
    True
    """
    return [name for name in map(str, list_optimizers()) if not _why_not(name)]


def _why_not(name: str) -> str:
    """Return why an optimizer of timm cannot be used; an empty string if it can."""
    info = get_optimizer_info(name)
    if isinstance(info.opt_class, str):
        return f"belongs to the package {info.opt_class.partition('.')[0]}, which is not supported"
    if info.second_order:
        return "needs second derivatives, which a step does not compute"
    if "kron" in name:
        return "draws from a random generator of its own, so that its runs could not be resumed"
    return ""


def describe_optimizer(name: str, optimizer: torch.optim.Optimizer) -> str:
    """Return the optimizer and its settings in a line."""
    settings = ", ".join(f"{key} {optimizer.defaults[key]}" for key in SHOWN if optimizer.defaults.get(key) is not None)
    return f"Optimizer {name}{': ' if settings else ''}{settings}."


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to ``lr`` times the group's ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def match_layout(parameters: list[nn.Parameter]) -> None:
    """Bring gradients into their parameters' memory order: the fused update on a CPU goes by memory, not by index."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of the optimizer's state as ``parameter's name/key``, in the order of the model's parameters."""
    return {name: value for name, value in _state(model, optimizer) if isinstance(value, Tensor)}


def optimizer_numbers(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Number]:
    """Return what is no tensor in the optimizer's state, such as a number of steps, as ``parameter's name/key``."""
    numbers = {name: value for name, value in _state(model, optimizer) if not isinstance(value, Tensor)}
    assert all(value is None or isinstance(value, (bool, int, float)) for value in numbers.values())
    return numbers


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Number] | None = None
) -> None:
    """Replace the optimizer's state by what `optimizer_tensors` and `optimizer_numbers` gave.

    Tensors come to their parameter's device, moments into its memory order too. As in PyTorch, a number of steps stays on the
    CPU, unless the update is fused.
    """
    parameters = dict(model.named_parameters())
    group_of = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for full_name, value in [*tensors.items(), *(numbers or {}).items()]:
        name, _, key = full_name.rpartition("/")
        if name.startswith(GROUP):
            number = int(name.removeprefix(GROUP))
            if number < len(optimizer.param_groups):
                optimizer.param_groups[number][key] = value.clone() if isinstance(value, Tensor) else value
            continue
        parameter = parameters[name]
        optimizer.state[parameter][key] = _placed(value, key, parameter, group_of[parameter])


def _placed(value: Tensor | Number, key: str, parameter: Tensor, group: Mapping[str, Any]) -> Tensor | Number:
    if not isinstance(value, Tensor):
        return value
    if key == "step" and not (group.get("fused") or group.get("capturable")):
        return value.detach().cpu().clone()
    like = parameter if value.shape == parameter.shape else value
    own = torch.empty_like(like, dtype=value.dtype, device=parameter.device, requires_grad=False)
    return own.copy_(value)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{key}", value
    for number, group in enumerate(optimizer.param_groups):
        for key in GROUP_KEYS:
            if key in group:
                yield f"{GROUP}{number}/{key}", group[key]
