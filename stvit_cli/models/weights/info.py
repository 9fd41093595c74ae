"""The description in a weights file, and the schema that checks it wherever it is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from stvit_cli.recipe import IMAGENET_MEAN, IMAGENET_STD, DetectionSection, SegmentationSection
from stvit_cli.recipe.field_types import CropPct, GridSize, Interpolation, Kwargs, LayerScale, Mean, NumIters, Section, Side, Std
from stvit_cli.recipe.yaml import as_tuples
from stvit_cli.utils.crop import default_crop_pct
from stvit_cli.utils.text import first_few, shortened

logger = logging.getLogger(__name__)

DETECTOR_KEYS = (
    "head",
    "short_sides",
    "long_side",
    "channels",
    "fc_dim",
    "anchor_scale",
    "score_threshold",
    "nms_threshold",
    "max_detections",
)
"""The keys of the recipe section that describe a detector; no others are written to its weights file or read from one."""

# The folders of a segmenter's data. In a file from another machine they must not lead outside the data root.
_FOLDERS = ("train_images", "train_maps", "val_images", "val_maps")

_SETTINGS: dict[str, tuple[type[Section], tuple[str, ...]]] = {
    "detection": (DetectionSection, DETECTOR_KEYS),
    "segmentation": (SegmentationSection, tuple(SegmentationSection.model_fields)),
}


@dataclass(frozen=True)
class WeightsInfo:
    """The model in a weights file, and how images are prepared for it.

    Attributes:
        model: its name, see `list_models`.
        task: ``classification``, ``detection`` or ``segmentation``.
        num_classes: number of classes; 0 without a classifier.
        class_names: their names in order; may be empty for a classifier.
        in_chans: number of channels of an image.
        image_size: side of the images in pixels.
        mean: mean of each channel, of values in [0, 1].
        std: standard deviation of each channel.
        crop_pct: ratio of the center crop to the resized image in evaluation; None for the recipe's default.
        interpolation: how images are resized.
        recipe_hash: hash of the recipe that trained the weights.
        licence: licence of the weights.
        grid_sizes: the grid size of each stage, if not the model's own. It has no weights, but the same weights with another
            grid are another function.
        multi_label: an image has any number of the classes, each by the sigmoid of its logit; otherwise it has one, by softmax.
        settings: what else the model of the task is built from, as JSON; empty for a classifier.
        num_iters: this and what follows are arguments of `create_model` (see there), if not the model's own.
        pos_enc: see `create_model`.
        ffn_conv: see `create_model`.
        association_grad: see `create_model`.
        layer_scale: see `create_model`.
        kwargs: see `create_model`.
    """

    model: Annotated[str, Field(min_length=1, max_length=100)]
    task: str = "classification"
    num_classes: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    class_names: tuple[str, ...] = ()
    in_chans: Annotated[int, Field(gt=0, le=1024)] = 3
    image_size: Side = 224
    mean: tuple[Mean, ...] = IMAGENET_MEAN
    std: tuple[Std, ...] = IMAGENET_STD
    crop_pct: CropPct | None = None
    interpolation: str = "bicubic"
    recipe_hash: str = ""
    licence: str = ""
    grid_sizes: tuple[GridSize, GridSize, GridSize, GridSize] | None = None
    settings: str = ""
    multi_label: bool = False
    num_iters: NumIters | None = None
    pos_enc: bool | None = None
    ffn_conv: bool | None = None
    association_grad: bool | None = None
    layer_scale: LayerScale | None = None
    kwargs: Kwargs = field(default_factory=dict, hash=False)

    @property
    def resolved_crop_pct(self) -> float:
        """The ratio of the center crop to the resized image: ``crop_pct``, or the default for the image size."""
        return self.crop_pct or default_crop_pct(self.image_size)

    def to_json(self) -> str:
        # Earlier versions do not have these, and warn of what they do not know.
        unused = {key for key in _SINCE_0_2 if getattr(self, key) == getattr(_DEFAULTS, key)}
        return _ADAPTER.dump_json(self, exclude=unused).decode()


@dataclass(frozen=True)
class _Read(WeightsInfo):
    """The schema of what is read: choices must be known ones. In Python any text is accepted, so that new tasks can be tried."""

    task: Literal["classification", "detection", "segmentation"] = "classification"
    interpolation: Interpolation = "bicubic"


_SINCE_0_2 = ("multi_label", "num_iters", "pos_enc", "ffn_conv", "association_grad", "layer_scale", "kwargs")
_DEFAULTS = WeightsInfo("")
_ADAPTER = TypeAdapter(WeightsInfo)
_READ = TypeAdapter(_Read)
_KNOWN = {each.name for each in fields(WeightsInfo)} | {"crc32"}  # the checksum of the file, see `file`


def parse(text: str, source: str = "weights") -> WeightsInfo:
    """Parse the text of `WeightsInfo.to_json`. Keys of a later version are ignored with a warning.

    Args:
        text: JSON.
        source: name of the file, for the warning.

    Raises:
        ValueError: not such a text, or values that are out of range or contradict each other; one line with the key.
    """
    try:
        read = _READ.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_problem(error)) from None
    info = WeightsInfo(**{each.name: getattr(read, each.name) for each in fields(WeightsInfo)})
    info = replace(info, kwargs=as_tuples(info.kwargs))
    for problem in _contradictions(info):
        raise ValueError(problem)
    unknown = [key for key in json.loads(text) if key not in _KNOWN]
    settings, ignored = _read_settings(info)
    ignored = [*unknown, *ignored]
    if ignored:
        names = first_few([shortened(name, 60) for name in ignored])
        logger.warning("%s: written by another version of stvit; ignored in its metadata: %s.", source, names)
    return replace(info, settings=settings)


def _contradictions(info: WeightsInfo) -> Iterator[str]:
    """Yield the values that contradict each other, the key first."""
    for key, length in (("mean", len(info.mean)), ("std", len(info.std))):
        if length != info.in_chans:
            yield f"{key}: {length} numbers for {info.in_chans} channels"
    if len(info.class_names) not in (0, info.num_classes):
        yield f"class_names: {len(info.class_names)} names for {info.num_classes} classes"
    if info.task != "classification" and info.in_chans != 3:
        yield f"in_chans: found {info.in_chans}, expected 3 for {info.task}"


def missing_parts(info: WeightsInfo) -> Iterator[str]:
    """Yield what the description lacks to build the model, the key first."""
    if info.task not in _SETTINGS:
        return
    if not info.class_names:
        yield f"class_names: found none, expected a name for each class of a model for {info.task}"
    if not info.settings:
        yield f"settings: found none, expected those of a model for {info.task}"


def _read_settings(info: WeightsInfo) -> tuple[str, list[str]]:
    """Return the settings without the keys that this version does not know, and those keys.

    Raises:
        ValueError: these are not settings of the task of the file.
    """
    if info.task not in _SETTINGS:
        return "", ["settings"] if info.settings else []
    if not info.settings:
        return "", []
    section, known = _SETTINGS[info.task]
    try:
        found = json.loads(info.settings)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"settings: found {shortened(repr(info.settings), 60)}, expected the settings of a model for {info.task}, as JSON"
        )
    ignored = [key for key in found if key not in known or (key in _FOLDERS and _leads_outside(found[key]))]
    kept = {key: value for key, value in found.items() if key not in ignored}
    try:
        read = section.model_validate_json(json.dumps(kept), strict=True)
    except ValidationError as error:
        raise ValueError(f"settings: {_problem(error)}") from None
    for problem in _settings_contradictions(info, read):
        raise ValueError(f"settings: {problem}")
    return (json.dumps(kept) if ignored else info.settings), [f"settings.{key}" for key in ignored]


def _settings_contradictions(info: WeightsInfo, settings: Section) -> Iterator[str]:
    if isinstance(settings, DetectionSection) and max(settings.short_sides) > settings.long_side:
        yield f"long_side: found {settings.long_side}, expected no less than the short sides"
    if isinstance(settings, SegmentationSection):
        if settings.class_names != info.class_names:
            yield "class_names: not those of the file"
        values = settings.label_values
        if values is not None and (len(values) != len(settings.class_names) or len(set(values)) < len(values)):
            yield f"label_values: found {list(values)}, expected a number of its own for each of the class_names"
        if settings.window is not None and (settings.window_stride or 1) > settings.window:
            yield f"window_stride: found {settings.window_stride}, expected no more than the window ({settings.window})"


def _leads_outside(folder: Any) -> bool:
    """Return whether the name of a folder, written by another machine, leads outside the folder that it is joined to."""
    if not isinstance(folder, str):
        return False  # refused by the schema
    parts = PurePosixPath(folder.replace("\\", "/")).parts
    return ".." in parts or folder.startswith(("/", "\\", "~")) or "\0" in folder or folder[1:2] == ":"


def _problem(error: ValidationError) -> str:
    """Return one line on the first error: the key, what was found, what is expected."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "description"
    found = "" if first["type"] in ("missing", "json_invalid") else f"found {shortened(repr(first['input']), 60)}, "
    return f"{where[:80]}: {found}{first['msg'].replace('Input should be', 'expected')}"
