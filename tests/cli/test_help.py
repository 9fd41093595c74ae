"""Every help answers at once (without torch) and shows what to type."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rich.text import Text

COMMANDS = [
    *(["train"], ["finetune"], ["eval"], ["predict"], ["profile"]),
    *(["models"], ["env"], ["recipes"], ["recipes", "list"], ["recipes", "show"], ["recipes", "copy"], ["recipes", "check"]),
]
WIDTHS = [40, 80, 200]


def all_commands() -> list[list[str]]:
    """Return the words of every command and group there is."""
    import typer

    from stvit_cli.cli import app

    def walk(command: object, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])

    return list(walk(typer.main.get_command(app), []))


WITHOUT_TORCH = """
import json, sys
from stvit_cli.cli import main
assert main(["--help"]) == 0
assert "pydantic" not in sys.modules  # typer imports it for values of options
assert main(["--version"]) == 0
for words in json.loads(sys.argv[1]):
    assert main([*words, "--help"]) == 0, words
assert main(["models"]) == 0
assert main(["models", "detection"]) == 0
assert main(["recipes", "list"]) == 0
assert main(["recipes", "show", "deit300", "--full"]) == 0
assert main(["train", "--recipe", "no-such"]) == 2
heavy = {"torch", "torchvision", "timm", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_shows_commands_to_paste(stvit, words: list[str]) -> None:
    ended = stvit(*words, "--help")
    assert ended.code == 0
    assert ended.err == ""
    pasted = [line for line in ended.out.splitlines() if line.startswith(f"  stvit {' '.join(words)} ")]
    assert pasted, ended.out


def test_the_help_lists_what_comes_first_first(stvit) -> None:
    lines = stvit("--help").out.split("Commands:\n")[1].splitlines()
    listed = [line.split()[0] for line in lines if line.strip() and not line.startswith("   ")]
    assert listed[:5] == ["train", "finetune", "eval", "predict", "profile"]
    assert "recipes" in listed


@pytest.mark.parametrize("width", WIDTHS)
def test_every_help_is_whole_at_every_width(stvit, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in all_commands():
        shown = stvit(*words, "-h").out
        assert shown == stvit(*words, "--help").out
        assert "<" not in shown.replace("runs/<recipe>-<time>", ""), shown  # no types of Python
        lines = shown.splitlines()
        assert lines[0].startswith("Usage: stvit")
        assert max(len(line) for line in lines if not line.lstrip().startswith(("runs/<recipe>", "detection."))) <= max(width, 60)
        for command in [line for line in lines if line.startswith("  stvit ") and line.endswith("\\")]:
            assert len(command) <= width


@pytest.mark.parametrize("words", [[], ["data"], ["recipes"]])
def test_a_group_lists_whole_summaries(stvit, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = " ".join(stvit(*words, "-h").out.split("Commands:")[1].split())
    for command in all_commands():
        if command[:-1] == words and command:
            first, second = stvit(*command, "-h").out.split("\n\n")[:2]
            assert first.startswith("Usage:")
            assert f"{command[-1]} {' '.join(second.split()).split('. ')[0].removesuffix('.')}" in listed


def test_metavars_are_for_people(stvit) -> None:
    assert "Usage: stvit predict [OPTIONS] IMAGE...\n" in stvit("predict", "-h").out
    assert "\n  IMAGE...  Images, folders of images; with --parquet" in stvit("predict", "-h").out
    assert "Usage: stvit train [OPTIONS] [KEY=VALUE...]\n" in stvit("train", "-h").out
    assert "[default: 1; at least 1]" in " ".join(stvit("predict", "-h").out.split())


def test_a_terminal_shows_the_same_in_bold_and_colours(stvit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in all_commands():
        monkeypatch.setattr("stvit_cli.cli.help.is_plain", lambda: True)
        plain = stvit(*words, "-h").out
        monkeypatch.setattr("stvit_cli.cli.help.is_plain", lambda: False)
        styled = styled_help(words)  # `echo` removes the codes where there is no terminal
        assert "\x1b[1m" in styled
        assert Text.from_ansi(styled).plain.replace("`", "").split() == plain.replace("`", "").split()


def styled_help(words: list[str]) -> str:
    import typer

    from stvit_cli.cli import app

    command = typer.main.get_command(app)
    settings = {"help_option_names": ["-h", "--help"]}
    context = typer.Context(command, info_name="stvit", **settings)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
        context = typer.Context(command, info_name=word, parent=context, **settings)
    return command.get_help(context)


def test_without_a_command_the_help_is_shown(stvit) -> None:
    assert stvit().out == stvit("--help").out
    assert stvit("recipes").out == stvit("recipes", "--help").out
    assert stvit().code == stvit("recipes").code == 0


def test_the_version(stvit) -> None:
    from stvit_cli import __version__

    assert stvit("--version") == (0, f"stvit {__version__}\n", "")


def test_help_and_recipes_do_not_import_torch() -> None:
    words = json.dumps([[], *COMMANDS])
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, words], check=True, timeout=60)
