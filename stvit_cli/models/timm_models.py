"""timm's models by name, ``timm/NAME``: as classifiers. `timm_backbone` makes them backbones of detectors and segmenters.

timm is imported when such a model is created: that takes seconds. A model keeps timm's names of its tensors, so that timm's
weights can be loaded. ``timm/stvit_small`` and the others that this package registers in timm are the built-in models.

B batch, C channels, H W rows and columns of an image.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stvit_cli.errors import UserError
from stvit_cli.recipe.yaml import as_tuples, flow
from stvit_cli.utils import model_catalog
from stvit_cli.utils.text import did_you_mean, first_few, first_line, shortened

PREFIX = "timm/"
BUILT_IN = {model.timm: model.name for model in model_catalog.MODELS if model.timm is not None}
"""The built-in models by their names in timm's registry."""
NAMES_IN_TIMM = {model: name for name, model in BUILT_IN.items()}
"""The name in timm's registry of each built-in model."""

SET_ELSEWHERE = {
    "num_classes": "the data set",
    "in_chans": "model.in_chans",
    "img_size": "data.image_size",
    "drop_path_rate": "model.drop_path_rate",
    "pretrained": "model.pretrained",
}
"""Arguments of timm's models that are no kwargs here, and what decides them."""

_UNBUILDABLE = (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, AttributeError)
"""What timm raises for arguments that do not fit together."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")


@runtime_checkable
class HasNoWeightDecay(Protocol):
    """A model that names parameters without weight decay, such as position tables."""

    def no_weight_decay(self) -> set[str]: ...


def is_timm_name(name: str) -> bool:
    """Return whether a model's name asks for a model of timm: ``timm/resnet50``; the built-in models are none of them.

    >>> is_timm_name("timm/resnet50"), is_timm_name("timm/stvit_small"), is_timm_name("stvit-s")
    (True, False, False)
    """
    return name.startswith(PREFIX) and built_in_name(name) == name


def built_in_name(name: str) -> str:
    """Return the name of the built-in model that a name of timm's registry stands for; other names as they are.

    >>> built_in_name("timm/stvit_small"), built_in_name("timm/resnet50")
    ('stvit-s', 'timm/resnet50')
    """
    return BUILT_IN.get(name.removeprefix(PREFIX).split(".")[0], name) if name.startswith(PREFIX) else name


def require_known(name: str) -> str:
    """Return timm's name of a model, without the prefix.

    Raises:
        UserError: timm has no model of that name, or no weights of that tag.
    """
    import timm

    own = name.removeprefix(PREFIX)
    architecture, _, tag = own.partition(".")
    if not timm.is_model(architecture):
        raise UserError(
            f"model.name: timm {timm.__version__} has no model '{own}'.{did_you_mean(architecture, timm.list_models())}\n"
            "Its names: python -c \"import timm; print(timm.list_models('*swin*'))\""
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        known = f"Known: {first_few(tags)}." if tags else "It has none."
        raise UserError(f"model.name: timm's {architecture} has no weights '{tag}'.{did_you_mean(tag, tags)} {known}")
    return own


def create_classifier(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    *,
    image_size: int | None = None,
    checkpointing: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Create a classifier of timm, randomly initialized. Arguments as in `registry.create_model`.

    Raises:
        UserError: no such model, it cannot be built with ``kwargs``, or it does not take images of that size, stochastic depth or
            activation checkpointing.
    """
    from timm import get_pretrained_cfg

    own = require_known(name)
    config = get_pretrained_cfg(own)
    size = config.input_size[-1] if config is not None else 224
    arguments = checked_kwargs(own, kwargs or {})
    options: dict[str, Any] = {**arguments, "num_classes": num_classes, "in_chans": in_chans}
    if image_size is not None and (image_size != size or arguments):
        options |= _size_options(own, image_size)
        if not _takes(own, image_size, in_chans, arguments=as_key(arguments)):
            require_buildable(own, {**options, **_size_options(own, image_size)}, arguments)
            others = first_few([str(other) for other in _accepted_near(own, image_size, size, in_chans, as_key(arguments))])
            with_kwargs = f" with model.kwargs={flow(arguments)}" if arguments else ""
            raise UserError(f"data.image_size: found {image_size}, which {name} does not take{with_kwargs}; expected {others}.")
    elif arguments:
        require_buildable(own, options, arguments)
    model = create(name, options, drop_path_rate)
    set_checkpointing(model, name, checkpointing)
    model.timm_name = name  # type: ignore[assignment]
    return model


