"""Base class and field types, with their limits, of recipes' sections and of the metadata in weights files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]

MAX_SIDE = 16384
"""Largest side of a model's input, in pixels."""
MAX_GRID_SIZE = 256
MIN_CROP_PCT = 0.1
MIN_STD = 1e-6

# Values beyond these limits are typing errors, or files made to exhaust the memory.
Side = Annotated[int, Field(ge=32, le=MAX_SIDE)]
NumIters = Annotated[int, Field(ge=0, le=10)]
LayerScale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Width = Annotated[int, Field(gt=0, le=16384)]
GridSize = Annotated[int, Field(gt=0, le=MAX_GRID_SIZE)]
CropPct = Annotated[float, Field(ge=MIN_CROP_PCT, le=1, allow_inf_nan=False)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(ge=MIN_STD, allow_inf_nan=False)]
Kwargs = dict[str, Any]
Interpolation = Literal["bicubic", "bilinear", "nearest"]


class Section(BaseModel):
    """Frozen and strict: unknown keys, other types and infinite numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
