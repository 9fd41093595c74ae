"""The labels of a table: one class for each row, or several. Imports no torch.

N rows, K classes.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.file_listing import same_name
from stvit_cli.data.table_columns import has_label_column, label_column, require_column, zero_one_columns
from stvit_cli.data.table_file import Table
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, printable, shortened

NUM_NAMED = 3
"""Rows that a message names of those with the same problem."""

_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
SEPARATORS = (";", "|", ",", " ")
"""Tried for cells with several labels, in this order; a blank stands for any white space."""


@dataclass(frozen=True)
class Labels:
    """The labels of the rows as text.

    Attributes:
        of_row: for each row its label, or its labels.
        values: all labels, each once, in the order of the classes that they would be.
        names: class names, where the file has them and the labels are their numbers.
        note: how the cells were read, where it was found out.
    """

    of_row: list[str] | list[list[str]]
    values: tuple[str, ...]
    names: tuple[str, ...] = ()
    note: str = ""


def single_labels(table: Table, column: str | None) -> Labels:
    """Read one label from each row.

    Args:
        table: the rows.
        column: ``data.label_column``; None: found by its name.

    Raises:
        UserError: there is no such column, or a row has no label.
    """
    name = label_column(table, column)
    cells = table.columns[name]
    if "" in cells:
        raise refuse_rows(table, [row for row, cell in enumerate(cells) if not cell], f"the label is empty (column '{name}')")
    values = set(cells)
    written = {value: _integer(value) for value in values} if all(map(_INTEGER.fullmatch, values)) else {}
    of_row = [written[cell] for cell in cells] if any(value != plain for value, plain in written.items()) else list(cells)
    return Labels(of_row, _in_order(set(of_row)), table.names.get(name, ()))


def refuse_several(table: Table, labels: Labels) -> None:
    """Refuse labels of which some look like several in a cell, such as "cat;dog" where there are "cat" and "dog" too.

    Args:
        table: the rows.
        labels: one of each row.

    Raises:
        UserError: all parts of a label are labels, or parts of labels, of other rows. It names the key that decides.
    """
    for separator in SEPARATORS[:-1]:
        parts = {value: [part.strip() for part in value.split(separator)] for value in labels.values}
        count = Counter(part for each in parts.values() for part in set(each))
        for value, of_value in parts.items():
            if len(of_value) > 1 and all(part and count[part] > 1 for part in of_value):
                row = labels.of_row.index(value)  # type: ignore[arg-type]
                raise refuse_rows(
                    table,
                    [row],
                    f"'{printable(value)}' looks like several labels: {first_few(of_value)} are in other rows too",
                    "\ndata.multi_label=true reads them apart; data.multi_label=false takes each cell for one class.",
                )


def several_labels(table: Table, column: str | Sequence[str] | None, separator: str | None, others: Sequence[str]) -> Labels:
    """Read any number of labels from each row: from the cells of one column, or one column of 0 and 1 for each class.

    Args:
        table: the rows.
        column: ``data.label_column``: one name, or those of the columns of 0 and 1. None: found.
        separator: ``data.label_separator``; None: found. JSON lists are read with any.
        others: columns that hold no labels.

    Raises:
        UserError: there are no such columns, or a cell cannot be read.
    """
    if column is None and not has_label_column(table):
        found = zero_one_columns(table, others)
        if len(found) < 2:
            label_column(table, None)  # raises: it names the columns
        return _from_columns(table, found, [name for name in table.columns if name not in found and name not in others])
    if not isinstance(column, str) and column is not None:
        return _from_columns(table, [require_column(table, name, "data.label_column") for name in column], [])
    name = label_column(table, column)
    cells = table.columns[name]
    lists = [cell.startswith("[") and cell.endswith("]") for cell in cells]
    note = ""
    if separator is None:
        plain = [cell for cell, is_list in zip(cells, lists, strict=True) if not is_list]
        separator = next((each for each in SEPARATORS if any(each in cell for cell in plain)), ";")
        if any(separator in cell for cell in plain):
            shown = "white space" if separator == " " else f"'{separator}'"
            note = f"labels in one cell are separated by {shown} (data.label_separator sets another)"
    parts: dict[str, list[str]] = {}
    for row, (cell, is_list) in enumerate(zip(cells, lists, strict=True)):
        if cell not in parts:
            split = cell.split() if separator == " " else cell.split(separator)
            parts[cell] = _from_list(table, row, cell) if is_list else split
            parts[cell] = list(dict.fromkeys(label.strip() for label in parts[cell] if label.strip()))
    values = {label for labels in parts.values() for label in labels}
    if values and all(map(_INTEGER.fullmatch, values)):
        parts = {cell: [_integer(label) for label in labels] for cell, labels in parts.items()}
        values = {_integer(value) for value in values}
    return Labels([parts[cell] for cell in cells], _in_order(values), table.names.get(name, ()), note)


def _from_columns(table: Table, names: Sequence[str], unused: Sequence[str]) -> Labels:
    for name in names:
        wrong = {cell for cell in set(table.columns[name]) if cell.lower() not in ("0", "1", "0.0", "1.0", "true", "false")}
        if wrong:
            rows = [row for row, cell in enumerate(table.columns[name]) if cell in wrong]
            raise refuse_rows(table, rows, f"column '{name}' has {shortened(min(wrong), 20) or 'nothing'}, expected 0 or 1")
    present = np.array([[cell[0].lower() in "1t" for cell in table.columns[name]] for name in names])  # K N
    note = f"{len(names)} columns of 0 and 1 are the classes"
    if unused:
        note += f"; columns that are not used: {first_few(unused)}"
    of_row = [[names[index] for index in np.flatnonzero(row).tolist()] for row in present.T]
    return Labels(of_row, tuple(names), (), note)


def _from_list(table: Table, row: int, cell: str) -> list[str]:
    """Return the labels in a list of JSON or of Python."""
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
    if not isinstance(found, list) or not all(isinstance(label, str | int) for label in found):
        raise UserError(f"{table.where(row)}: {shortened(cell)} is no list of labels.")
    return [str(label) for label in found]


def target_of(
    labels: Labels, table: Table, class_names: Sequence[str], known_by: str, numbered: Sequence[str] = ()
) -> list[int] | list[list[int]]:
    """Return the class of each row, or its classes, counted along ``class_names``.

    Args:
        labels: of the rows.
        table: the rows, for messages.
        class_names: the classes.
        known_by: what has these classes, for messages: the training table, a file of names, the model.
        numbered: names of labels that are numbers, from ``data.class_names_file``; those of the table itself come first.

    Raises:
        UserError: a label is none of the classes; it names the rows.
    """
    position = {same_name(name): index for index, name in enumerate(class_names)}
    code = {value: position.get(same_name(value)) for value in labels.values}
    names = labels.names or numbered
    if labels.names or (None in code.values() and all(map(_INTEGER.fullmatch, labels.values))):
        numbers = {value: int(value) for value in labels.values if _INTEGER.fullmatch(value)}
        named = {value: names[number] for value, number in numbers.items() if 0 <= number < len(names)}
        code |= {value: position.get(same_name(name)) for value, name in named.items()}
    unknown = [value for value in labels.values if code[value] is None]
    if unknown:
        rows = _rows_with(labels, unknown)
        raise refuse_rows(
            table,
            rows,
            f"'{shortened(unknown[0], 40)}' is no class of {known_by}.{did_you_mean(unknown[0], class_names)} "
            f"Its {len(class_names)} classes: {first_few(class_names)}",
        )
    known = {value: index for value, index in code.items() if index is not None}
    return [known[row] if isinstance(row, str) else [known[value] for value in row] for row in labels.of_row]  # type: ignore[return-value]


def _is_single(of_row: list[str] | list[list[str]]) -> bool:
    return not of_row or isinstance(of_row[0], str)


def _rows_with(labels: Labels, values: Sequence[str]) -> list[int]:
    wanted = set(values)
    if _is_single(labels.of_row):
        return [row for row, value in enumerate(labels.of_row) if value in wanted]
    return [row for row, found in enumerate(labels.of_row) if wanted.intersection(found)]


def present(targets: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.uint8]:
    """Return the classes of each row as 0 and 1, (N, K).

    >>> present([[1], [], [0, 2]], 3).tolist()
    [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    """
    matrix = np.zeros((len(targets), num_classes), dtype=np.uint8)
    for row, found in enumerate(targets):
        matrix[row, list(found)] = 1
    return matrix


def refuse_rows(table: Table, rows: Sequence[int], problem: str, remedy: str = "") -> UserError:
    """Return the error about rows with the same problem: their number, where the first are, and a last line that helps."""
    places = "".join(f"\n  {table.where(row)}" for row in rows[:NUM_NAMED])
    more = f"\n  and {len(rows) - NUM_NAMED} more" if len(rows) > NUM_NAMED else ""
    count = "A row" if len(rows) == 1 else f"{len(rows)} rows"
    stop = "" if problem.endswith((".", "?")) else "."
    return UserError(f"{count} of {printable(str(table.files[0]))}: {problem}{stop}{places}{more}{remedy}")


def _integer(value: str) -> str:
    """Return an integer without decimals: pandas writes 1 as 1.0 where a cell of the column is missing."""
    return value.partition(".")[0]


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Sort labels: integers as numbers, others as text."""
    found = list(values)
    return tuple(sorted(found, key=int) if all(map(_INTEGER.fullmatch, found)) else sorted(found))