def require_image_size(name: str, built_for: int, image_size: int, in_chans: int, kwargs: Mapping[str, Any]) -> None:
    """Raise UserError where a classifier of timm that is built for an image size does not take images of another."""
    if image_size != built_for and not _takes(require_known(name), image_size, in_chans, built_for, as_key(kwargs)):
        raise UserError(f"data.image_size: found {image_size}, but this {name} takes images of {built_for} pixels only.")


def checked_kwargs(own: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for a model's constructor, lists as tuples. Raises UserError where it has no argument of such a name.

    timm's own factory has more, such as a file to load: these are none of the constructor's.

    Args:
        own: timm's name of the model.
        kwargs: the arguments.
    """
    if not kwargs:
        return {}
    known, takes_others = _constructor(own)
    for key in kwargs:
        if key in SET_ELSEWHERE:
            raise UserError(f"model.kwargs: found {key}, which {SET_ELSEWHERE[key]} decides. Leave it out.")
        if ":" in key:  # YAML takes {depth:2} for a key without a value
            raise UserError(
                f"model.kwargs: found {shortened(repr(key))}; write a blank after the colon, and '' around all of it."
            )
        if key in _OF_FACTORY or (key not in known and not takes_others):
            guess = did_you_mean(key, known) or f" It has {first_few(known, 12)}."
            raise UserError(f"model.kwargs: timm's {own} has no argument {shortened(repr(key))}.{guess}")
    try:
        json.dumps(dict(kwargs))
    except (TypeError, ValueError):
        raise UserError(
            f"model.kwargs: found {shortened(repr(dict(kwargs)))}, expected numbers, text, true, false and lists."
        ) from None
    return {key: as_tuples(value) for key, value in kwargs.items()}


_OF_FACTORY = frozenset(
    (
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "pretrained_model_args",
        "pretrained_custom_load",
        "checkpoint_path",
        "cache_dir",
        "pruned",
        "scriptable",
        "exportable",
        "no_jit",
        "features_only",
        "feature_cls",
        "feature_cfg",
        "out_indices",
        "device",
        "dtype",
    )
)
"""Arguments of timm's factory, which a constructor with ``**kwargs`` may see."""


@cache
def _constructor(own: str) -> tuple[list[str], bool]:
    """Return the names of the arguments of a model's constructor, and whether it takes others too."""
    import timm

    with torch.device("meta"):
        parameters = inspect.signature(type(timm.create_model(own)).__init__).parameters
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in parameters.items() if parameter.kind in kinds and name != "self"]
    takes_others = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in names if name not in _OF_FACTORY and name not in SET_ELSEWHERE], takes_others


def as_key(arguments: Mapping[str, Any]) -> str:
    """Return arguments as text, for functions that remember their results."""
    return json.dumps(dict(arguments)) if arguments else ""


def from_key(text: str) -> dict[str, Any]:
    """Return the arguments of `as_key`."""
    return {key: as_tuples(value) for key, value in json.loads(text).items()} if text else {}


