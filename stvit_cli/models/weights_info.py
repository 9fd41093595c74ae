"""What a weights file says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from stvit_cli.recipe import IMAGENET_MEAN, IMAGENET_STD

Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class WeightsInfo:
    """The model of a weights file and how pictures are prepared for it: all that is needed to use the file."""

    model: str
    task: str = "classification"
    num_classes: Annotated[int, Field(ge=0)] = 1000
    class_names: tuple[str, ...] = ()
    in_chans: Count = 3
    image_size: Annotated[int, Field(ge=32)] = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float | None = None
    interpolation: str = "bicubic"
    recipe_hash: str = ""
    licence: str = ""
    grid_sizes: tuple[Count, Count, Count, Count] | None = None
    """Other cells than the model's own. They have no weights, and the same weights with other cells are another function."""
    settings: str = ""
    """What else the task's model is made by, as JSON; of a classifier nothing."""

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self).decode()


_ADAPTER = TypeAdapter(WeightsInfo)


def parse(text: str) -> WeightsInfo:
    """Read what `WeightsInfo.to_json` wrote. Keys of a later version are passed over.

    Raises:
        ValueError: no such text, or values that do not fit each other; one line that names the key.
    """
    try:
        info = _ADAPTER.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "description"
        raise ValueError(f"{where}: {first['msg']}") from None
    for key, length in (("mean", len(info.mean)), ("std", len(info.std))):
        if length != info.in_chans:
            raise ValueError(f"{key}: {length} figures for {info.in_chans} channels")
    if len(info.class_names) not in (0, info.num_classes):
        raise ValueError(f"class_names: {len(info.class_names)} names for {info.num_classes} classes")
    return info
