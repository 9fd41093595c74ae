"""Which columns of a table hold the image, the label and the split. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stvit_cli.data.table_file import Table, names_image
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, printable

PATH_NAMES = ("path", "file", "filename", "image", "imagepath", "filepath", "img", "imgpath", "imagename", "imagefile", "fname")
LABEL_NAMES = ("label", "class", "target", "category", "labels", "classes", "classname", "labelname", "categories", "tags")
SPLIT_NAMES = ("split", "subset")
"""Usual names of columns, in small letters and without separators."""

_ZERO_ONE = frozenset(("0", "1", "0.0", "1.0", "true", "false"))


def path_column(table: Table, wanted: str | None) -> str:
    """Return the name of the column with the images. Raises UserError where it is not there, or several could be it."""
    names = [*table.columns, *table.images]
    if wanted is None and len(table.images) == 1:
        return next(iter(table.images))
    if wanted is None and not _usual(names, PATH_NAMES):
        by_content = [name for name, cells in table.columns.items() if cells and all(names_image([cell]) for cell in cells[:20])]
        if len(by_content) == 1:
            return by_content[0]
    return _column(table, names, wanted, PATH_NAMES, "data.path_column", "the path of the image")


def label_column(table: Table, wanted: str | None) -> str:
    """Return the name of the column with the labels. Raises UserError where it is not there, or several could be it."""
    hint = ""
    if wanted is None and not _usual(table.columns, LABEL_NAMES) and zero_one_columns(table, ()):
        hint = " Columns of 0 and 1, one for each class, are read with data.multi_label=true."
    return _column(table, list(table.columns), wanted, LABEL_NAMES, "data.label_column", "the label", hint)


def has_label_column(table: Table) -> bool:
    """Return whether a column has one of the usual names of labels."""
    return bool(_usual(table.columns, LABEL_NAMES))


def split_column(table: Table) -> str | None:
    """Return the name of the column with the split, if there is one."""
    found = _usual(table.columns, SPLIT_NAMES)
    return found[0] if found else None


def zero_one_columns(table: Table, others: Sequence[str]) -> list[str]:
    """Return the columns that hold nothing but 0 and 1 (or true and false), except for ``others``."""
    return [name for name, cells in table.columns.items() if name not in others and _is_zero_one(cells)]


def _is_zero_one(cells: Sequence[str]) -> bool:
    return {cell.lower() for cell in set(cells)} <= _ZERO_ONE


def require_column(table: Table, name: str, key: str) -> str:
    """Return ``name``. Raises UserError where the table has no such column."""
    if name not in table.columns and name not in table.images:
        names = [*table.columns, *table.images]
        raise UserError(
            f"{key}: {printable(str(table.files[0]))} has no column '{printable(name)}'.{did_you_mean(name, names)}\n"
            f"Its columns: {first_few(names, 20)}."
        )
    return name


def _usual(names: Sequence[str] | dict[str, Sequence[str]], usual: Sequence[str]) -> list[str]:
    return [name for name in names if re.sub(r"[\s_-]", "", name.casefold()) in usual]


def _column(table: Table, names: list[str], wanted: str | None, usual: Sequence[str], key: str, what: str, hint: str = "") -> str:
    if wanted is not None:
        return require_column(table, wanted, key)
    found = _usual(names, usual)
    if len(found) == 1:
        return found[0]
    file = printable(str(table.files[0]))
    if found:
        raise UserError(f"{file}: the columns {first_few(found)} could hold {what}. Which one? Set {key}=NAME.")
    raise UserError(f"{file}: no column has a usual name of {what}. Its columns: {first_few(names, 20)}.\nSet {key}=NAME.{hint}")
