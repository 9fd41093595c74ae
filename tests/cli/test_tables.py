"""Tables at every width of a terminal, and as plain text where no colours are wanted."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from stvit_cli.utils.console import is_plain


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make standard output and error a terminal of a width."""

    def make(width: int) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    return make


@pytest.mark.parametrize("width", [40, 80, 200])
def test_recipes_list_has_whole_names_at_every_width(stvit, terminal: Callable[[int], None], width: int) -> None:

    from rich.text import Text

    from stvit_cli.recipe import io as recipe_io

    terminal(width)
    listed = stvit("recipes", "list").out
    lines = Text.from_ansi(listed).plain.splitlines()
    names = [path.stem for path in recipe_io.list_recipes()]
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == names
    assert "…" not in listed
    assert "..." not in listed
    assert listed.startswith("\x1b[1m")
    if width >= 80:
        assert max(map(len, lines)) <= width
    if width == 80:
        assert len(lines) <= 2 * len(names) + 2  # a screen or two: no column for the model, which takes the room


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_takes_no_colours_gets_plain_text(
    stvit, terminal: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    terminal(80)
    assert not is_plain()
    assert not is_plain(stderr=True)
    monkeypatch.setenv(name, value)
    assert is_plain()
    assert is_plain(stderr=True)
    for words in (["recipes", "list"], ["--help"], ["data", "show", "quickstart"]):
        ended = stvit(*words)
        assert "\x1b" not in ended.out + ended.err
        assert not any(0x2500 <= ord(letter) < 0x25A0 for letter in ended.out + ended.err)
        assert ended.code == 0
