"""Predictions of a trained classifier. B batch, C channels, H W rows and columns, K classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

from stvit_cli.data import build_eval_loader, eval_transform
from stvit_cli.data.drawing import font_for, save_png, write_text
from stvit_cli.data.images import ImageSource, explain_failure, image_path, open_image
from stvit_cli.data.prefetch import Opened, decoded_ahead
from stvit_cli.data.transforms import Transform
from stvit_cli.data.worker_deaths import DeadWorkerError
from stvit_cli.models.optimize.inference import Precision
from stvit_cli.models.weights import imagenet
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.spec import Trained
from stvit_cli.tasks.tables import table_rows
from stvit_cli.utils.class_lists import described_class

MAX_DRAWN_SIDE = 20_000  # pixels; a longer image is drawn smaller
NO_CLASS = "no class"
"""What is said of an image for which no class reaches the threshold."""
_WORKERS_FROM = 64  # images; for fewer, starting workers takes longer than decoding


@dataclass(frozen=True)
class ClassScore:
    """A class and its probability."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class ClassificationPrediction:
    """The classes of an image with the highest probabilities, in descending order; or the reason why there are none.

    Of a model with several labels for each image, all classes with a probability of at least a threshold, which may be none.
    """

    source: ImageSource
    classes: tuple[ClassScore, ...] = ()
    error: str | None = None
    is_unanswered: bool = False
    """The image was read, but the model's outputs for it are not finite; ``error`` says so."""

    @property
    def path(self) -> Path | None:
        """The image's file; None for an image that comes from memory."""
        return image_path(self.source)

    def to_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"file": None if self.path is None else str(self.path), "task": "classification"}
        if self.error is not None:
            return result | {"error": self.error}
        return result | {"classes": [asdict(score) for score in self.classes]}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each class; see `tasks.base.ImagePrediction`."""
        names = ("image", "class", "class_index", "score", "rank")
        rows = [(score.name, score.index, score.probability, rank) for rank, score in enumerate(self.classes, start=1)]
        return table_rows(self, names, rows)

    def summary(self) -> str:
        """Return the classes in one line."""
        return ", ".join(f"{described_class(score.name)} {score.probability:.1%}" for score in self.classes) or NO_CLASS

    def draw(self, target: Path) -> None:
        """Write the image with the classes on a band below it, as PNG."""
        image = open_image(self.source)
        image.thumbnail((MAX_DRAWN_SIDE, MAX_DRAWN_SIDE))
        lines = [f"{described_class(score.name)} {score.probability:.1%}" for score in self.classes] or [NO_CLASS]
        font, size = font_for(image, 24, 12, *lines)
        canvas = Image.new("RGB", (max(image.width, 160), image.height + int(1.4 * size * len(lines)) + size // 2), "white")
        canvas.paste(image)
        pen = ImageDraw.Draw(canvas)
        for number, line in enumerate(lines):
            write_text(pen, (size // 3, image.height + 1.4 * size * number), line, "black", font)
        save_png(canvas, target)


def predict(
    trained: Trained,
    images: Sequence[ImageSource],
    *,
    top: int,
    device: torch.device,
    batch_size: int = 32,
    num_workers: int = 8,
    score_threshold: float = 0.5,
    precision: Precision = "fp32",
) -> Iterator[ClassificationPrediction]:
    """Yield the prediction of every image, in order; images are decoded by workers while the model computes.

    Args:
        trained: the classifier.
        images: paths of the image files.
        top: the number of classes to return; all, where there are fewer. Not of a model with several labels for each image.
        device: where the model computes.
        batch_size: images in one forward pass.
        num_workers: the largest number of loader workers.
        score_threshold: of a model with several labels for each image, return the classes with at least this probability.
        precision: what the model computes in.
    """
    info = trained.info
    names = class_names(trained)
    transform = eval_transform(info.image_size, info.mean, info.std, info.crop_pct, info.interpolation, info.in_chans)
    workers = num_workers if len(images) >= _WORKERS_FROM else 0
    model = trained.prepared(device, len(images), precision)
    select = _Select(min(top, info.num_classes), score_threshold if info.multi_label else None)
    num_answered = 0
    while num_answered < len(images):
        rest = images[num_answered:]
        if workers:
            batches: Iterable[Batch] = build_eval_loader(
                _Images(rest, transform), _collate, batch_size, workers, pin_memory=device.type == "cuda"
            )
        else:
            batches = _batches(rest, transform, batch_size)
        for predictions in _until_a_worker_dies(batches, model, names, select, device):
            num_answered += len(predictions)
            yield from predictions
        workers = 0  # a worker was killed, usually for lack of memory: this process decodes the other images


def _until_a_worker_dies(batches: Iterable[Batch], *how: Any) -> Iterator[list[ClassificationPrediction]]:
    """Yield the predictions of each batch; stop where a worker was killed."""
    with suppress(DeadWorkerError):
        for batch in batches:
            yield _predict_batch(batch, *how)


def class_names(trained: Trained) -> Sequence[str]:
    """Return the names of the classes: those of the weights file, ImageNet's for 1000 classes without names, or indices."""
    info = trained.info
    if info.class_names:
        return info.class_names
    if info.num_classes == 1000:
        return imagenet.descriptions()
    return [str(index) for index in range(info.num_classes)]


