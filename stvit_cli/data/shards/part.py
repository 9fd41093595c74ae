"""What the index knows of one shard: where its images lie, how long they are, and their labels. Imports no torch."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_LABEL = -1


@dataclass(frozen=True)
class Part:
    """The images of one shard.

    Attributes:
        positions: of each image, (N,): of tar in blocks of 512 bytes, of Parquet the row group.
        sizes: of tar the bytes of the image, of Parquet its row in the row group, (N,).
        codes: of each image, the position of its label in ``labels``, -1 without one, (N,).
        labels: each label of the shard once: where it is from (``label``, or ``folder`` for the folder in the tar file), text.
        long_names: member names that are not in the header just before the image, by the image's position in the shard.
        names: class names that the file itself has, in the order of their numbers.
        problem: what is damaged; the images before it are good. "" where nothing is.
        notes: what was left out.
    """

    positions: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    codes: NDArray[np.int32]
    labels: tuple[tuple[str, str], ...] = ()
    long_names: dict[int, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    def to_bytes(self) -> bytes:
        """Return the part as a line of JSON and three arrays."""
        header = {
            "images": len(self),
            "labels": self.labels,
            "long_names": {str(number): name for number, name in self.long_names.items()},
            "names": self.names,
            "problem": self.problem,
            "notes": self.notes,
        }
        arrays = (self.positions.astype("<u4"), self.sizes.astype("<u4"), self.codes.astype("<i4"))
        return json.dumps(header).encode() + b"\n" + b"".join(each.tobytes() for each in arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> Part:
        """Return what `to_bytes` wrote. Raises ValueError, KeyError or TypeError where it is something else."""
        line, _, body = content.partition(b"\n")
        header: dict[str, Any] = json.loads(line)
        count = int(header["images"])
        if len(body) != 12 * count:
            raise ValueError("of another length")
        columns = [np.frombuffer(body, dtype="<u4", count=count, offset=4 * count * column) for column in range(3)]
        return cls(
            columns[0].astype(np.uint32),
            columns[1].astype(np.uint32),
            columns[2].view("<i4").astype(np.int32),
            tuple((str(kind), str(text)) for kind, text in header["labels"]),
            {int(number): str(name) for number, name in header["long_names"].items()},
            tuple(map(str, header["names"])),
            str(header["problem"]),
            tuple(map(str, header["notes"])),
        )


class PartBuilder:
    """A part that grows image by image."""

    def __init__(self) -> None:
        self.positions, self.sizes, self.codes = array("Q"), array("Q"), array("q")
        self.labels: dict[tuple[str, str], int] = {}
        self.long_names: dict[int, str] = {}

    def add(self, position: int, size: int, label: tuple[str, str] | None) -> None:
        """Add an image with its label, None without one."""
        self.positions.append(position)
        self.sizes.append(size)
        self.codes.append(NO_LABEL if label is None else self.labels.setdefault(label, len(self.labels)))

    def finished(self, *, problem: str = "", notes: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Part:
        """Return the part."""
        return Part(
            np.array(self.positions, dtype=np.uint32),
            np.array(self.sizes, dtype=np.uint32),
            np.array(self.codes, dtype=np.int32),
            tuple(self.labels),
            self.long_names,
            names,
            problem,
            notes,
        )
