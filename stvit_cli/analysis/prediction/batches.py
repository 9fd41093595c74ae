"""Batches of the images of some files, decoded by loader processes ahead of the model, and their results, file by file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stvit_cli.analysis.prediction.parts import Part
from stvit_cli.data.byte_images import ByteImages
from stvit_cli.data.images import UnreadableImageError, decode_image, explain_failure
from stvit_cli.data.inputs import Inputs
from stvit_cli.data.loader import BESIDE_THE_STEP, Loader
from stvit_cli.data.worker_deaths import DeadWorkerError
from stvit_cli.errors import UserError
from stvit_cli.tasks.bulk import BatchResult, BulkPredictor


@dataclass(frozen=True)
class Failed:
    """Why an image has no sample; ``is_damaged``: what its file holds is no image, rather than that it cannot be read."""

    message: str
    is_damaged: bool


class Samples(Dataset[tuple[str, Any]]):
    """Item i is the key of image i, and the image prepared for the model, or why it is not."""

    def __init__(self, inputs: Inputs, predictor: BulkPredictor) -> None:
        self.inputs, self.predictor = inputs, predictor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        name = ""
        try:
            name = self.inputs.key(index)  # of a tar shard, it is read from there
            return name, self.predictor.sample(decode_image(self.inputs.read(index), name))
        except Exception as error:
            return name, Failed(explain_failure(name or f"image {index}", error), isinstance(error, UnreadableImageError))


@dataclass(frozen=True)
class Result:
    """What is said of the images of a batch, with their keys."""

    keys: list[str]
    found: BatchResult


@dataclass(frozen=True)
class Batch:
    """Some images of a part: ``failed`` has an entry for each, None where it is among ``samples``."""

    keys: list[str]
    failed: list[Failed | None]
    samples: Any

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory; torch's DataLoader calls this."""
        return replace(self, samples=self.samples.pin_memory()) if isinstance(self.samples, ByteImages) else self


class PartPredictor:
    """Predicts the images of the parts that this process takes.

    Args:
        inputs: all images.
        predictor: prepares and predicts them.
        batch_size: images of a batch. None spans two parts, so that what is in it does not depend on who takes what.
        claims: the parts, taken as they are needed.
        device: where the model runs.
    """

    def __init__(
        self, inputs: Inputs, predictor: BulkPredictor, batch_size: int, claims: Iterator[Part], device: torch.device
    ) -> None:
        self.inputs, self.predictor, self.batch_size, self.device = inputs, predictor, batch_size, device
        self._claims = claims
        self._unfinished: dict[int, Part] = {}
        self._loading: deque[tuple[Part, range]] = deque()

    def run(self, num_workers: int, stopped: Callable[[], object]) -> Iterator[tuple[Part, list[Result]]]:
        """Yield each part with the results of its batches.

        Args:
            num_workers: loader processes; where one is killed, this process decodes what is left.
            stopped: asked after each batch; what is true ends the work.

        Raises:
            UserError: no image of a part could be read or answered, though their files may be intact.
        """
        while True:
            on_gpu = self.device.type == "cuda"
            loader = Loader(
                Samples(self.inputs, self.predictor),
                self._ranges(),
                self.collate,
                num_workers,
                pin_memory=on_gpu,
                niceness=0 if on_gpu else BESIDE_THE_STEP,
            )
            try:
                yield from self._predict(loader, stopped)
                return
            except DeadWorkerError:
                num_workers = 0

    def collate(self, items: list[tuple[str, Any]]) -> Batch:
        """Make a batch of items of `Samples`, in a loader process."""
        failed = [sample if isinstance(sample, Failed) else None for _, sample in items]
        samples = [sample for _, sample in items if not isinstance(sample, Failed)]
        return Batch([key for key, _ in items], failed, self.predictor.collate(samples) if samples else None)

    def _ranges(self) -> Iterator[range]:
        """Yield the images of each batch: first those of parts that a killed worker left unfinished."""
        again = list(self._unfinished.values())
        self._loading.clear()
        for part in chain(again, self._claims):
            self._unfinished[part.number] = part
            for start in range(part.start, part.stop, self.batch_size):
                indices = range(start, min(start + self.batch_size, part.stop))
                self._loading.append((part, indices))
                yield indices

    def _predict(self, loader: Loader, stopped: Callable[[], object]) -> Iterator[tuple[Part, list[Result]]]:
        """Yield each part; a batch is started before the results of the last one are waited for."""
        results: list[Result] = []
        last: Callable[[], Iterator[tuple[Part, list[Result]]]] = lambda: iter(())  # noqa: E731
        with closing(iter(loader)) as loaded:
            for batch in loaded:
                part, indices = self._loading.popleft()
                outputs = None if batch.samples is None else self.predictor.start(batch.samples)
                yield from last()
                last = partial(self._finished, part, indices.stop, batch, outputs, results)
                if stopped():
                    return
            yield from last()

    def _finished(
        self, part: Part, stop: int, batch: Batch, outputs: Any, results: list[Result]
    ) -> Iterator[tuple[Part, list[Result]]]:
        """Add the results of a batch, and yield the part where it is the last one."""
        results.append(Result(batch.keys, self._result(batch, outputs)))
        if stop == part.stop:
            self._require_some(part, results)
            del self._unfinished[part.number]
            yield part, list(results)
            results.clear()

    def _result(self, batch: Batch, outputs: Any) -> BatchResult:
        """Return the results of a batch, those of failed images among them."""
        read = [key for key, failure in zip(batch.keys, batch.failed, strict=True) if failure is None]
        if outputs is None:
            found = BatchResult(np.zeros(0, np.int64), {name: [] for name in self.predictor.columns}, [])
        else:
            found = self.predictor.finish(outputs, read.__getitem__)
        if len(read) == len(batch.keys):
            return found
        lengths = np.zeros(len(batch.keys), np.int64)
        lengths[[failure is None for failure in batch.failed]] = found.lengths
        answered = iter(found.errors)
        errors = [next(answered) if failure is None else failure.message for failure in batch.failed]
        num_damaged = sum(failure is not None and failure.is_damaged for failure in batch.failed)
        return BatchResult(lengths, found.columns, errors, num_damaged)

    def _require_some(self, part: Part, results: list[Result]) -> None:
        """Raise UserError where all images of a part failed, and not because they are damaged: so will the next ones."""
        errors = [error for result in results for error in result.found.errors if error is not None]
        if len(errors) < len(part) or sum(result.found.num_damaged for result in results) == len(part):
            return
        raise UserError(
            f"None of {len(part)} images in a row could be used; the first: {errors[0]}\n"
            "The files that are complete stay; the same command resumes."
        )
