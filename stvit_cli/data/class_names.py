"""Names of classes from a text file, a name on a line. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stvit_cli.errors import UserError
from stvit_cli.utils.class_lists import CLASS_LISTS, class_list
from stvit_cli.utils.files import reason_of
from stvit_cli.utils.text import did_you_mean, first_few, printable

MAX_BYTES = 64_000_000
_NUMBERED = re.compile(r"(\d+)[\s:,;]+(\S.*)")


def read_text(path: Path, key: str) -> str:
    """Return the text of a file: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Args:
        path: the file.
        key: the recipe key that names it, for messages.

    Raises:
        UserError: there is no such file, it cannot be read, or it has another encoding; it then names the line.
    """
    shown = printable(str(path))
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{key}: there is no file {shown}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {shown} cannot be read: {reason_of(error)}.") from None
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{shown}, line {line}: this is not UTF-8 text; save the file as UTF-8.") from None


def read_class_names(
    path: str | Path, folder: str | Path | None = None, *, key: str = "data.class_names_file"
) -> tuple[str, ...]:
    r"""Return the names in a file, in order, or those of a list of ImageNet's classes.

    Args:
        path: ``data.class_names_file``: a name on a line, or a number and a name (``0 cat``, ``1: dog``), numbered from 0 or
            from 1 without gaps; empty lines are skipped. Where there is no such file, a name of `CLASS_LISTS`.
        folder: ``data.dir``, which ``path`` is relative to; of a file, the folder that it is in.
        key: the recipe key that gives ``path``, for messages.

    Raises:
        UserError: the file cannot be read, has no names, a name twice, or numbers with gaps.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "names.txt").write_text("0 cat\n1 sea lion\n")
        ...     read_class_names("names.txt", folder)
        ('cat', 'sea lion')
        >>> len(read_class_names("imagenet-22k"))
        21841
    """
    file = Path(path).expanduser()
    if folder is not None:
        root = Path(folder).expanduser()
        file = (root.parent if root.is_file() else root) / file
    if not file.is_file():
        if str(path) in CLASS_LISTS:
            return class_list(str(path))
        if guess := did_you_mean(str(path), CLASS_LISTS):
            raise UserError(f"{key}: there is no file {printable(str(file))}.{guess}")
    text = read_text(file, key)
    if len(text) > MAX_BYTES:
        raise UserError(f"{printable(str(file))} is too large to be a list of class names.")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{printable(str(file))} has no class names; expected a name on each line.")
    matches = [_NUMBERED.fullmatch(line) for _, line in lines]
    names = [line for _, line in lines]
    if all(matches):
        numbers = [int(match[1]) for match in matches if match]
        if sorted(numbers) in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
            names = [name for _, name in sorted(zip(numbers, (match[2] for match in matches if match), strict=True))]
    first: dict[str, int] = {}
    for (number, _), name in zip(lines, names, strict=True):
        if name in first:
            raise UserError(f"{printable(str(file))}, line {number}: '{printable(name)}' is there twice.")
        first[name] = number
    return tuple(names)


def check_names(names: tuple[str, ...], num_classes: int, path: str | Path) -> tuple[str, ...]:
    """Return ``names``. Raises UserError where their number is not ``num_classes``; it names the file."""
    if len(names) != num_classes:
        raise UserError(
            f"data.class_names_file: {printable(str(path))} has {len(names)} names, but there are {num_classes} classes."
        )
    return names


def require_model_names(own: tuple[str, ...], names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the model's class names for data whose classes are numbered.

    Args:
        own: the names of the data; their numbers, where the data have no names.
        names: those of the model.
        what: the data, for messages.

    Raises:
        UserError: these are other classes.
    """
    unnamed = own == tuple(str(number) for number in range(len(own)))
    if tuple(names) != own and not (unnamed and len(own) <= len(names)):
        raise UserError(
            f"{what} has {len(own)} classes ({first_few(own)}), but the model has other ones, {len(names)}: {first_few(names)}."
        )
    return tuple(names)
