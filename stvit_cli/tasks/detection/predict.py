"""Predictions of a trained detector: boxes, classes, scores and, from heads with masks, masks; as JSON and drawn on the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_tensor

from stvit_cli.data.drawing import save_png
from stvit_cli.data.images import ImageSource, image_path, open_image
from stvit_cli.data.prefetch import Opened
from stvit_cli.models.optimize.inference import Precision
from stvit_cli.tasks.detection.annotated import Annotation, annotated, object_text
from stvit_cli.tasks.detection.detector import encoded_masks
from stvit_cli.tasks.one_by_one import predict_one_by_one
from stvit_cli.tasks.spec import Trained
from stvit_cli.tasks.tables import table_rows

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
        """Write the image with boxes, masks, names and scores on it, as PNG; see `annotated`."""
        save_png(annotated(open_image(self.source), self.annotations()), target)

    def annotations(self) -> list[Annotation]:
        """Return the objects as they are drawn, by descending score."""
        return [
            Annotation(found.index, found.box, object_text(found.name, found.score), found.mask)
            for found in sorted(self.objects, key=lambda found: -found.score)
        ]


def predict(
    trained: Trained,
    images: Sequence[ImageSource],
    *,
    score_threshold: float,
    device: torch.device,
    precision: Precision = "fp32",
) -> Iterator[DetectionPrediction]:
    """Yield the objects of every image, in order, in its own pixels.

    Args:
        trained: the detector.
        images: the images, or paths of their files.
        score_threshold: objects with a lower score are left out.
        device: where the model computes.
        precision: what the backbone computes in.
    """
    model = trained.prepared(device, len(images), precision)
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
