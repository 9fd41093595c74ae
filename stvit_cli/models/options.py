"""The options of a model beside its name: keys of a recipe's ``model`` section, which a weights file keeps.

They are the arguments of the same name of `registry.create_model`, where each is described; None (``kwargs``: nothing): the
model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypedDict, cast

from stvit_cli.models.stvit import GridSizes


class ModelOptions(TypedDict, total=False):
    """Options as arguments."""

    grid_sizes: GridSizes | None
    num_iters: int | None
    pos_enc: bool | None
    ffn_conv: bool | None
    association_grad: bool | None
    layer_scale: float | None
    kwargs: Mapping[str, Any] | None


OPTIONS = tuple(ModelOptions.__annotations__)

LACKS = {
    "grid_sizes": "super tokens",
    "num_iters": "super tokens",
    "association_grad": "super tokens",
    "pos_enc": "convolutional position encoding",
    "ffn_conv": "ConvFFN",
    "layer_scale": "layer scale of STViT",
}
"""What a model does not have for which an option is meaningless."""


class HasOptions(Protocol):
    """A recipe's ``model`` section, or the description in a weights file."""

    @property
    def grid_sizes(self) -> GridSizes | None: ...
    @property
    def num_iters(self) -> int | None: ...
    @property
    def pos_enc(self) -> bool | None: ...
    @property
    def ffn_conv(self) -> bool | None: ...
    @property
    def association_grad(self) -> bool | None: ...
    @property
    def layer_scale(self) -> float | None: ...
    @property
    def kwargs(self) -> dict[str, Any]: ...


def options_of(source: HasOptions) -> ModelOptions:
    """Return the options in a recipe's ``model`` section or in the description of a weights file.

    Example:
        >>> from stvit_cli.models.weights import WeightsInfo
        >>> given(options_of(WeightsInfo("stvit-nano", num_iters=2)))
        {'num_iters': 2}
    """
    return cast(ModelOptions, {key: getattr(source, key) for key in OPTIONS})


def given(options: ModelOptions) -> dict[str, Any]:
    """Return the options that are not the model's own."""
    return {key: value for key, value in options.items() if value is not None and value != {}}
