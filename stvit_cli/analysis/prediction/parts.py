"""An output directory of Parquet files, each the rows of some consecutive images.

``part-000012.parquet`` holds images 12 * P to 13 * P - 1, where P is the part size. It gets its name when it is complete and on
the disk, so what is there needs not be done again, whoever did it. ``_manifest.json`` says what the files belong to; once they
are all there and counted, also what they hold. Readers of Parquet skip names that begin with an underscore or a point.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stvit_cli.errors import UserError
from stvit_cli.tasks.bulk import BatchResult, Kind
from stvit_cli.tasks.tables import escaped
from stvit_cli.utils import strict_json
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.files import remove_leftovers, replace_file, replacing, writing
from stvit_cli.utils.text import first_few, printable

MANIFEST = "_manifest.json"
FORMAT = 1
PART = re.compile(r"part-(\d{6,})\.parquet")
KEPT = "The files that are complete stay; the same command resumes."

ABOUT_PARTS = 1000
"""The number of files that is aimed at, so that a file system and a reader have no more to do than they like."""
LEAST_PART, MOST_PART = 256, 16384
"""Limits of the images of a file: what a killed run loses, and what is kept in memory."""


def default_part_size(num_images: int) -> int:
    """Return the number of images of a file: about a thousandth of all, a multiple of 256, at most 16384.

    Example:
        >>> default_part_size(50_000), default_part_size(1_281_167), default_part_size(14_197_122)
        (256, 1536, 14336)
    """
    size = -(-num_images // (ABOUT_PARTS * LEAST_PART)) * LEAST_PART
    return min(max(size, LEAST_PART), MOST_PART)


def require_pyarrow(output: Path) -> None:
    """Raise UserError where Parquet files cannot be written."""
    if not is_installed("pyarrow"):
        raise UserError(f"{output}: Parquet needs pyarrow; install it with pip install 'stvit[tables]'.")


@dataclass(frozen=True)
class Part:
    """Some consecutive images: ``start`` to ``stop`` - 1."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True)
