"""A machine at its limit ends every command with a message and 2: it is decided in one place, `main`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NoReturn

import pytest

from stvit_cli import cli
from stvit_cli.cli import main

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


def raiser(error: BaseException) -> Any:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise error

    return refuse


@pytest.mark.parametrize(
    ("command", "less"),
    [
        ("train", "train.batch_size_per_device"),
        ("finetune", "model.checkpointing=true"),
        ("eval", "eval.batch_size=1"),
        ("predict", "smaller images"),
        ("profile", "--batch-size"),
        ("export", "Free memory"),
        ("visualize-associations", "--image-size"),
        ("convert", "Free memory"),
    ],
)
def test_every_command_says_what_needs_less_memory(
    command: str, less: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", raiser(RuntimeError(ALLOCATOR)))
    assert main([command, "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("stvit: Out of memory: ")
    assert less in said
    assert len(said.splitlines()) <= 6


def test_memory_that_runs_out_as_a_model_is_built_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stvit_cli.analysis.cost.profile.build", raiser(MemoryError()))
    assert main(["profile", "stvit-nano"]) == 2
    assert "Out of memory" in capsys.readouterr().err


TIDIES_UP_WITHOUT_MEMORY = """
import atexit, sys
from stvit_cli import cli

def fail(*args, **keys):
    raise MemoryError

atexit.register(fail)
cli.app = fail
if sys.argv[1] == "nothing left":
    cli._complain = fail
sys.exit(cli.main(["predict"]))
"""


@pytest.mark.parametrize("left", ["enough for a message", "nothing left"])
def test_a_lack_of_memory_is_said_without_a_trace_of_what_follows_it(left: str) -> None:
    ended = subprocess.run([sys.executable, "-c", TIDIES_UP_WITHOUT_MEMORY, left], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("stvit: Out of memory")
    assert len(ended.stderr.splitlines()) == 3


def test_an_internal_error_is_still_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", raiser(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1"):
        main(["profile"])
