"""A machine at its limit ends every command with a message and 2: it is decided in one place, `main`."""

from __future__ import annotations

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


def test_an_internal_error_is_still_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", raiser(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1"):
        main(["profile"])
