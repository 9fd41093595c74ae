"""Writes files of results in a thread, while the model computes the next."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from stvit_cli.analysis.prediction.batches import Result
from stvit_cli.analysis.prediction.parts import Part, Parts
from stvit_cli.data.inputs import Inputs


class PartWriter:
    """Writes one file at a time; the next waits for it, so that memory holds the results of two files.

    Args:
        parts: of the output directory.
        inputs: the images, for their sources.
    """

    def __init__(self, parts: Parts, inputs: Inputs) -> None:
        self._parts, self._inputs = parts, inputs
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: Future[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown()
        if error is None:
            self._wait()

    def write(self, part: Part, results: Sequence[Result]) -> None:
        """Write the results of a part, after those before it. Raises UserError where those could not be written."""
        self._wait()
        self._last = self._pool.submit(self._write, part, results)

    def _write(self, part: Part, results: Sequence[Result]) -> None:
        indices = range(part.start, part.stop)
        keys = [key for result in results for key in result.keys]
        self._parts.write(part, keys, list(map(self._inputs.source, indices)), [result.found for result in results])

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()