class _Images(Dataset[tuple[ImageSource, Tensor | str]]):
    """Item i is the image's source and the image as C H W, or in its place what is wrong with the file."""

    def __init__(self, sources: Sequence[ImageSource], transform: Transform) -> None:
        self.sources, self.transform = sources, transform

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[ImageSource, Tensor | str]:
        source = self.sources[index]
        return _sample(source, partial(open_image, source), self.transform)


def _sample(source: ImageSource, opened: Opened, transform: Transform) -> tuple[ImageSource, Tensor | str]:
    try:
        return source, transform(opened())
    except Exception as error:
        return source, explain_failure(source, error)


def _batches(images: Sequence[ImageSource], transform: Transform, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of a few images, which threads decode: workers would take longer to start."""
    samples = (_sample(source, opened, transform) for source, opened in decoded_ahead(images))
    while batch := list(islice(samples, batch_size)):
        yield _collate(batch)


Batch = tuple[list[ImageSource], list[str | None], Tensor | None]


def _collate(samples: list[tuple[ImageSource, Tensor | str]]) -> Batch:
    """Return the sources, for each the error or None, and the readable images as B C H W."""
    errors = [content if isinstance(content, str) else None for _, content in samples]
    images = [content for _, content in samples if isinstance(content, Tensor)]
    return [source for source, _ in samples], errors, torch.stack(images) if images else None


@dataclass(frozen=True)
class _Select:
    """Which classes of an image are returned: the ``top`` ones, or those with a probability of at least ``threshold``."""

    top: int
    threshold: float | None

    def __call__(self, logits: Tensor) -> list[list[tuple[int, float]]]:
        """Return for each row of logits (B, K) the chosen classes and their probabilities, in descending order."""
        if self.threshold is None:
            probabilities, indices = logits.softmax(dim=-1).topk(self.top)  # both (B, top)
        else:
            probabilities, indices = logits.sigmoid().sort(dim=-1, descending=True, stable=True)  # both (B, K)
        rows = zip(indices.tolist(), probabilities.tolist(), strict=True)
        least = 0.0 if self.threshold is None else self.threshold
        return [[pair for pair in zip(*row, strict=True) if not pair[1] < least] for row in rows]


@torch.inference_mode()
def _predict_batch(
    batch: Batch, model: torch.nn.Module, names: Sequence[str], select: _Select, device: torch.device
) -> list[ClassificationPrediction]:
    sources, errors, images = batch
    rows: Iterator[tuple[list[tuple[int, float]], bool]] = iter(())
    if images is not None:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        logits = model(images).float()  # (B, K)
        rows = zip(select(logits), logits.isfinite().all(1).tolist(), strict=True)
    predictions = []
    for source, error in zip(sources, errors, strict=True):
        if error is not None:
            predictions.append(ClassificationPrediction(source, error=error))
            continue
        likeliest, is_finite = next(rows)
        if not is_finite:
            predictions.append(ClassificationPrediction(source, error=NonFiniteOutputsError.of(source), is_unanswered=True))
            continue
        classes = (ClassScore(names[index], index, probability) for index, probability in likeliest)
        predictions.append(ClassificationPrediction(source, tuple(classes)))
    return predictions
