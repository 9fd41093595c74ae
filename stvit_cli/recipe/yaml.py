"""YAML read without surprises, and written so that it reads back the same. Knows nothing of recipes; imports no torch.

PyYAML follows YAML 1.1: ``5e-4`` is text to it, ``on`` is true, ``010`` is eight, and of two equal keys the last wins without a
word. Here scalars are read by the core schema of YAML 1.2, equal keys are refused, and so are anchors, aliases and tags.
"""

from __future__ import annotations

import json
import re
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


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers below; refuses anchors, aliases and tags."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event.start_mark, "anchors and aliases (& and *) are not read: write the value out, or in quotes")
        if getattr(event, "tag", None) is not None:
            raise _refused(event.start_mark, f"the tag {event.tag} is not read: write a plain value")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what ``_Loader`` would take for something other than text."""

    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
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


def flow(value: Any) -> str:
    """Return ``value`` as YAML on one line, such that ``parse`` gives it back."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    return yaml.dump([value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**31)[1:-2]


def _plain(node: yaml.Node, path: str, lines: dict[str, int]) -> Any:
    """Turn a node into plain data; note the line of every key in ``lines``."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{path}[{index}]", lines) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
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
    lines = text.splitlines()
    shown = lines[min(mark.line, len(lines) - 1)]
    problem = "a tab; YAML is indented with spaces" if "\t" in shown else f"this is not YAML ({error.problem})"
    return f"{where}: {problem}.\n  {shown.strip()[:100]}"
