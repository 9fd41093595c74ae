"""The commands in pages, and whether the command line has them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import typer

from stvit_cli.cli import app
from stvit_cli.recipe.error_messages import dotted_keys

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if path.name != "CHANGELOG.md"  # commands of earlier versions
)

_SHELL = re.compile(r"^(?P<indent> *)```(?:bash|console|sh)\n(?P<body>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(stvit [^`]+)`")
_START = re.compile(r"(?:\w+=\S* )*(?:(?:torchrun|srun|python3?)\b[^#]*? -m stvit_cli|stvit)(?=\s|$)")
_KEY = re.compile(r"([a-z_]+\.[a-z_]+)=")
_COMMANDS = typer.main.get_command(app)


def commands(text: str) -> Iterator[str]:
    """Yield the words after ``stvit`` of each command in the shell blocks of a page, and in its ``code``."""
    for block in _SHELL.finditer(text):
        for line in re.split(r"\n|&&|\|(?!\|)|;", block["body"].replace("\\\n", " ")):
            if match := _START.match(line.strip()):
                yield " ".join(line.strip()[match.end() :].split())
    for match in _INLINE.finditer(_FENCED.sub("", text)):
        words = match[1].split()[1:]
        yield " ".join([*words, "..."] if words[-1].startswith("--") else words)  # an option is named there without its value


def complaint(words: str) -> str | None:
    """Return what the command line does not know of a command: the command, an option, a recipe's key; None where it knows all.

    Args:
        words: what follows ``stvit``.
    """
    command, rest = _COMMANDS, shlex.split(words, comments=True)
    context = typer.Context(command, info_name="stvit")
    while isinstance(command, typer.core.TyperGroup) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name.isupper() or name == "...":
            return None  # a placeholder
        if name not in command.commands:
            return f"there is no command {name!r}"
        command = command.commands[name]
        context = typer.Context(command, info_name=name, parent=context)
    try:
        given, others, _ = command.make_parser(context).parse_args(rest)
    except typer.TyperException as error:
        return error.format_message()
    lists = [value for value in given.values() if isinstance(value, list | tuple)]
    keys = [match[1] for word in chain(others, *lists) if (match := _KEY.match(str(word)))]
    unknown = [key for key in keys if key not in dotted_keys()]
    return f"there is no key {unknown[0]!r}" if unknown else None
