"""YAML 1.2 scalars, read strictly and written so that they read back the same. Independent of recipes; imports no torch.

PyYAML follows YAML 1.1: ``5e-4`` is text, ``on`` is true, ``010`` is eight, and the last of two equal keys wins silently. Here
scalars are read by the core schema of YAML 1.2, equal keys are refused, and so are anchors, aliases and tags.
"""

from __future__ import annotations

import re
import unicodedata
from copy import copy
from typing import Any

import yaml

from stvit_cli.errors import UserError

_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"
_SPACE = "[\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff]"
"""Spaces that YAML takes for letters; they come along when text is copied from a page, a chat or a word processor."""
_MISPLACED = re.compile(rf"\A-?({_SPACE})|({_SPACE})\Z|:({_SPACE})|({_SPACE})#")
"""Where such a space can only stand for an ordinary one: at an end, after a colon or a dash, before a comment."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers below; refuses anchors, aliases and tags."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # an attribute of instances in PyYAML's stubs

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs forget it
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event.start_mark, "anchors and aliases (& and *) are not read: write the value out, or in quotes")
        if getattr(event, "tag", None) is not None:
            raise _refused(event.start_mark, f"the tag {event.tag} is not read: write a plain value")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what ``_Loader`` would take for something other than text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # an attribute of instances in PyYAML's stubs

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _represent_text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """Put text with line breaks, control characters, curly quotes or odd spaces in double quotes: plain it would be refused."""
    style = None if value.isprintable() and without_typography(value) == value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))


def parse(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """Read one YAML document.

    Args:
        text: the document.
        source: the file's name, for messages.

    Returns:
        Dicts, lists, str, int, float, bool and None; and the line, from 1, of every dotted key.

    Raises:
        UserError: broken YAML, a doubled key, an anchor, alias or tag, a key that is not text.
    """
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return (None if node is None else _plain(node, "", lines)), lines
    except yaml.YAMLError as error:
        raise UserError(f"{source}: {_explain(error, text)}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply to be a recipe.") from None


def without_typography(text: str) -> str:
    """Return ``text`` without curly quotes and without the spaces that YAML takes for letters."""
    return re.sub(f"{_SPACE}|[{_QUOTES}]", "", text)


def flow(value: Any) -> str:
    """Return ``value`` as YAML on one line, such that ``parse`` gives it back."""
    return yaml.dump([value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**31)[1:-2]


def as_tuples(value: Any) -> Any:
    """Return plain data with tuples in place of lists, as a recipe has them: its sections are frozen."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(node: yaml.Node, path: str, lines: dict[str, int]) -> Any:
    """Turn a node into plain data; note the line of every key in ``lines``."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{path}[{index}]", lines) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        _require_ascii_marks(node, _MISPLACED)
        return _scalar(node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        _require_ascii_marks(key_node, re.compile(f"({_SPACE})"))
        if key_node.tag != "tag:yaml.org,2002:str":
            raise _refused(key_node.start_mark, "a key must be text; this one is not")
        dotted = f"{path}.{key}" if path else key
        if key in mapping:
            raise _refused(key_node.start_mark, f"the key {dotted} is there twice, first in line {lines[dotted]}; keep one")
        lines[dotted] = line
        mapping[key] = _plain(value_node, dotted, lines)
    return mapping


def _scalar(node: yaml.Node) -> Any:
    kind = node.tag.rpartition(":")[2]
    text: str = node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:
            raise _refused(node.start_mark, "a number with too many digits") from None
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _require_ascii_marks(node: yaml.Node, misplaced: re.Pattern[str]) -> None:
    """Refuse typographic quotes around, and typographic spaces at the ends of, text that is not in YAML's own quotes."""
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return
    text: str = node.value
    if space := misplaced.search(text):
        raise _refused(
            _at(node.start_mark, space.start(space.lastindex or 0)), _odd_space(text[space.start(space.lastindex or 0)])
        )
    inside = sum(letter in _QUOTES for letter in text[1:-1])
    opened, closed = text[:1] in _QUOTES, text[-1:] in _QUOTES
    alone = not inside and (opened or (closed and text[-1] != "\u2019"))  # which is an apostrophe too
    if len(text) > 1 and (alone or (opened and closed)):
        inner = text.strip(_QUOTES)
        raise _refused(node.start_mark, f"curly quotes: {text[:60]}; write {inner[:60]}, or straight quotes: '{inner[:60]}'")


def _odd_letter(lines: list[str], line: int) -> str:
    """Name the first typographic space or quote in a line (counted from 0) or the one before it, or return nothing."""
    for number in (line - 1, line):
        found = re.search(f"{_SPACE}|[{_QUOTES}]", lines[number]) if 0 <= number < len(lines) else None
        if found:
            letter = found.group()
            odd = f"a curly quote {letter}; write straight ones (' or \")" if letter in _QUOTES else _odd_space(letter)
            return f"line {number + 1}, column {found.start() + 1} holds {odd}"
    return ""


def _odd_space(space: str) -> str:
    name = "a no-break space" if space == "\u00a0" else f"a {unicodedata.name(space).lower()}"
    return f"{name} (U+{ord(space):04X}); write an ordinary space, or nothing"


def _at(mark: Any, offset: int) -> Any:
    moved = copy(mark)
    moved.column += offset
    return moved


def _refused(mark: Any, what: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


def _explain(error: yaml.YAMLError, text: str) -> str:
    """Say in one or two lines what is wrong and where."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, int(error.position)) + 1
        return f"line {line} holds a character that YAML does not allow (code {int(error.character)})."
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"this is not YAML ({error})."
    mark = error.problem_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    if type(error) is yaml.MarkedYAMLError:
        return f"{where}: {error.problem}."
    lines = text.split("\n")
    shown = lines[min(mark.line, len(lines) - 1)]
    problem = f"this is not YAML ({error.problem})"
    if odd := _odd_letter(lines, mark.line):
        problem += f"; {odd}"
    elif "\t" in shown:
        problem = "a tab; YAML is indented with spaces"
    return f"{where}: {problem}.\n  {shown.strip()[:100]}"
