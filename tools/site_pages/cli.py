"""The reference of the command line, from Typer's app: what `--help` says, as Markdown."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator

import typer

from stvit_cli.cli import app
from stvit_cli.cli.help import Help, help_of

RAW = "\b"
"""The first line of a paragraph of commands to paste."""


def page() -> str:
    """Return every command with its arguments, options and examples."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="stvit", help_option_names=["-h", "--help"])
    said = help_of(command, context)
    lines = ["| command | |", "|---|---|"]
    lines += [f"| [`stvit {name}`](#stvit-{name}) | {_inline(text)} |" for name, text in said.commands]
    return "\n".join([*lines, "", *_command(said, context), *_commands(command, context)])


def _commands(group: typer.core.TyperGroup, parent: typer.Context) -> Iterator[str]:
    for name in group.list_commands(parent):
        command = group.commands[name]
        if command.hidden:
            continue
        context = typer.Context(command, info_name=name, parent=parent)
        yield from _command(help_of(command, context), context)
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, context)


def _command(said: Help, context: typer.Context) -> Iterator[str]:
    path = context.command_path
    depth = "#" * min(1 + len(path.split()), 3)
    yield from (f"{depth} {path} {{ #{path.replace(' ', '-')} }}", "", "```text", " ".join([path, *said.usage]), "```", "")
    for paragraph in said.paragraphs:
        first, _, rest = paragraph.partition("\n")
        if first.strip() == RAW:
            yield from ("```bash", *map(_as_shell, textwrap.dedent(rest).splitlines()), "```", "")
        else:
            yield from (_inline(" ".join(paragraph.split())), "")
    for heading, rows in (("argument", said.arguments), ("option", said.options)):
        if rows:
            yield from (f"| {heading} | |", "|---|---|")
            yield from (f"| {_code(name)} | {_inline(text)} |" for name, text in rows)
            yield ""


def _as_shell(line: str) -> str:
    """Turn what follows a command after three blanks into a comment of the shell."""
    return re.sub(r"\s{3,}(\S.*)$", r"    # \1", line)


def _code(name: str) -> str:
    return f"<code>{html.escape(name).replace('|', '&#124;')}</code>"


def _inline(text: str) -> str:
    """Return a line of help as Markdown: what is in backticks stays code, elsewhere no character is markup."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(_code(part[1:-1]) if part.startswith("`") else re.sub(r"([\\*_\[\]<>{}|#])", r"\\\1", part) for part in parts)
