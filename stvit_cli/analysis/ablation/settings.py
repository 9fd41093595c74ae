"""The settings of an ablation: what ``key=a,b,c`` stands for, one at a time or all combinations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.recipe.renamed_keys import rename_key
from stvit_cli.recipe.yaml import flow, parse

BASE = "base"
"""Name of the setting in which no key is changed."""
MAX_FOLDER = 60
"""Characters of a directory's name, without the seed."""


@dataclass(frozen=True)
class Setting:
    """A setting of an ablation.

    Attributes:
        name: such as ``model.num_iters=2``, or ``base``.
        values: of the keys that it changes.
        folder: beginning of the names of its run directories.
    """

    name: str
    values: Mapping[str, Any]
    folder: str

    def overrides(self) -> list[str]:
        """Return the values as ``key=value``."""
        return [f"{key}={flow(value)}" for key, value in self.values.items()]


def split_words(words: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Split ``key=a,b,c`` from ``key=value``.

    Args:
        words: of the command line.

    Returns:
        The values of the keys that have several, and the other words.

    Raises:
        UserError: a word has no ``=``, a key is given twice, or a value twice.

    Example:
        >>> split_words(["model.grid_sizes=[8, 4, 1, 1],[4, 2, 1, 1]", "schedule.epochs=2"])
        ({'model.grid_sizes': [[8, 4, 1, 1], [4, 2, 1, 1]]}, ['schedule.epochs=2'])
    """
    varied: dict[str, list[Any]] = {}
    others: list[str] = []
    for word in words:
        given, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"Found {word!r}, expected key=a,b,c, such as optim.lr=1e-3,2e-3.")
        values = split_values(text)
        if len(values) < 2:
            others.append(word)
            continue
        key = rename_key(given)[0]
        if key in varied:
            raise UserError(f"{key} is given twice; write all of its values behind one sign: {key}={text},...")
        varied[key] = values
    for key, values in varied.items():
        check_values(key, values)
    return varied, others


def split_values(text: str) -> list[Any]:
    """Return the values in ``a,b,c``, read as the items of a YAML list; a single one where it is no such list.

    Example:
        >>> split_values("0,1,null"), split_values("[4, 2],[8, 4]"), split_values("{a: 1, b: 2}"), split_values("^([^_]+)_")
        ([0, 1, None], [[4, 2], [8, 4]], [{'a': 1, 'b': 2}], ['^([^_]+)_'])
    """
    try:
        values = parse(f"[{text}]", "")[0]
    except UserError:
        return [text]
    return values if isinstance(values, list) and values else [text]


def check_values(key: str, values: Sequence[Any]) -> None:
    """Raise UserError where a key cannot be varied, or a value is given twice."""
    if key == "train.seed":
        raise UserError("train.seed: every setting is trained with the same seeds; say how many with --seeds N.")
    if key in ("name", "description"):
        raise UserError(f"{key} changes nothing in a run; vary another key.")
    if not values:
        raise UserError(f"{key}: found no value, expected the list of its values.")
    seen: list[Any] = []
    for value in values:
        if any(same(value, other) for other in seen):
            raise UserError(f"{key}: {flow(value)} is given twice; keep one of them.")
        seen.append(value)


def make_settings(
    varied: Mapping[str, Sequence[Any]], product: bool, known: Sequence[Setting] = (), *, with_base: bool | None = None
) -> list[Setting]:
    """Return the settings of an ablation.

    Args:
        varied: the values of each key.
        product: all combinations; otherwise each value by itself, and the base first where there are several keys.
        known: settings that come first and are not repeated.
        with_base: the base is a setting; None: where there are several keys, or a single value to compare with it.

    Example:
        >>> [setting.name for setting in make_settings({"optim.lr": [1e-3, 2e-3]}, product=False)]
        ['optim.lr=0.001', 'optim.lr=0.002']
        >>> [setting.name for setting in make_settings({"optim.lr": [1e-3], "model.pos_enc": [False]}, product=False)]
        ['base', 'optim.lr=0.001', 'model.pos_enc=false']
    """
    choices: Iterable[dict[str, Any]]
    if product:
        choices = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    else:
        with_base = sum(map(len, varied.values())) == 1 or len(varied) > 1 if with_base is None else with_base
        choices = [*([{}] if with_base else []), *({key: value} for key, values in varied.items() for value in values)]
    settings = list(known)
    for values in choices:
        if not any(same(dict(setting.values), values) for setting in settings):
            settings.append(Setting(_name(values), values, _folder(values, [setting.folder for setting in settings])))
    return settings


def _name(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={flow(value)}" for key, value in values.items()) or BASE


def _folder(values: Mapping[str, Any], taken: Sequence[str]) -> str:
    """Return a name of a directory that is not taken: ``num_iters-2``."""
    words = [f"{key.rpartition('.')[2]}-{flow(value)}" for key, value in values.items()]
    text = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(words))).strip("-.") or BASE
    text = text[:MAX_FOLDER].strip("-.")
    return next(name for number in itertools.count(1) if (name := text if number == 1 else f"{text}-{number}") not in taken)


def same(a: Any, b: Any) -> bool:
    """Whether two values of YAML are the same; 1, 1.0 and true are not."""
    return flow(a) == flow(b)
