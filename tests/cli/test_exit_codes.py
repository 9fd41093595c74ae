"""What ends a command, and with which code."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from stvit_cli import cli
from stvit_cli.errors import Interrupted, UserError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'"),
        (["recipes", "shw"], "No such command 'shw'. Did you mean 'show'?\nSee: stvit recipes --help"),
        (["train", "--recpie", "quickstart"], "--recpie"),
        (["recipes", "check", "deit300", "--jsn", "x"], "No such option: --jsn"),
        (["train", "--recipe"], "'--recipe'"),
        (["recipes", "show"], "Missing argument 'RECIPE'"),
        (["finetune", "--recipe", "finetune384"], "Missing option '--weights'"),
        (["predict", "x.png", "--weights", "w", "--top", "0"], "--top"),
        (["predict", "x.png", "--weights", "w", "--top", "many"], "--top"),
    ],
)
def test_words_that_are_wrong(stvit, words: list[str], said: str) -> None:
    ended = stvit(*words)
    assert ended.code == 2
    assert said in ended.err
    assert 1 <= len(ended.err.splitlines()) <= 6
    assert ended.out == ""
    assert "Traceback" not in ended.err


def test_the_nearest_option_is_named(stvit) -> None:
    assert "--recipe" in stvit("train", "--recpie", "quickstart").err.replace("--recpie", "")
    assert "--full" in stvit("recipes", "show", "deit300", "--ful").err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UserError("the key\nis wrong"), 2),
        (Interrupted(signal.SIGINT), 130),
        (Interrupted(signal.SIGTERM), 143),
        (Interrupted(signal.SIGUSR1), 143),
        (KeyboardInterrupt(), 130),
        (SystemExit(2), 2),
    ],
    ids=repr,
)
def test_what_is_raised_becomes_a_code(stvit, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("stvit_cli.recipe.io.list_recipes", fail)
    if isinstance(raised, SystemExit):
        with pytest.raises(SystemExit) as ended_at_once:
            stvit("recipes", "list")
        assert ended_at_once.value.code == code
        return
    ended = stvit("recipes", "list")
    assert ended.code == code
    assert ended.err == ("stvit: the key\nis wrong\n" if code == 2 else "")


def test_a_fault_of_ours_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("stvit_cli.recipe.io.list_recipes", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["recipes", "list"])


def test_a_fault_of_ours_shows_where_it_happened_and_ends_with_1() -> None:
    code = (
        "import sys, stvit_cli.recipe.io\n"
        "stvit_cli.recipe.io.list_recipes = lambda: 1 / 0\n"
        "from stvit_cli.cli import main\n"
        "sys.exit(main(['recipes', 'list']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


def test_the_trace_of_an_internal_error_cannot_steer_the_terminal() -> None:
    code = (
        "import sys, stvit_cli.recipe.io\n"
        "stvit_cli.recipe.io.list_recipes = lambda: {}[1]\n"
        "from stvit_cli.cli import main\n"
        "try:\n"
        "    main(['recipes', 'list'])\n"
        "except KeyError:\n"
        "    raise RuntimeError('of a file named \\x1b[2J')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert r"RuntimeError: of a file named \x1b[2J" in ended.stderr
    assert "\x1b" not in ended.stderr


def test_a_reader_that_goes_away_is_no_fault() -> None:
    shown = f"{sys.executable} -m stvit_cli recipes show deit300 --full"
    ended = subprocess.run(["bash", "-c", f"{shown} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=60)
    assert ended.returncode in (0, 1, 141)
    assert ended.stderr == ""
