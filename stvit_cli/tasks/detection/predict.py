"""Predictions of a trained detector: boxes, classes, scores and, from heads with masks, masks; as JSON and drawn on the image."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_tensor

from stvit_cli.data.coco import decode_mask
from stvit_cli.data.drawing import font_for, save_png, write_text
from stvit_cli.data.images import ImageSource, image_path, open_image
from stvit_cli.data.prefetch import Opened
from stvit_cli.tasks.detection.detector import encoded_masks
from stvit_cli.tasks.one_by_one import predict_one_by_one
from stvit_cli.tasks.spec import Trained
from stvit_cli.tasks.tables import table_rows
from stvit_cli.utils.text import printable

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object of an image: class, score, box (left, top, right, bottom) in pixels.

    ``mask`` is in COCO's run-length encoding; None where the model predicts boxes alone.
    """

    name: str
    index: int
    score: float
    box: Box
    mask: dict[str, Any] | None = None


@dataclass(frozen=True)
class DetectionPrediction:
    """The objects of an image by descending score; or the reason why there are none."""

    source: ImageSource
    width: int = 0
    height: int = 0
    objects: tuple[Detection, ...] = ()
    error: str | None = None
    is_unanswered: bool = False
    """The image was read, but the model's outputs for it are not finite; ``error`` says so."""

    @property
    def path(self) -> Path | None:
        """The image's file; None for an image that comes from memory."""
        return image_path(self.source)

    def summary(self) -> str:
        """Return the number of objects of each class in one line."""
        counts = Counter(detection.name for detection in self.objects)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def to_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"file": None if self.path is None else str(self.path), "task": "detection"}
        if self.error is not None:
            return result | {"error": self.error}
        objects = [asdict(detection) | {"box": list(detection.box)} for detection in self.objects]
        for entry in objects:
            if entry["mask"] is None:
                del entry["mask"]
        return result | {"width": self.width, "height": self.height, "objects": objects}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each object; see `tasks.base.ImagePrediction`."""
        names = ("image", "class", "class_index", "score", "left", "top", "right", "bottom", "mask")
        rows = [
            (found.name, found.index, found.score, *found.box, None if found.mask is None else found.mask["counts"])
            for found in self.objects
        ]
        sizes = {"image_width": self.width or None, "image_height": self.height or None}
        return [row | sizes for row in table_rows(self, names, rows)]

    def draw(self, target: Path) -> None:
        """Write the image with boxes, masks, names and scores on it, as PNG; objects with a higher score are drawn on top."""
        image = open_image(self.source)
        colours = [colour_of(number) for number in range(len(self.objects))]
        order = range(len(self.objects) - 1, -1, -1)
        if any(detection.mask is not None for detection in self.objects):
            image = self._with_masks(image, colours, order)
        pen = ImageDraw.Draw(image)
        font, size = font_for(image, 40, smallest=10)
        for i in order:
            detection = self.objects[i]
            pen.rectangle(detection.box, outline=colours[i], width=max(1, size // 8))
            _label(pen, f"{detection.name} {detection.score:.0%}", detection.box, colours[i], font, image.width)
        save_png(image, target)

    def _with_masks(self, image: Image.Image, colours: Sequence[tuple[int, int, int]], order: Sequence[int]) -> Image.Image:
        """Return the image with the masks blended into it, one after the other in an order."""
        pixels = np.array(image, dtype=np.float32)
        for i in order:
            code = self.objects[i].mask
            if code is not None:
                mask = decode_mask(code, image.height, image.width).astype(bool)
                pixels[mask] = 0.55 * pixels[mask] + 0.45 * np.array(colours[i], dtype=np.float32)
        return Image.fromarray(pixels.astype(np.uint8))


def colour_of(number: int) -> tuple[int, int, int]:
    """Return a saturated colour that differs from those of the preceding numbers (hues by the golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb((0.61803 * number) % 1.0, 0.85, 0.95)
    return int(255 * red), int(255 * green), int(255 * blue)


def _label(pen: ImageDraw.ImageDraw, text: str, box: Box, colour: tuple[int, int, int], font: Any, room: int) -> None:
    """Write text on a band above a box, or inside it at the top of the image; ``room`` is the width of the image."""
    left, top, right, bottom = pen.textbbox((0, 0), printable(text), font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], room - width))
    y = box[1] - height if box[1] >= height else box[1]
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    write_text(pen, (x + 2 - left, y + 2 - top), text, "white" if dark else "black", font)


def predict(
    trained: Trained, images: Sequence[ImageSource], *, score_threshold: float, device: torch.device
) -> Iterator[DetectionPrediction]:
    """Yield the objects of every image, in order, in its own pixels.

    Args:
        trained: the detector.
        images: the images, or paths of their files.
        score_threshold: objects with a lower score are left out.
        device: where the model computes.
    """
    model = trained.prepared(device, len(images))
    yield from predict_one_by_one(
        images,
        lambda source, opened: _predict_one(trained, model, source, opened, score_threshold, device),
        DetectionPrediction,
    )


@torch.inference_mode()
def _predict_one(
    trained: Trained, model: torch.nn.Module, source: ImageSource, opened: Opened, score_threshold: float, device: torch.device
) -> DetectionPrediction:
    image = opened()
    (detection,) = model([to_tensor(image).to(device)])
    is_confident = detection["scores"] >= score_threshold
    kept = {key: value[is_confident].float().cpu() for key, value in detection.items()}
    columns = (kept[key].tolist() for key in ("labels", "scores", "boxes"))
    objects = tuple(
        Detection(trained.info.class_names[int(label) - 1], int(label) - 1, score, tuple(box), mask)
        for mask, label, score, box in zip(encoded_masks(kept, (image.height, image.width)), *columns, strict=True)
    )
    return DetectionPrediction(source, image.width, image.height, objects)