def require_buildable(own: str, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise UserError where a model cannot be built with its kwargs, on the meta device: they may describe one of any size."""
    if not arguments:
        return
    import timm

    try:
        with torch.device("meta"):
            timm.create_model(own, **options)
    except _UNBUILDABLE as error:
        raise UserError(cannot_be_built(own, arguments, error)) from None


def cannot_be_built(own: str, arguments: Mapping[str, Any], error: Exception) -> str:
    """Return the message about kwargs that do not fit together."""
    reason = first_line(error) or type(error).__name__
    return f"model.kwargs: timm's {own} cannot be built with {shortened(flow(dict(arguments)), 200)}: {shortened(reason, 200)}"


def is_timm_model(model: nn.Module) -> bool:
    """Return whether a model is a classifier of timm, or a `TimmBackbone`."""
    return isinstance(getattr(model, "timm_name", None), str)


def fitted(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a classifier's file under the names of ``model``, in its shapes where timm knows how.

    timm renames the keys of older files, and resamples position tables to another image size.

    Args:
        model: a classifier of timm, or a `TimmBackbone`.
        tensors: of a file, with or without the prefix of a wrapper.
    """
    prefix = getattr(model, "timm_prefix", "")
    inner = model.get_submodule(prefix.removesuffix("."))
    own, state = inner.state_dict(), dict(tensors)
    while not set(own) & set(state) and (wrapper := next((w for w in _WRAPPERS if all(n.startswith(w) for n in state)), "")):
        state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    if any(name not in state or state[name].shape != value.shape for name, value in own.items()):
        convert = getattr(sys.modules[type(inner).__module__], "checkpoint_filter_fn", None)
        # Where it fails, the file is not one of this model, and the message about its keys follows.
        with suppress(AttributeError, KeyError, IndexError, ValueError, RuntimeError):
            state = state if convert is None else dict(convert(state, inner))
    if prefix:  # a backbone has neither classifier nor last norm
        ends = ("norm.", *{f"{name.split('.')[0]}." for name in classifier_names(inner)})
        state = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(ends)}
    return {prefix + name: tensor for name, tensor in state.items()}


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors of a timm model's classifiers."""
    config = getattr(model, "pretrained_cfg", None) or {}
    layers = config.get("classifier") or ()
    return tuple(f"{layer}.{leaf}" for layer in ([layers] if isinstance(layers, str) else layers) for leaf in ("weight", "bias"))


def first_convolution(model: nn.Module) -> str:
    """Return the name of the kernel of a timm model's first convolution; empty where it has several."""
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    return f"{first}.weight" if isinstance(first, str) else ""


def create(name: str, options: dict[str, Any], drop_path_rate: float = 0.0) -> nn.Module:
    """Create a model of timm with its own arguments. Raises UserError where it has no stochastic depth, but is to have."""
    import timm

    if drop_path_rate:
        options = {**options, "drop_path_rate": drop_path_rate}
    own = name.removeprefix(PREFIX)
    try:
        model: nn.Module = timm.create_model(own, pretrained=False, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise UserError(
                f"model.drop_path_rate: found {drop_path_rate:g}, but timm's {own} has no stochastic depth; set 0."
            ) from None
        raise
    return model


def set_checkpointing(model: nn.Module, name: str, checkpointing: bool) -> None:
    """Turn timm's activation checkpointing on where it is asked for. Raises UserError where the model has none."""
    if not checkpointing:
        return
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError):
        raise UserError(f"model.checkpointing: {name} has no activation checkpointing in timm; set it to false.") from None


def _size_options(own: str, image_size: int) -> dict[str, Any]:
    """Return the arguments with which a model is built for an image size."""
    from timm import get_pretrained_cfg

    config = get_pretrained_cfg(own)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


@cache
def _takes(own: str, image_size: int, in_chans: int, built_for: int | None = None, arguments: str = "") -> bool:
    """Return whether a model can be built for images of a size, and run on one; tried on the meta device.

    Args:
        own: timm's name.
        image_size: of the images.
        in_chans: their channels.
        built_for: build it for this size; None: for ``image_size``.
        arguments: its kwargs, as text.
    """
    import timm

    options = {**from_key(arguments), **_size_options(own, built_for or image_size)}
    try:
        with torch.device("meta"), torch.no_grad():
            model = timm.create_model(own, in_chans=in_chans, **options).eval()
            model(torch.empty(1, in_chans, image_size, image_size))
    except NotImplementedError:
        return True  # an operator without shapes: the model itself will tell
    except _UNBUILDABLE:
        return False
    return True


def _accepted_near(own: str, image_size: int, default: int, in_chans: int, arguments: str) -> Iterator[int]:
    """Yield sizes that a model takes: the nearest multiples of 32, 16 and 14, and its own."""
    near = {step * (image_size // step + i) for step in (14, 16, 32) for i in (0, 1)} - {0}
    for size in sorted(near, key=lambda size: (abs(size - image_size), size))[:4]:
        if size != default and size >= 32 and _takes(own, size, in_chans, arguments=arguments):
            yield size
    yield default
