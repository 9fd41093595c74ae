"""Every help answers at once (without torch) and shows what to type."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMMANDS = [
    *(["train"], ["finetune"], ["eval"], ["predict"], ["profile"]),
    *(["recipes"], ["recipes", "list"], ["recipes", "show"], ["recipes", "copy"], ["recipes", "check"]),
]

WITHOUT_TORCH = """
import json, sys
from stvit_cli.cli import main
for words in json.loads(sys.argv[1]):
    assert main([*words, "--help"]) == 0, words
assert main(["--version"]) == 0
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
    listed = [line.split()[0] for line in lines if line.strip()]
    assert listed[:5] == ["train", "finetune", "eval", "predict", "profile"]
    assert "recipes" in listed


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
