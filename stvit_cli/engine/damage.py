"""Whether a checkpoint holds what a run needs: everything is there, of the right type, and fits the model and its optimizer.

The checksums of a checkpoint say that it is what was written; this says that it can be used, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from stvit_cli.utils.text import shortened

if TYPE_CHECKING:
    from stvit_cli.engine.session import Session

ADAMW = "adamw"
"""The optimizer of every run before ``optim.name``."""
FILE = re.compile(r"[A-Za-z0-9_]{1,100}\.safetensors")
"""A name in `files`: it cannot leave the folder."""

Count = Annotated[int, Field(ge=0)]
Metrics = dict[str, float | None]


class DamagedError(Exception):
    """A checkpoint is not what was written, or not what a run needs."""


class _Content(BaseModel):
    """A part of ``state.json``. Keys of a later version are left alone, so that its checkpoints can be read."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _File(_Content):
    bytes: Count
    sha256: str


class _Envelope(_Content):
    format: int
    step: Count
    files: dict[str, _File]
    tensors: dict[str, Count] = {}  # not in those of version 0.1.0
    state: dict[str, Any]


class _Best(_Content):
    step: Count
    ema: bool
    metrics: Metrics


class _Run(_Content):
    step: Count
    evaluated: Annotated[int, Field(ge=-1)]
    metrics: Metrics
    best: dict[str, Any]
    stale: Count = 0  # older checkpoints lack it
    window: dict[str, float]
    window_steps: Count
    skipped: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Fingerprint(_Content):
    model: str
    task: str
    num_classes: Count
    class_names: list[str]
    in_chans: Count
    image_size: Count
    num_samples: Count


class _Optimizer(_Content):
    name: str
    numbers: dict[str, bool | int | Annotated[float, Field(allow_inf_nan=False)] | None]


class _State(_Content):
    run: _Run
    optimizer: _Optimizer = _Optimizer(name=ADAMW, numbers={})  # older checkpoints lack it
    scaler: dict[str, float]
    metrics_bytes: Count
    micro_batch_size: Annotated[int, Field(gt=0)]
    kernels: bool = False  # older checkpoints lack it
    kernel_layers: list[str] | None = None  # older checkpoints lack it, as do those of a run on a CPU
    fingerprint: _Fingerprint


def check_envelope(content: Any, step: int | None) -> None:
    """Check the content of ``state.json`` except the run's state.

    Args:
        content: the parsed JSON.
        step: step in the folder's name; None if it has another name.

    Raises:
        DamagedError: a key is missing or of the wrong type, or a named file lies outside the folder.
    """
    _validate(_Envelope, content)
    if step not in (None, content["step"]):
        raise DamagedError(f"it is of step {content['step']}, its folder of step {step}")
    for name in content["files"]:
        if not FILE.fullmatch(name):
            raise DamagedError(f"it names a file that is none of a checkpoint: {shortened(repr(name), 60)}")


