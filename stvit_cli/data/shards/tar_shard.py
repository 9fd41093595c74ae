"""Tar shards in WebDataset's layout: the headers of one file read in order. Imports no torch.

Members with the same name up to the first dot are one sample: ``000123.jpg`` and ``000123.cls`` (a number, or a name) or
``000123.json`` (an object with the label in a field).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from stvit_cli.data.images import ENDINGS
from stvit_cli.data.shards.part import Part, PartBuilder
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable, shortened

BLOCK = 512
ZEROS = bytes(BLOCK)
LABEL_FIELDS = ("label", "cls", "class", "class_id", "target")
"""Fields of ``.json`` in which a label is looked for unless the recipe names one."""
MAX_JSON = 16 << 20
MAX_LABEL = 4096
LARGEST = 1 << 32
TRAILER = 1 << 16
"""Bytes after the end mark in which more members are looked for."""

ReadRange = Callable[[int, int], bytes]
"""Returns the bytes of a range: position, length."""


class _DamagedError(Exception):
    """The file is no tar file from here on."""


class Window:
    """A part of a file in memory, so that headers that lie close together are one read."""

    def __init__(self, read: ReadRange, block: int) -> None:
        self.read, self.block = read, block
        self.start, self.content = 0, b""

    def at(self, start: int, length: int) -> bytes:
        """Return a range, shorter where the file ends."""
        first = start - self.start
        if first < 0 or first + length > len(self.content):
            self.start, self.content, first = start, self.read(start, max(length, self.block)), 0
        return self.content[first : first + length]


@dataclass
class Member:
    """A file in a tar file."""

    name: str
    kind: bytes
    position: int
    """Of its first byte."""
    size: int
    is_long: bool
    """The name is not in the header just before the content, or not all of it."""


class TarMembers:
    """The members of a tar file, in order.

    Args:
        window: of the file.
        size: of the file, in bytes.
    """

    def __init__(self, window: Window, size: int) -> None:
        self.window, self.size, self.position = window, size, 0

    def next(self) -> Member | None:
        """Return the next member, None at the end mark.

        Raises:
            _DamagedError: the file is cut short or damaged.
        """
        long_name: str | None = None
        long_size: int | None = None
        while True:
            header = self.window.at(self.position, BLOCK)
            if len(header) < BLOCK:
                where = "in a header" if header else "without the end mark of a tar file"
                raise _DamagedError(f"it ends {where}, after {self.size} bytes: probably cut short")
            if not header[0] and header == ZEROS:
                self._require_end()
                return None
            size = _parse_header(header, self.position) if long_size is None else long_size
            kind, start = header[156:157], self.position + BLOCK
            if start + size > self.size:
                raise _DamagedError(
                    f"cut short: {printable(header_name(header))} goes to byte {start + size}, but the file has {self.size}"
                )
            self.position = start + -(-size // BLOCK) * BLOCK
            if kind == b"L":
                long_name = self.window.at(start, min(size, MAX_LABEL)).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif kind == b"x":
                path, long_size = _pax(self.window.at(start, min(size, 1 << 20)))
                long_name = path if path is not None else long_name
            elif kind not in (b"g", b"K"):
                name = header_name(header)
                is_long = long_name is not None and long_name != name
                return Member(long_name if long_name is not None else name, kind, start, size, is_long)

    def _require_end(self) -> None:
        """Refuse members after the end mark, such as two tar files one behind the other have."""
        rest = self.window.at(self.position, min(self.size - self.position, TRAILER))
        if rest.strip(b"\0"):
            raise _DamagedError(
                f"there are bytes after its end mark, at byte {self.position} of {self.size}: tar files one behind the other, or "
                "a gap"
            )


def header_name(header: bytes) -> str:
    """Return the name in a header of 512 bytes."""
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _parse_header(header: bytes, position: int) -> int:
    """Return the size of a member. Raises _DamagedError where this is no header."""
    field = header[124:136]
    try:
        size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.rstrip(b" \0") or b"0", 8)
        if size < 0:
            raise ValueError
        if header[257:262] == b"ustar":
            return size
        stored = int(header[148:156].strip(b" \0") or b"0", 8)
        if stored == sum(header) - sum(header[148:156]) + 8 * 32:
            return size
    except ValueError:
        pass
    raise _DamagedError(f"at byte {position} there is no header of a tar file")


def _pax(content: bytes) -> tuple[str | None, int | None]:
    """Return the path and the size of an extended header, None for what it has not."""
    path, size = None, None
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            break
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            size = int(value)
        content = content[int(length) :]
    return path, size


def split_name(name: str) -> tuple[str, str]:
    """Return WebDataset's key and ending of a member; an empty key where it belongs to no sample.

    >>> split_name("train/a.b/000123.seg.PNG"), split_name("._x.jpg"), split_name("README")
    (('train/a.b/000123', 'seg.png'), ('', ''), ('', ''))
    """
    slash = name.rfind("/")
    dot = name.find(".", slash + 1)
    if dot <= slash + 1:
        return "", ""
    return name[:dot], name[dot + 1 :].lower()


_RANKS = {ending[1:]: rank for rank, ending in enumerate(ENDINGS)}


class _Samples:
    """The samples of a shard as its members come."""

    def __init__(self, shard: str, label_field: str | None) -> None:
        self.shard, self.label_field = shard, label_field
        self.found = PartBuilder()
        self.num_without_image = self.num_several = 0
        self._start("")

    def _start(self, key: str) -> None:
        self.key = key
        self.image: Member | None = None
        self.rank = len(_RANKS) + 1
        self.label: str | None = None
        self.json: bytes | None = None
        self.num_images = 0
        self.num_members = 0

    def add(self, member: Member, window: Window) -> None:
        key, ending = split_name(member.name)
        if not key:
            return
        if key != self.key:
            self.finish()
            self._start(key)
        self.num_members += 1
        rank = _RANKS.get(ending)
        if rank is None and "." in ending:
            rank = len(_RANKS) if ending.rpartition(".")[2] in _RANKS else None
        if rank is not None:
            self.num_images += 1
            if rank < self.rank:
                self.image, self.rank = member, rank
        elif ending == "cls" and self.label_field is None:
            self.label = window.at(member.position, min(member.size, MAX_LABEL)).decode("utf-8", "replace").strip()
        elif ending == "json" and (self.label_field is not None or self.label is None):
            self.json = window.at(member.position, min(member.size, MAX_JSON))

    def finish(self) -> None:
        """Add the sample that is complete."""
        image = self.image
        if image is None:
            self.num_without_image += bool(self.num_members)
            return
        self.num_several += self.num_images > 1
        if image.size >= LARGEST or image.position >= LARGEST * BLOCK:
            raise UserError(f"{printable(self.shard)}: {printable(image.name)}: an image of 4 GB or more, or beyond 2 TB.")
        if image.is_long:
            self.found.long_names[len(self.found.positions)] = image.name
        self.found.add(image.position // BLOCK, image.size, self._label())

    def _label(self) -> tuple[str, str] | None:
        text = self.label
        if text is None and self.json is not None:
            text = json_label(self.json, self.label_field, f"{printable(self.shard)}: {printable(self.key)}.json")
        if text:
            return "label", text
        folder = self.key.rpartition("/")[0]
        return ("folder", folder.rpartition("/")[2]) if folder and text is None else None


def json_label(content: bytes, field: str | None, where: str) -> str | None:
    """Return the label in a sample's JSON object as text, "" for null, None where there is none.

    Args:
        content: the object.
        field: that has the label; None: the first of `LABEL_FIELDS`.
        where: what messages call it.

    Raises:
        UserError: it is no object, does not have the field, or the label is neither a number nor a text.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: this is not JSON: {shortened(str(error))}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected an object with the label in a field.")
    if field is not None and field not in found:
        raise UserError(
            f"data.label_column: {where} has no field {printable(field)}; it has {shortened(', '.join(map(str, found)), 200)}."
        )
    names = [field] if field is not None else [name for name in LABEL_FIELDS if name in found]
    if not names:
        return None
    value = found[names[0]]
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where}: {names[0]} is {shortened(repr(value))}; expected the number or the name of one class.")
    return str(value).strip()


def scan_tar(read: ReadRange, size: int, name: str, label_field: str | None = None, block: int = 1 << 15) -> Part:
    """Return the images of a tar shard.

    Args:
        read: reads ranges of it.
        size: of the file, in bytes.
        name: for messages.
        label_field: field of ``.json`` with the label; None: ``.cls``, else one of `LABEL_FIELDS`, else the folder.
        block: bytes to read at once.

    Returns:
        The images up to the end, or up to where the file is damaged; `Part.problem` then says so.

    Raises:
        UserError: it cannot be read, or a label is not one.
    """
    window = Window(read, block)
    members, samples = TarMembers(window, size), _Samples(name, label_field)
    problem = ""
    try:
        while (member := members.next()) is not None:
            if member.kind in (b"0", b"\0", b"7"):
                samples.add(member, window)
    except _DamagedError as error:
        problem = str(error)
    samples.finish()
    notes = []
    if samples.num_without_image:
        notes.append(f"{samples.num_without_image} samples without an image are left out.")
    if samples.num_several:
        notes.append(f"{samples.num_several} samples have several images; the first kind of {', '.join(ENDINGS[:5])} is used.")
    return samples.found.finished(problem=problem, notes=tuple(notes))
