"""The results of the functions of this package. ``to_dict()`` gives what the command's ``--json`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stvit_cli.tasks.predictions import Predictions


@dataclass(frozen=True)
class TrainingResult:
    """A finished training run.

    Attributes:
        run_dir: the run directory, for `resume`, `evaluate` and `load`.
        metrics: the metrics of the best weights by name, those of the last evaluation as ``last_NAME``, and ``best_epoch``,
            ``epochs``, ``steps`` and ``seconds``; with ``schedule.patience`` also ``stopped_early``, with ``data.test_split``
            those of the test set as ``test_NAME``.
    """

    run_dir: Path
    metrics: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as `stvit train --json` writes them."""
        return dict(self.metrics)


@dataclass(frozen=True)
class DryRunResult:
    """What a training run would be, from one real step, or from a few images where a step would take long.

    Attributes:
        global_batch_size: images of an optimizer step, of all processes together.
        batch_size_per_device: images a device holds at a time.
        lr_by_epoch: the learning rate at the start of some epochs, counted from 0.
        peak_memory_bytes: of the GPU; of the process where there is none; None where the system does not count it (Windows).
        data_wait: fraction of the step spent waiting for data.
        expected_seconds: of the training, without its evaluations.
        data_problems: what looks wrong with the data.
        summary: lines that say all of this.
        state_bytes: what weights, gradients and moments take of each device.
        head: of a classifier of 1000 classes or more: ``classes``, ``params``, ``logits_bytes`` and ``seconds`` of an image.
        activation_bytes_per_image: where a step was estimated; None where it was taken.
        read_seconds_per_image: the same, of one loader worker.
        trial_images: the images that such an estimate is judged by.
    """

    global_batch_size: int
    batch_size_per_device: int
    grad_accum_steps: int
    processes: int
    steps_per_epoch: int
    steps: int
    lr_by_epoch: Mapping[str, float]
    params: int
    params_trained: int
    peak_memory_bytes: int | None
    loss: float
    step_seconds: float
    images_per_second: float
    data_wait: float
    expected_seconds: float
    notes: Sequence[str]
    data_problems: Sequence[str]
    summary: Sequence[str]
    state_bytes: Mapping[str, int] = field(default_factory=dict)
    head: Mapping[str, float] | None = None
    activation_bytes_per_image: int | None = None
    read_seconds_per_image: float | None = None
    trial_images: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields but the summary, as `stvit train --dry-run --json` writes them."""
        return {name: value for name, value in asdict(self).items() if name != "summary"}


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of a model on a data set.

    Attributes:
        task: classification, detection or segmentation.
        metrics: by name, accuracies and average precisions in percent, with ``num_images``.
        predictions: what the model said of every image, with the truth; ``write(path)`` makes a CSV or Parquet file of it. Of
            several processes, on the first one alone.
        precision: what the model computed in: fp32 or bf16.
    """

    task: str
    metrics: Mapping[str, float]
    predictions: Predictions | None = field(default=None, repr=False, compare=False)
    precision: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """Return task, precision and metrics as `stvit eval --json` writes them."""
        return {"task": self.task, "precision": self.precision, **self.metrics}


@dataclass(frozen=True)
class ExportResult:
    """A file that `TrainedModel.export` wrote.

    Attributes:
        file: its path.
        model: the architecture's name.
        size_bytes: its size; of OpenVINO, with the ``.bin`` file's.
        details: ``format`` and ``precision``; of all but weights also ``largest_difference``: by checked size, the largest
            difference from the model's outputs, as a fraction of the largest (of int8, before it is quantized), and of a detector
            ``num_compared`` and ``unmatched``: how many of its detections both find, and the share of the others; of ONNX and
            OpenVINO also ``opset``, ``num_nodes`` and ``num_nodes_traced``; of int8 the fields of
            `analysis.export_int8.Int8Report`: layers in float32, calibration, metrics before and after.
    """

    file: Path
    model: str
    size_bytes: int
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit export --json` writes them."""
        return {"file": str(self.file), "model": self.model, "size_bytes": self.size_bytes, **self.details}