class Plan:
    """What an output directory is for. Everything in ``settings`` decides what its files hold.

    Attributes:
        settings: the command, the weights, the options, the number and names of the images.
        sources: what the images come from, as they were first named.
        num_images: of all files.
        part_size: of each file but the last.
        columns: of a file, beside index, source, key and error; and what their lists hold.
        half: scores and features are in half precision.
    """

    settings: Mapping[str, Any]
    sources: Sequence[str]
    num_images: int
    part_size: int
    columns: Mapping[str, Kind]
    half: bool

    @property
    def identity(self) -> str:
        """A hash of all that decides what a file holds; each file has it."""
        content = [self.settings, self.num_images, self.part_size, dict(self.columns), self.half]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    def part(self, number: int) -> Part:
        """Return the images of a file."""
        start = number * self.part_size
        return Part(number, start, min(start + self.part_size, self.num_images))

    @property
    def num_parts(self) -> int:
        return -(-self.num_images // self.part_size)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest of a run that has begun."""
        return {
            "format": FORMAT,
            **self.settings,
            "sources": [escaped(source) for source in self.sources],
            "num_images": self.num_images,
            "part_size": self.part_size,
            "columns": dict(self.columns),
            "dtype": "fp16" if self.half else "fp32",
            "complete": False,
        }


class Parts:
    """The files of an output directory."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    def missing(self) -> list[int]:
        """Return the numbers of the files that are still to be made. Damaged files, and those of another run, count as such."""
        return [number for number in range(self.plan.num_parts) if self._rows(self.plan.part(number)) is None]

    def write(self, part: Part, keys: Sequence[str], sources: Sequence[int], results: Sequence[BatchResult]) -> int:
        """Write a file atomically.

        Args:
            part: its images.
            keys: their names.
            sources: the positions of their sources.
            results: what was said of them, batch by batch.

        Returns:
            The number of images with an error.

        Raises:
            UserError: it cannot be written.
        """
        from pyarrow import parquet

        errors = [error for result in results for error in result.errors]
        table = self._table(part, keys, sources, results, errors)
        num_errors = sum(error is not None for error in errors)
        said = {"run": self.plan.identity, "start": part.start, "stop": part.stop, "errors": num_errors}
        table = table.replace_schema_metadata({"stvit": json.dumps(said)})
        path = self.folder / part.file_name
        texts = ["source", *(f"{name}.list.element" for name, kind in self.plan.columns.items() if kind == "text")]
        with writing(path, KEPT), replacing(path) as temporary, temporary.open("wb") as file:
            parquet.write_table(table, file, compression="zstd", use_dictionary=texts)
        return num_errors

    def _table(
        self,
        part: Part,
        keys: Sequence[str],
        sources: Sequence[int],
        results: Sequence[BatchResult],
        errors: Sequence[str | None],
    ) -> Any:
        import pyarrow as arrow

        half = arrow.float16() if self.plan.half else arrow.float32()
        types = {"text": arrow.string(), "int": arrow.int32(), "float": arrow.float32(), "score": half}
        names = arrow.array([escaped(source) for source in self.plan.sources], arrow.string())
        columns = {
            "index": arrow.array(np.arange(part.start, part.stop)),
            "source": arrow.DictionaryArray.from_arrays(arrow.array(np.asarray(sources, np.int32)), names),
            "key": arrow.array([escaped(key) for key in keys], arrow.string()),
        }
        lengths = np.concatenate([result.lengths for result in results])
        if lengths.sum() >= 2**31:
            raise UserError(
                f"{part.file_name}: more than 2147483647 values, what a list of Parquet holds. Give a smaller part_size."
            )
        offsets = arrow.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        is_empty = arrow.array([error is not None for error in errors])
        for name, kind in self.plan.columns.items():
            chunks = [_values(result.columns[name], types[kind]) for result in results]
            columns[name] = arrow.ListArray.from_arrays(offsets, arrow.concat_arrays(chunks), mask=is_empty)
        columns["error"] = arrow.array([escaped(error) for error in errors], arrow.string())
        return arrow.table(columns)

    def count(self) -> list[dict[str, Any]]:
        """Return the rows and errors of every file.

        Raises:
            UserError: a file is missing, holds other images, or is one too many: named, as nothing may be missing or doubled.
        """
        counted, wrong = [], []
        for number in range(self.plan.num_parts):
            part = self.plan.part(number)
            said = self._rows(part)
            if said is None:
                wrong.append(part.file_name)
            else:
                counted.append({"file": part.file_name, "rows": len(part), "errors": said["errors"]})
        wrong += self._superfluous()
        if wrong:
            raise UserError(
                f"{self.folder}: {len(wrong)} files are missing, damaged or too many: {first_few(wrong)}.\n"
                "The same command mends it."
            )
        return counted

    def remove_superfluous(self) -> None:
        """Remove files beyond the last one: a reader of the directory would take their rows for results."""
        for name in self._superfluous():
            (self.folder / name).unlink(missing_ok=True)

    def _superfluous(self) -> list[str]:
        expected = {self.plan.part(number).file_name for number in range(self.plan.num_parts)}
        found = (path.name for path in self.folder.iterdir())
        return sorted(name for name in found if PART.fullmatch(name) and name not in expected)

    def _rows(self, part: Part) -> dict[str, Any] | None:
        """Return what the file of a part says of itself; None where it is not there, damaged, or of something else."""
        from pyarrow import parquet

        path = self.folder / part.file_name
        try:
            with path.open("rb") as file:
                footer = parquet.read_metadata(file)
            said: dict[str, Any] = json.loads((footer.metadata or {}).get(b"stvit", b"{}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # pyarrow's errors are both
            return None
        is_ours = (said.get("run"), said.get("start"), said.get("stop")) == (self.plan.identity, part.start, part.stop)
        return said if is_ours and footer.num_rows == len(part) else None


def _values(values: Any, kind: Any) -> Any:
    """Return values as an array of Arrow."""
    import pyarrow as arrow

    if kind == arrow.string():
        return arrow.array([escaped(text) for text in values], kind)
    array = np.asarray(values)
    return arrow.array(array.astype(kind.to_pandas_dtype()), kind)


def open_output(folder: Path, plan: Plan) -> tuple[Plan, Parts]:
    """Prepare an output directory: a new or empty one, or that of an earlier run of the same. No other process may use it.

    Args:
        folder: the directory, which exists.
        plan: of the run.

    Returns:
        The plan with the names of its sources as they were first given, and the files.

    Raises:
        UserError: it holds something else, or results with other settings.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            raise UserError(
                f"{folder} holds other files, such as {printable(others[0])}; expected a new or empty directory, "
                "or that of an earlier run, with its _manifest.json."
            )
        with writing(manifest):
            replace_file(manifest, strict_json.dumps(plan.to_dict(), indent=1).encode())
        return plan, Parts(folder, plan)
    earlier = strict_json.read_object(manifest)
    _require_same(folder, earlier, plan.to_dict())
    if earlier.get("sources") != plan.to_dict()["sources"]:  # the same images by another path, as of another machine
        plan = replace(plan, sources=tuple(map(str, earlier["sources"])))
    parts = Parts(folder, plan)
    with writing(folder, KEPT):
        remove_leftovers(folder)
        parts.remove_superfluous()
    return plan, parts


def earlier_part_size(folder: Path) -> int | None:
    """Return the part size of the run whose directory it is; None where there is none."""
    size = strict_json.read_object(folder / MANIFEST).get("part_size")
    return size if isinstance(size, int) and size > 0 else None


def complete(parts: Parts) -> dict[str, Any]:
    """Count all files, write it into the manifest and return it. Raises UserError as `Parts.count` does."""
    files = parts.count()
    errors = sum(file["errors"] for file in files)
    content = parts.plan.to_dict() | {"complete": True, "rows": parts.plan.num_images, "errors": errors, "parts": files}
    manifest = parts.folder / MANIFEST
    with writing(manifest, KEPT):
        replace_file(manifest, strict_json.dumps(content, indent=1).encode())
    return content


_OF_THE_RUN = ("sources", "complete")
"""Entries of a manifest that may differ when a run is resumed."""


def _require_same(folder: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in now.items():
        if key not in _OF_THE_RUN and earlier.get(key) != value:
            was, given = (printable(str(each))[:100] for each in (earlier.get(key), value))
            raise UserError(
                f"{folder} holds results of another run: {key} was {was}, now {given}.\n"
                "Give the same weights, images and options to resume it, or another directory: output=DIR"
            )
