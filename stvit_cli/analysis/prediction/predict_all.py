"""Predict millions of images into an output directory of Parquet files; see `parts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch

from stvit_cli.analysis.prediction import parts as parts_of
from stvit_cli.analysis.prediction.batches import PartPredictor
from stvit_cli.analysis.prediction.parts import Parts, Plan
from stvit_cli.analysis.prediction.writer import PartWriter
from stvit_cli.data.inputs import Inputs, open_inputs
from stvit_cli.data.pixels import library
from stvit_cli.engine.distributed import World, joined_world
from stvit_cli.engine.kept_evaluation import file_hash
from stvit_cli.engine.run_lock import RunLock
from stvit_cli.engine.signals import StopRequest, stop_request
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.models.optimize.inference import Precision
from stvit_cli.tasks import registry
from stvit_cli.tasks.bulk import BulkPredictor
from stvit_cli.tasks.exported import files_of
from stvit_cli.tasks.spec import PredictOptions, Trained
from stvit_cli.utils.files import writing
from stvit_cli.utils.text import printable

MANY_IMAGES = 1000
"""From this number on, resizing is compiled on the machine's first use, which takes two seconds."""


@dataclass(frozen=True)
class BulkOptions:
    """How many images are predicted.

    Attributes:
        content: predictions, or the features before the classifier.
        top: of a classifier, the number of classes of an image.
        score_threshold: of a detector, and of a classifier of several labels: what has a lower score is left out.
        dtype: what scores and features are written in.
        precision: what the model computes in.
        batch_size: images of a batch; None: by the task.
        part_size: images of a file; None: `parts.default_part_size`, or that of the run that is resumed.
        num_workers: loader processes of each process, limited to its CPUs; 0: decode in this process.
    """

    content: Literal["predictions", "embeddings"] = "predictions"
    top: int = 1
    score_threshold: float = 0.5
    dtype: Literal["fp32", "fp16"] = "fp32"
    precision: Precision = "fp32"
    batch_size: int | None = None
    part_size: int | None = None
    num_workers: int = 64


@dataclass(frozen=True)
class BulkResult:
    """What an output directory holds, the same on every process.

    Attributes:
        output: the directory.
        num_images: rows of all files together.
        num_errors: those of images that could not be read or answered.
        num_parts: the number of files.
        num_resumed: those of them that an earlier run had made.
    """

    output: Path
    num_images: int
    num_errors: int
    num_parts: int
    num_resumed: int


def predict_all(
    trained: Trained,
    sources: Sequence[str],
    output: Path,
    options: BulkOptions,
    *,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> BulkResult:
    """Predict all images of some sources, and count the rows in the end. Under torchrun the processes share the work.

    Each process takes the next file that nobody has made, so a slow one delays the others by a file at most. A run that was ended
    in any way is resumed by the same call, with any number of processes.

    Args:
        trained: the model.
        sources: see `data.inputs.open_inputs`.
        output: the directory of the files.
        options: what is written.
        device: auto, cpu or cuda.
        say: is told, on rank 0, what is left out and what is resumed.
        advance: called on rank 0 with the number of images done and their total, of this run.

    Raises:
        UserError: sources or the directory cannot be used, or the images of a whole file could not be read or answered.
        Interrupted: a signal ended the run.
    """
    parts_of.require_pyarrow(output)
    with joined_world(device) as world, stop_request() as stop:
        locks: list[RunLock] = []
        try:
            predictor = _predictor(trained, options, world.device)

            def prepare() -> tuple[Inputs, Plan, list[int]]:
                inputs = open_inputs(sources, say)
                locks.append(_locked(output))
                if locks[0].is_shared:
                    say(f"Warning: the file system of {output} has no locks; start no other run in it.")
                plan, parts = parts_of.open_output(output, _plan(trained, inputs, output, options, predictor))
                missing = parts.missing()
                if len(missing) < plan.num_parts:
                    say(f"{output}: {plan.num_parts - len(missing)} of {plan.num_parts} files are there already.")
                return inputs, plan, missing

            inputs, plan, missing = world.on_main(prepare)
            parts, count = Parts(output, plan), world.shared_counter()
            done, total = 0, sum(len(plan.part(number)) for number in missing)
            with world.working():
                claims = (plan.part(missing[number]) for number in takewhile(len(missing).__gt__, iter(count, None)))
                work = PartPredictor(inputs, predictor, options.batch_size or predictor.batch_size, claims, world.device)
                if total >= MANY_IMAGES:
                    library()  # before there are loader processes, which share it
                with PartWriter(parts, inputs) as writer:
                    for part, results in work.run(options.num_workers, lambda: stop.number):
                        writer.write(part, results)
                        done += len(part)
                        if world.is_main:
                            advance(min(done * world.size, total), total)
                if stop.number:
                    raise Interrupted(stop.number)
            _meet(world, stop)
            content = world.on_main(lambda: parts_of.complete(parts))
        finally:
            for lock in locks:
                lock.release()
    return BulkResult(output, content["rows"], content["errors"], plan.num_parts, plan.num_parts - len(missing))


def _meet(world: World, stop: StopRequest) -> None:
    """Wait until the files of all processes are on the disk.

    Raises:
        Interrupted: a signal ended the others meanwhile.
        UserError: another process has ended.
    """
    try:
        world.meet()
    except UserError:
        if stop.number:
            raise Interrupted(stop.number) from None
        raise


def _predictor(trained: Trained, options: BulkOptions, device: torch.device) -> BulkPredictor:
    how = PredictOptions(top=options.top, score_threshold=options.score_threshold, precision=options.precision)
    if options.content == "embeddings":
        from stvit_cli.tasks.classification.bulk import FeaturePredictor, without_classifier

        return FeaturePredictor(without_classifier(trained), how, device, half=options.dtype == "fp16")
    build = registry.get(trained.info.task).bulk_predictor
    if build is None:
        raise UserError(f"Task {trained.info.task} has no predictions of many images.")
    return build(trained, how, device)


def _plan(trained: Trained, inputs: Inputs, output: Path, options: BulkOptions, predictor: BulkPredictor) -> Plan:
    settings: dict[str, Any] = {
        "content": options.content,
        "weights": {"model": trained.info.model, "task": trained.info.task, "blake2b": file_hash(*files_of(trained.path))},
        "images": inputs.fingerprint(),
        "precision": options.precision,
    }
    if options.content == "predictions":
        if trained.info.task == "classification" and not trained.info.multi_label:
            settings["top"] = options.top
        elif trained.info.task != "segmentation":
            settings["score_threshold"] = options.score_threshold
    size = options.part_size or parts_of.earlier_part_size(output) or parts_of.default_part_size(len(inputs))
    return Plan(settings, tuple(inputs.sources), len(inputs), size, predictor.columns, options.dtype == "fp16")


def _locked(output: Path) -> RunLock:
    """Make the output directory and lock it."""
    if output.is_file():
        raise UserError(f"{printable(str(output))}: a file, where a directory is expected.")
    with writing(output, advice=""):
        output.mkdir(parents=True, exist_ok=True)
    return RunLock.acquire(output)
