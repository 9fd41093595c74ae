"""Super tokens of a few validation images, as the run's best weights see them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.analysis.associations.maps import Associations, LayerMaps, associations
from stvit_cli.data.images import UnreadableImageError
from stvit_cli.data.inspection import evenly_spaced
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.errors import UserError
from stvit_cli.tasks.data_view import DataView, ImagesView
from stvit_cli.tasks.report_parts import GalleryPart, ReportSection, ShownImage, Thumbnail
from stvit_cli.tasks.spec import Trained

NUM_IMAGES = 4
SIDE = 224
"""Longer side of what is drawn, in pixels."""

DENSE_SIDE = 320
"""Short side of the model's input for a detector or a segmenter: their own size takes seconds an image on a CPU."""


def super_tokens_section(trained: Trained, view: DataView) -> ReportSection | None:
    """Return the section; None where the model has no super tokens or no image can be opened."""
    shown = []
    for name, image in _images(view):
        try:
            size = None if trained.info.task == "classification" else DENSE_SIDE
            maps = associations(trained.model, image, trained.info, image_size=size)
        except UserError:
            return None
        if not maps.super_token_layers:
            return None
        shown.append(ShownImage(name, [Thumbnail(thumbnail(image, SIDE), "image"), *_drawn(image, maps)]))
    if not shown:
        return None
    intro = (
        "The model groups pixels into super tokens, between which it computes attention. Lines are their borders: of the first "
        "layer of a stage, each pixel belongs to the super token it is associated with most."
    )
    return ReportSection("super-tokens", "Super tokens", [GalleryPart("", shown)], intro)


def _images(view: DataView) -> Iterator[tuple[str, Image.Image]]:
    """Yield the names of a few images of the last split, and the images."""
    split = view.sets[-1]
    if not isinstance(split, ImagesView):
        return
    for index in evenly_spaced(len(split), NUM_IMAGES):
        try:
            yield "/".join(split.path(index).split("/")[-2:]), split.images.open(index)
        except (UnreadableImageError, UserError):
            continue


def _drawn(image: Image.Image, maps: Associations) -> Iterator[Thumbnail]:
    """Yield the borders of the super tokens of the first layer of the first two stages that have some."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = np.asarray(image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS))
    stages: dict[str, LayerMaps] = {}
    for layer in maps.super_token_layers:
        stages.setdefault(layer.name.split(".")[0], layer)
    for layer in list(stages.values())[:2]:
        labels = layer.label_map((canvas.shape[0], canvas.shape[1]))
        yield Thumbnail(thumbnail(Image.fromarray(with_borders(canvas, labels)), SIDE), layer.name)


def with_borders(canvas: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return an image (height, width, 3) with the borders of its segments (height, width) in white, darkened elsewhere.

    >>> with_borders(np.full((1, 4, 3), 100, np.uint8), np.array([[0, 0, 1, 1]]))[0, :, 0].tolist()
    [80, 255, 80, 80]
    """
    border = np.zeros(labels.shape, bool)
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    border[:-1] |= labels[:-1] != labels[1:]
    darker = (canvas * 0.8).astype(np.uint8)
    return np.where(border[..., None], np.uint8(255), darker)