def check_alone(step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Check a run's state and its tensors by themselves, for a run with other settings.

    Args:
        step: step of the checkpoint.
        tensors: its tensors by group and name.
        state: the run's state in it.

    Raises:
        DamagedError: something is missing or of the wrong type, or the optimizer's tensors do not fit the model's.
    """
    _validate(_State, state)
    if state["run"]["step"] != step:
        raise DamagedError(f"its run is of step {state['run']['step']}, the checkpoint of step {step}")
    for group in ("model", "optimizer"):
        if group not in tensors:
            raise DamagedError(f"it has no {group}.safetensors")
    _check_optimizer(tensors["optimizer"], tensors["model"], state)


def check_content(session: Session, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Check a run's state and its tensors against the session that is resumed from them.

    Args:
        session: the run that is resumed.
        step: step of the checkpoint.
        tensors: its tensors by group and name.
        state: the run's state in it.

    Raises:
        DamagedError: something is missing, of the wrong type or of the wrong shape.
    """
    _validate(_State, state)
    run, metric = state["run"], session.task.main_metric
    if run["step"] != step:
        raise DamagedError(f"its run is of step {run['step']}, the checkpoint of step {step}")
    if run["best"]:
        _validate(_Best, run["best"], "run.best.")
        if metric not in run["best"]["metrics"]:
            raise DamagedError(f"run.best.metrics has no {metric}")
    if session.scaler.is_enabled() and state["scaler"].keys() != session.scaler.state_dict().keys():
        raise DamagedError("the state of the loss scaler is not complete")
    needed = ["model", "optimizer"] + (["ema"] if session.ema is not None else [])
    for group in needed:
        if group not in tensors:
            raise DamagedError(f"it has no {group}.safetensors")
    if any(state["fingerprint"][key] != value for key, value in _shape_of(session).items()):
        return  # of other data, which is another fault than damage: see `state.restore`
    _check_tensors("model", tensors["model"], session.model.state_dict())
    if session.ema is not None:
        _check_tensors("ema", tensors["ema"], session.ema.module.state_dict())
    _check_optimizer(tensors["optimizer"], dict(session.model.named_parameters()), state)


def _shape_of(session: Session) -> dict[str, Any]:
    """Return what the shapes of the model's tensors depend on beside the recipe."""
    info = session.task.weights_info()
    return {"num_classes": info.num_classes, "in_chans": info.in_chans, "model": info.model}


def _validate(schema: type[_Content], content: Any, prefix: str = "") -> None:
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = shortened(prefix + ".".join(map(str, first["loc"])), 60)
        found = "is missing" if first["type"] == "missing" else f"is {shortened(repr(first['input']), 60)}"
        raise DamagedError(f"{key or 'its content'} {found}") from None


def differing_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names that are missing, unexpected, or differ in shape or kind of number, each with what is wrong with it.

    Args:
        found: tensors of a checkpoint, by name.
        expected: tensors of the model.
    """
    differing = {name: f"lacks {name}" for name in expected if name not in found}
    for name, tensor in found.items():
        own = expected.get(name)
        if own is None:
            differing[name] = f"holds {shortened(name, 60)}, which the run does not have"
        elif tensor.shape != own.shape or tensor.is_floating_point() != own.is_floating_point():
            model = f"the model has {tuple(own.shape)} of {own.dtype}"
            differing[name] = f"has {name} as {tuple(tensor.shape)} of {tensor.dtype}, {model}"
    return differing


def _check_tensors(group: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for problem in differing_tensors(found, expected).values():
        raise DamagedError(f"{group}.safetensors {problem}")


def _check_optimizer(found: Mapping[str, Tensor], parameters: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Check AdamW: a trained parameter has a step count and two moments, and one that was never trained has none.

    What another optimizer keeps is its own; it is checked that it belongs to parameters of the model.
    """
    optimizer = state.get("optimizer", {"name": ADAMW, "numbers": {}})
    if optimizer["name"] != ADAMW:
        for name in [*found, *optimizer["numbers"]]:
            parameter = name.rpartition("/")[0]
            if parameter not in parameters and not re.fullmatch(r"param_groups\.\d{1,6}", parameter):
                raise DamagedError(f"optimizer.safetensors holds {shortened(name, 60)}, which the run does not have")
        return
    trained = {name.rpartition("/")[0] for name in found}
    expected = {f"{name}/{key}": None for name in parameters if name in trained for key in ("step", "exp_avg", "exp_avg_sq")}
    for name in expected:
        if name not in found:
            raise DamagedError(f"optimizer.safetensors lacks {name}")
        parameter, _, key = name.rpartition("/")
        shape = () if key == "step" else tuple(parameters[parameter].shape)
        if tuple(found[name].shape) != shape or not found[name].is_floating_point():
            raise DamagedError(
                f"optimizer.safetensors has {name} as {tuple(found[name].shape)} of {found[name].dtype}, expected {shape}"
            )
    others = [name for name in found if name not in expected]
    if others:
        raise DamagedError(f"optimizer.safetensors holds {shortened(others[0], 60)}, which the run does not have")
