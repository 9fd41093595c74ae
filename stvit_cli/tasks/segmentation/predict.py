"""Predictions of a trained segmenter: label map, overlay on the image, and the share of each class. H W rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.drawing import save_png
from stvit_cli.data.image_pairs import class_numbers
from stvit_cli.data.images import ImageSource, image_path, open_image
from stvit_cli.data.prefetch import Opened
from stvit_cli.data.segmentation import SegmentationEvalSet
from stvit_cli.data.segmentation_transforms import Labels, eval_transform
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.inference import Precision
from stvit_cli.recipe import SegmentationSection
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.one_by_one import predict_one_by_one
from stvit_cli.tasks.segmentation.annotated import legend_text, overlay, palette, with_legend
from stvit_cli.tasks.segmentation.task import inferer, section_of
from stvit_cli.tasks.spec import ReportInput, Trained
from stvit_cli.tasks.tables import table_rows

NUM_IN_SUMMARY = 5
"""The largest number of classes in a summary."""


@dataclass(frozen=True)
class ClassShare:
    """A class in an image: its number in label maps, its pixels and their share of all pixels."""

    name: str
    number: int
    pixels: int
    share: float


@dataclass(frozen=True)
class SegmentationPrediction:
    """The label map of an image (H, W), with the numbers of the training data; or the reason why there is none."""

    source: ImageSource
    numbers: NDArray[np.uint16] | None = None
    shares: tuple[ClassShare, ...] = ()
    error: str | None = None
    is_unanswered: bool = False
    """The image was read, but the model's outputs for it are not finite; ``error`` says so."""
    class_numbers: tuple[int, ...] = ()
    """The number of each class of the model in label maps; empty: that of a class is its index."""

    @property
    def path(self) -> Path | None:
        """The image's file; None for an image that comes from memory."""
        return image_path(self.source)

    def summary(self) -> str:
        """Return the classes with the largest shares in one line."""
        texts = [f"{entry.name} {entry.share:.1%}" for entry in self.shares[:NUM_IN_SUMMARY]]
        return ", ".join(texts + (["..."] if len(self.shares) > NUM_IN_SUMMARY else []))

    def to_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"file": None if self.path is None else str(self.path), "task": "segmentation"}
        if self.numbers is None:
            return result | {"error": self.error}
        height, width = self.numbers.shape
        return result | {"width": width, "height": height, "classes": [asdict(entry) for entry in self.shares]}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each class with its share of the pixels; see `tasks.base.ImagePrediction`."""
        names = ("image", "class", "number", "pixels", "share")
        return table_rows(self, names, [(entry.name, entry.number, entry.pixels, entry.share) for entry in self.shares])

    def draw(self, target: Path) -> None:
        """Write the image with an overlay of its classes and a legend as PNG, and the label map as ``NAME-labels.png``.

        The label map has a palette of the same colours; it is 16-bit grey where a number is above 255.
        """
        assert self.numbers is not None
        index_of = {number: index for index, number in enumerate(self.class_numbers)}
        shown = {entry.number: index_of.get(entry.number, entry.number) for entry in self.shares}
        labels_path = target.with_name(f"{target.stem}-labels.png")
        if self.numbers.max() > 255:
            save_png(Image.fromarray(self.numbers), labels_path)
        else:
            labels = Image.fromarray(self.numbers.astype(np.uint8), mode="P")
            labels.putpalette(palette((shown | index_of).items()))
            save_png(labels, labels_path)
        classes = np.zeros(int(self.numbers.max()) + 1, dtype=np.int64)
        classes[list(shown)] = list(shown.values())
        entries = [(shown[entry.number], legend_text(entry.name, entry.share)) for entry in self.shares]
        save_png(with_legend(overlay(open_image(self.source), classes[self.numbers]), entries), target)


def predict(
    trained: Trained, images: Sequence[ImageSource], *, device: torch.device, precision: Precision = "fp32"
) -> Iterator[SegmentationPrediction]:
    """Yield the label map of every image at its own size, in order, with the settings of the model's evaluation.

    Args:
        trained: the segmenter.
        images: the images, or paths of their files.
        device: where the model computes.
        precision: what the backbone computes in.
    """
    info, section = trained.info, section_of(trained.info)
    transform = eval_transform(
        info.mean, info.std, max_size=section.max_size, scales=section.eval_scales, interpolation=info.interpolation
    )
    model = trained.prepared(device, len(images), precision)
    yield from predict_one_by_one(
        images,
        lambda source, opened: _predict_one(trained, model, source, opened, transform, section, device),
        SegmentationPrediction,
    )


@torch.inference_mode()
def _predict_one(
    trained: Trained,
    model: torch.nn.Module,
    source: ImageSource,
    opened: Opened,
    transform: Callable[[Image.Image], list[torch.Tensor]],
    section: SegmentationSection,
    device: torch.device,
) -> SegmentationPrediction:
    info, image = trained.info, opened()
    classes = inferer(section)(model, [scale.to(device) for scale in transform(image)], (image.height, image.width))
    numbers_of_classes = class_numbers(len(section.class_names), section.reduce_zero_label, section.label_values)
    pixels = torch.bincount(classes.flatten(), minlength=info.num_classes).tolist()
    shares = [
        ClassShare(name, numbers_of_classes[index], count, count / classes.numel())
        for index, (name, count) in enumerate(zip(info.class_names, pixels, strict=True))
        if count
    ]
    numbers = np.array(numbers_of_classes, dtype=np.uint16)[classes.cpu().numpy()]
    return SegmentationPrediction(
        source, numbers, tuple(sorted(shares, key=lambda entry: -entry.pixels)), class_numbers=numbers_of_classes
    )


@torch.inference_mode()
def predict_again(given: ReportInput, model: torch.nn.Module, index: int, image: Image.Image) -> Labels:
    """Return the class of each pixel of a validation image, (H, W), as its evaluation computed it.

    Args:
        given: the data and their recipe.
        model: prepared for the device.
        index: of the image.
        image: the image.

    Raises:
        UserError: outputs are infinite or NaN.
    """
    val_set = cast(SegmentationEvalSet, given.evaluation.val_set)
    scales = [scale.to(given.device) for scale in val_set.transform(image)]
    try:
        classes = inferer(given.recipe.segmentation)(model, scales, (image.height, image.width))
    except NonFiniteOutputsError:
        raise UserError(NonFiniteOutputsError.of(val_set.images.path(index))) from None
    labels: Labels = classes.cpu().numpy().astype(np.int32)
    return labels
