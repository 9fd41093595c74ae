"""Predictions and embeddings of many images, as Parquet files: `predict` and `embed`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvit_cli.api.trained_model import AnyPath, TrainedModel
from stvit_cli.errors import UserError
from stvit_cli.utils.cpus import limit_threads

if TYPE_CHECKING:
    from stvit_cli.analysis.prediction import BulkOptions
    from stvit_cli.models.optimize.inference import Precision
    from stvit_cli.tasks.spec import Trained

Dtype = Literal["fp32", "fp16"]
Sources = AnyPath | Sequence[AnyPath]


@dataclass(frozen=True)
class PredictionFiles:
    """A directory of Parquet files, a row for each image; ``pandas.read_parquet(output)`` reads all of them.

    Attributes:
        output: the directory.
        num_images: the rows, counted in the files.
        num_errors: those of images that could not be read or answered; their column ``error`` says why.
        num_files: the number of files.
        num_resumed: those of them that an earlier run had made.
    """

    output: Path
    num_images: int
    num_errors: int
    num_files: int
    num_resumed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit embed --json` writes them."""
        return {**asdict(self), "output": str(self.output)}


def predict(
    weights: AnyPath | TrainedModel,
    sources: Sources,
    output: AnyPath,
    *,
    top: int = 1,
    score_threshold: float = 0.5,
    dtype: Dtype = "fp32",
    precision: Precision = "fp32",
    batch_size: int | None = None,
    part_size: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> PredictionFiles:
    """Predict many images into Parquet files. The same call resumes what was ended; processes of torchrun share the work.

    A row has ``index``, ``source``, ``key`` (the name within the source) and ``error``, and lists: of a classifier ``class``,
    ``class_index`` and ``score``; of a detector its boxes too; of a segmenter the pixels of each class.

    Args:
        weights: a model of `load`, or what it takes.
        sources: folders, text files with a path on each line, image files, and tar or Parquet shards: a file, folder, pattern
            (``train-{000..127}.tar``) or address; one or several.
        output: a new directory, or that of the run to resume.
        top: a classifier: the number of classes of an image.
        score_threshold: a detector, or a classifier of several labels: leave out what has a lower score, 0 to 1.
        dtype: what scores are written in: fp32 or fp16.
        precision: what the model computes in: fp32 or bf16.
        batch_size: images in one forward pass; None: 64 of a classifier, 8 of others.
        part_size: images of a file; None: about a thousandth of all, 256 to 16384.
        say: called with a line on what is left out or resumed.
        advance: called with the number of images done and their total.

    Raises:
        UserError: sources, weights or the directory cannot be used, or 256 images in a row (a file's) cannot be read.
        Interrupted: a signal ended the run.

    Example:
        >>> import tempfile, stvit_cli
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("L", (8, 8)).save(folder / "black.png")
        >>> stvit_cli.predict("stvit-nano.digits", folder, folder / "out", top=3).num_images
        1
    """
    from stvit_cli.analysis.prediction import BulkOptions

    if top < 1:
        raise UserError(f"top: found {top}, expected 1 or more.")
    if not 0 <= score_threshold <= 1:
        raise UserError(f"score_threshold: found {score_threshold}, expected 0 to 1.")
    options = BulkOptions("predictions", top, score_threshold, dtype, precision, batch_size, part_size)
    return _write(weights, sources, output, options, say, advance)


def embed(
    weights: AnyPath | TrainedModel,
    sources: Sources,
    output: AnyPath,
    *,
    dtype: Dtype = "fp32",
    precision: Precision = "fp32",
    batch_size: int | None = None,
    part_size: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> PredictionFiles:
    """Write the features of many images into Parquet files, in the column ``embedding``; all else is as in `predict`.

    The features of an image are what the classifier computes its logits from: of stvit-s, 1024 values.

    Args:
        weights: a classifier, or a backbone without one.
        sources: see `predict`.
        output: see `predict`.
        dtype: what features are written in: fp32 or fp16.
        precision: see `predict`.
        batch_size: see `predict`.
        part_size: see `predict`.
        say: see `predict`.
        advance: see `predict`.

    Raises:
        UserError: as of `predict`; also where the weights are of a detector or a segmenter.
        Interrupted: a signal ended the run.
    """
    from stvit_cli.analysis.prediction import BulkOptions

    options = BulkOptions("embeddings", 1, 0.5, dtype, precision, batch_size, part_size)
    return _write(weights, sources, output, options, say, advance)


def _write(
    weights: AnyPath | TrainedModel,
    sources: Sources,
    output: AnyPath,
    options: BulkOptions,
    say: Callable[[str], None],
    advance: Callable[[int, int], None],
) -> PredictionFiles:
    from stvit_cli.analysis.prediction import predict_all

    choices = {"dtype": ("fp32", "fp16"), "precision": ("fp32", "bf16")}
    for name, known in choices.items():
        if getattr(options, name) not in known:
            raise UserError(f"{name}: found {getattr(options, name)!r}, expected {' or '.join(known)}.")
    for name in ("batch_size", "part_size"):
        if (getattr(options, name) or 1) < 1:
            raise UserError(f"{name}: found {getattr(options, name)}, expected 1 or more.")
    named = [sources] if isinstance(sources, str | os.PathLike) else sources
    limit_threads()
    trained, device = _opened(weights, needs_classifier=options.content == "predictions")
    found = predict_all(
        trained, [os.fspath(source) for source in named], Path(output), options, device=device, say=say, advance=advance
    )
    return PredictionFiles(found.output, found.num_images, found.num_errors, found.num_parts, found.num_resumed)


def _opened(weights: AnyPath | TrainedModel, *, needs_classifier: bool) -> tuple[Trained, str]:
    """Return the model and the device that it is for."""
    if isinstance(weights, TrainedModel):
        return weights.trained, weights.device
    from stvit_cli.tasks.loading import open_trained

    return open_trained(Path(weights), needs_classifier=needs_classifier, takes_exported=needs_classifier), "auto"
