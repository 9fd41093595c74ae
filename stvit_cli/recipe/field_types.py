"""What the sections of a recipe are made of, and so the metadata of weights files: the limits are the same in both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]

MAX_SIDE = 16384
"""The largest side of an image that a model is asked to see, in pixels."""
MAX_GRID_SIZE = 256
MIN_CROP_PCT = 0.1
MIN_STD = 1e-6

# Beyond these limits nothing is meant, but memory without end is taken: a value of 1e9 is a slip, or a file made up to do harm.
Side = Annotated[int, Field(ge=32, le=MAX_SIDE)]
Width = Annotated[int, Field(gt=0, le=16384)]
GridSize = Annotated[int, Field(gt=0, le=MAX_GRID_SIZE)]
CropPct = Annotated[float, Field(ge=MIN_CROP_PCT, le=1, allow_inf_nan=False)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(ge=MIN_STD, allow_inf_nan=False)]
Interpolation = Literal["bicubic", "bilinear", "nearest"]


class Section(BaseModel):
    """A part of a recipe: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
