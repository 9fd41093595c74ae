"""What int8 needs beside a model: images to calibrate on, and its accuracy before and after.

Shapes: N images, C channels, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from stvit_cli import tasks
from stvit_cli.data import eval_transform
from stvit_cli.data.image_paths import list_images
from stvit_cli.data.images import explain_failure
from stvit_cli.data.prefetch import decoded_ahead
from stvit_cli.engine.distributed import World
from stvit_cli.engine.evaluation import evaluate_models
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.quantize import Floats, TooMuchLossError, open_session, quantize
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.base import Evaluation
from stvit_cli.tasks.loading import Trained
from stvit_cli.utils.text import first_line, printable

NUM_CALIBRATED = 256
"""The largest number of images that are calibrated on."""
NUM_EVALUATED = 2000
"""The largest number of validation images on which the accuracy is measured."""


@dataclass(frozen=True)
class Calibration:
    """Images to calibrate on.

    Attributes:
        images: as the model takes them, (N, C, S, S).
        source: where they are from: a folder, or ``training images``.
        recipe: of the run whose validation data the accuracy is measured on; None: there is no run.
    """

    images: Floats
    source: str
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Int8Report:
    """What is known of an int8 file; also in its metadata.

    Attributes:
        num_layers: number of convolutions and linear layers.
        float_layers: those that stay in float32; see `models.optimize.quantize.Quantized`.
        calibrated_on: where the calibration images are from.
        num_calibration_images: their number.
        snr_db: of the logits on the calibration images: power over the power of their error, in decibels.
        agreement: fraction of the calibration images with the same prediction.
        metrics: of ``fp32`` and ``int8`` on the validation images, with ``num_images``; empty where there are none.
    """

    num_layers: int
    float_layers: dict[str, float]
    calibrated_on: str
    num_calibration_images: int
    snr_db: float
    agreement: float
    metrics: dict[str, dict[str, float]]


def find_calibration(trained: Trained, folder: Path | None, say: Callable[[str], None] = lambda line: None) -> Calibration:
    """Read at most `NUM_CALIBRATED` images, evenly spaced: of a folder, or the training images of the model's run.

    Args:
        trained: a classifier.
        folder: of images, with or without folders by class; None: the data of the run whose weights these are.
        say: called with a line on images that are left out.

    Raises:
        UserError: there are no such images, or none can be read.
    """
    recipe = _recipe_of_run(trained)
    if folder is not None:
        paths = list_images([folder], say)
        chosen = [paths[index] for index in _evenly_spaced(len(paths), NUM_CALIBRATED)]
        opened: Iterator[tuple[Any, Callable[[], Any]]] = decoded_ahead(chosen)
        return Calibration(_prepared(trained, opened, len(chosen), say), str(folder), recipe)
    if recipe is None:
        raise UserError(
            f"{trained.path} is not in the directory of a run, so there are no images to calibrate int8 on.\n"
            "Give a folder of images like those that it is for: calibrate=FOLDER (--calibrate FOLDER)."
        )
    training_images = tasks.registry.get(trained.info.task).training_images
    assert training_images is not None, "only classifiers are exported"
    try:
        images = training_images(recipe)
    except UserError as error:
        advice = "Give other images to calibrate int8 on: calibrate=FOLDER (--calibrate FOLDER)."
        raise UserError(f"The images of the run cannot be read. {error}\n{advice}") from None
    indices = _evenly_spaced(len(images), NUM_CALIBRATED)
    by_index = ((images.path(index), lambda index=index: images.open(index)) for index in indices)
    return Calibration(_prepared(trained, by_index, len(indices), say), "training images", recipe)


def quantize_and_measure(
    trained: Trained, source: Path, target: Path, calibration: Calibration, say: Callable[[str], None]
) -> Int8Report:
    """Quantize an ONNX file, and measure its accuracy beside the original's on the validation images of the run.

    Args:
        trained: the model of the file.
        source: a file in float32.
        target: the file in int8; see `quantize`.
        calibration: see `find_calibration`.
        say: called with a line on what is done next.

    Raises:
        UserError: int8 loses too much.
    """
    say(f"Calibrating int8 on {len(calibration.images)} images ({calibration.source}).")
    try:
        found = quantize(source, target, calibration.images, multi_label=trained.info.multi_label, say=say)
    except TooMuchLossError as error:
        raise UserError(f"{trained.path}: int8 loses too much of this model: {error}. Use precision bf16.") from None
    return Int8Report(
        found.num_layers,
        found.float_layers,
        calibration.source,
        len(calibration.images),
        found.fidelity.snr_db,
        found.fidelity.agreement,
        _accuracies(trained, calibration.recipe, {"fp32": source, "int8": target}, say),
    )


def _recipe_of_run(trained: Trained) -> Recipe | None:
    """Return the recipe of the run that a weights file lies in, if it does."""
    saved = RunDir(trained.path.parent).recipe
    return recipe_io.load(saved) if saved.is_file() else None


def _evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices 0 to ``count`` - 1.

    >>> _evenly_spaced(10, 4), _evenly_spaced(2, 4)
    ([0, 2, 5, 7], [0, 1])
    """
    return [index * count // min(count, most) for index in range(min(count, most))]


def _prepared(
    trained: Trained, opened: Iterator[tuple[Any, Callable[[], Any]]], count: int, say: Callable[[str], None]
) -> Floats:
    """Return the images that can be read as (N, C, S, S)."""
    info = trained.info
    transform = eval_transform(info.image_size, info.mean, info.std, info.crop_pct, info.interpolation, info.in_chans)
    images, failures = [], []
    for source, image in opened:
        try:
            images.append(transform(image()))
        except Exception as error:
            failures.append(explain_failure(source, error))
    if not images:
        raise UserError(f"None of the {count} images to calibrate int8 on can be read. The first: {failures[0]}")
    if failures:
        say(f"{len(failures)} of {count} images cannot be read and are left out. The first: {printable(failures[0])}")
    return torch.stack(images).numpy()


def _accuracies(
    trained: Trained, recipe: Recipe | None, files: dict[str, Path], say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Return the metrics of each file on the validation images of a run; nothing where these cannot be read."""
    if recipe is None:
        return {}
    try:
        whole = tasks.build_evaluation(recipe, trained.info)
        num_images = len(whole.val_set)  # type: ignore[arg-type]
        chosen = _evenly_spaced(num_images, NUM_EVALUATED)
        say(f"Evaluating fp32 and int8 on {len(chosen)} of {num_images} validation images.")
        models: dict[str, nn.Module] = {name: OnnxModel(path) for name, path in files.items()}
        found = evaluate_models(
            _Part(whole, chosen), models, World(torch.device("cpu")), batch_size=32, num_workers=min(recipe.data.num_workers, 2)
        )
    except UserError as error:
        say(f"The accuracy is not measured: {first_line(error)}")
        return {}
    assert found is not None
    return {name: found[name].metrics for name in files}


class OnnxModel(nn.Module):
    """An ONNX file as a module that maps images (B, C, H, W) to logits (B, K), on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = open_session(path)

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self.session.run(["logits"], {"images": np.ascontiguousarray(images.numpy())})
        return torch.from_numpy(logits)


class _Part:
    """An evaluation on some of its images; see `tasks.base.Evaluation`."""

    def __init__(self, whole: Evaluation, indices: Sequence[int]) -> None:
        self.name, self.val_set = whole.name, Subset(whole.val_set, indices)
        self.collate_eval, self.evaluator = whole.collate_eval, whole.evaluator
        self.describe_eval, self.check_data = whole.describe_eval, whole.check_data
