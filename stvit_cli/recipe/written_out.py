"""A recipe that is based on others, written as one file: each value as its own file has it, with its comments."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.recipe.layers import Layer, origins
from stvit_cli.recipe.yaml import flow, parse


def written_out(layers: Sequence[Layer], *, show_origins: bool = False) -> str:
    """Return one file with the settings of all layers, under the head of the first.

    Args:
        show_origins: put the file and the line that a value comes from behind it.
    """
    head = list(takewhile(lambda line: not line or line.startswith("#"), layers[0].text.lstrip("\ufeff").splitlines()))
    chain = " -> ".join(layer.source for layer in layers)
    lines = [*"\n".join(head).rstrip().splitlines(), "#" if head else None, f"# Written out; based on: {chain}", ""]
    section = ""
    for key, layer in origins(layers).items():
        before, section = section, key.rpartition(".")[0]
        if section != before:
            lines += ["", f"{section}:"]
        lines += [f"  {line}" if section else line for line in _block(layer, key, show_origins)]
    return "".join(f"{line}\n" for line in lines if line is not None)


def _block(layer: Layer, key: str, show_origins: bool) -> list[str]:
    """Return the lines of a key, without indentation: as its file has them where that can be done, else written again."""
    section, _, leaf = key.rpartition(".")
    value = (layer.data[section] if section else layer.data)[leaf]
    origin = f"<- {layer.source}:{layer.lines[key]}" if show_origins else ""
    lines = _source_lines(layer, key, origin)
    return lines if _reads_as(lines, leaf, value) else [f"{leaf}: {flow(value)}" + (f"  # {origin}" if origin else "")]


def _source_lines(layer: Layer, key: str, origin: str) -> list[str]:
    """Return the lines of a key as its file has them, with its origin behind the first."""
    text = layer.text.splitlines()
    first = layer.lines[key] - 1
    last = min(
        (line for other, line in layer.lines.items() if line - 1 > first and not other.startswith(f"{key}.")), default=None
    )
    block = text[first : None if last is None else last - 1]
    while block and (not block[-1].strip() or block[-1].lstrip().startswith("#")):
        block.pop()
    above = list(takewhile(lambda line: line[:1].isspace() and line.lstrip().startswith("#"), reversed(text[:first])))[::-1]
    if origin:
        block[0] = f"{block[0]}  {'' if '#' in block[0] else '# '}{origin}"
    return textwrap.dedent("\n".join([*above, *block])).splitlines()


def _reads_as(lines: list[str], leaf: str, value: Any) -> bool:
    try:
        return bool(parse("\n".join(lines), "")[0] == {leaf: value})
    except UserError:
        return False
