"""The pages of ``--help``: whole summaries, names for people, bold and colours on a terminal that takes them, else plain text."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from stvit_cli.utils.console import is_plain

Command = TypeVar("Command", bound=Callable[..., Any])

MAX_WIDTH = 100
"""A line of text is no longer than this: the eye would lose the next one."""
MAX_NAME = 30
"""A longer name stands on a line of its own."""

_RAW = "\b"
"""The first line of a paragraph that keeps its lines: commands to paste."""


class _Page:
    """The text of a page.

    Args:
        width: of its lines, in characters.
        plain: leave out the escape codes of bold text and colours.
    """

    def __init__(self, width: int, plain: bool) -> None:
        self.width, self.plain = width, plain
        self.lines: list[str] = []

    def heading(self, text: str) -> None:
        self.lines += ["", self._styled(f"{text}:", "1")]

    def paragraph(self, text: str, indent: str = "  ") -> None:
        """Add lines of text; text in backticks is code. Commands keep their lines, what follows them is a comment."""
        first, _, rest = text.partition("\n")
        if first.strip() == _RAW:
            for line in textwrap.dedent(rest).splitlines():
                self._command(*re.split(r"(\s{3,})", line, maxsplit=1), indent=indent)
            return
        self.lines += [self._code(line) for line in self._wrapped(" ".join(text.split()), indent, indent)]

    def _command(self, code: str, gap: str = "", comment: str = "", *, indent: str) -> None:
        """Add a command to paste; where it is too long for a line, the shell joins its lines."""
        fits = len(indent + code + gap + comment) <= self.width
        lines = [indent + code] if fits else self._wrapped(code, indent, indent + "    ", self.width - 2)
        self.lines += [self._styled(line + " \\", "36") for line in lines[:-1]]
        self.lines.append(self._styled(lines[-1], "36") + (gap + self._styled(comment, "2") if fits else ""))
        if comment and not fits:
            self.lines += [
                self._styled(line, "2") for line in self._wrapped(f"({comment.strip('()')})", indent + "    ", indent + "     ")
            ]

    def definitions(self, rows: list[tuple[str, str]]) -> None:
        """Add names and what they are, in two columns; in one, where the page is narrow."""
        longest = max((len(name) for name, _ in rows if len(name) <= MAX_NAME), default=0)
        column = 2 + longest + 2 if longest + 2 <= self.width // 2 else 6
        for name, text in rows:
            shown = "  " + self._styled(name, "1;36")
            lines = self._wrapped(text, "", "", self.width - column)
            if 2 + len(name) + 2 <= column and lines:
                shown += " " * (column - 2 - len(name)) + self._code(lines.pop(0))
            self.lines.append(shown)
            self.lines += [" " * column + self._code(line) for line in lines]

    def usage(self, path: str, pieces: list[str]) -> None:
        head = f"Usage: {path} "
        lines = self._wrapped(" ".join(pieces), " " * len(head), " " * 4) or [head]
        self.lines.append(self._styled("Usage:", "1") + f" {path} " + lines[0].lstrip())
        self.lines += lines[1:]

    def _wrapped(self, text: str, first: str, others: str, width: int | None = None) -> list[str]:
        return textwrap.wrap(
            text,
            max(width or self.width, 20),
            initial_indent=first,
            subsequent_indent=others,
            break_on_hyphens=False,
            break_long_words=False,
        )

    def _styled(self, text: str, codes: str) -> str:
        return text if self.plain or not text else f"\x1b[{codes}m{text}\x1b[0m"

    def _code(self, line: str) -> str:
        return line if self.plain else re.sub(r"`([^`]+)`", lambda match: self._styled(match[1], "1;36"), line)


@dataclass(frozen=True)
class Help:
    """What a command's help says; the page of the terminal and the site's reference are made of it.

    Attributes:
        usage: the words after the command.
        paragraphs: its description; one that starts with backslash-b has commands to paste.
        arguments: their names and what they are.
        options: their names and what they are, with default and limits.
        commands: of a group, names and summaries.
    """

    usage: list[str]
    paragraphs: list[str]
    arguments: list[tuple[str, str]]
    options: list[tuple[str, str]]
    commands: list[tuple[str, str]]


def help_of(command: TyperCommand | TyperGroup, context: typer.Context) -> Help:
    """Return what the help of a command says."""
    parameters = command.get_params(context)
    arguments = [param for param in parameters if isinstance(param, TyperArgument)]
    entries = (
        [(name, command.commands[name]) for name in command.list_commands(context)] if isinstance(command, TyperGroup) else []
    )
    return Help(
        usage=["[OPTIONS]", *map(_usage_name, arguments), *(["COMMAND ..."] if isinstance(command, TyperGroup) else [])],
        paragraphs=re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")),
        arguments=[(param.metavar or param.name, _text(param, context)) for param in arguments],
        options=[(_record(p, context)[0], _text(p, context)) for p in parameters if not isinstance(p, TyperArgument)],
        commands=[(name, summary(entry.help or "")) for name, entry in entries if not entry.hidden],
    )


def _page(command: TyperCommand | TyperGroup, context: typer.Context) -> str:
    page = _Page(min(shutil.get_terminal_size().columns, MAX_WIDTH), is_plain())
    said = help_of(command, context)
    page.usage(context.command_path, said.usage)
    for paragraph in said.paragraphs:
        page.lines.append("")
        page.paragraph(paragraph)
    for heading, rows in (("Arguments", said.arguments), ("Options", said.options), ("Commands", said.commands)):
        if rows:
            page.heading(heading)
            page.definitions(rows)
    return "\n".join(page.lines)


def summary(text: str) -> str:
    """Return the first sentence of a command's help, without its full stop.

    Example:
        >>> summary("Train from weights. Other classes are fine.")
        'Train from weights'
    """
    paragraph = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)0-9])\. (?=[A-Z])", paragraph)[0].removesuffix(".")


def _usage_name(argument: TyperArgument) -> str:
    name = argument.metavar or argument.name.upper()
    name = name if argument.nargs == 1 or name.endswith("...") else f"{name}..."
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _record(param: Any, context: typer.Context) -> tuple[str, str]:
    name, text = param.get_help_record(context) or ("", "")
    return name, text


def _text(param: Any, context: typer.Context) -> str:
    """Return what a parameter is, with its default and its limits."""
    text = re.sub(r"([-\d.]+)<=x<=([-\d.]+)", r"\1 to \2", _record(param, context)[1])
    return re.sub(r"x>=([-\d.]+)", r"at least \1", text)


class HelpCommand(TyperCommand):
    """A command with such a page."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole summary."""
        return summary(self.help or "")

    def get_help(self, ctx: Any) -> str:
        """Return the page."""
        return _page(self, ctx)


class HelpGroup(TyperGroup):
    """A group of commands with such a page."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole summary."""
        return summary(self.help or "")

    def get_help(self, ctx: Any) -> str:
        """Return the page."""
        return _page(self, ctx)


class App(typer.Typer):
    """A Typer whose commands have such pages, also by ``-h``."""

    def __init__(self, name: str | None = None, *, add_completion: bool = False) -> None:
        super().__init__(
            name=name,
            cls=HelpGroup,
            context_settings={"help_option_names": ["-h", "--help"]},
            add_completion=add_completion,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Command], Command]:
        """Add a command; see `typer.Typer.command`."""
        return super().command(name, cls=HelpCommand, **settings)
