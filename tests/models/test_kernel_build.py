"""Compiling the kernels of a CPU: once, whole or not at all, and with a line of reason where it cannot be."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stvit_cli.models import kernels
from stvit_cli.models.kernels import KernelsUnavailable, build
from stvit_cli.models.layers import ConvFFN

Compiler = Callable[[str], Path]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Put a script of one's own in the compiler's place, and the cache into an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(script: str) -> Path:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(path))
        return tmp_path / "cache" / "stvit"

    return write


COPY = 'while [ "$1" != -o ]; do shift; done; echo library > "$2"; echo once >> "$(dirname "$0")/calls"'


def test_once_for_a_source_and_a_processor(compiler: Compiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = compiler(COPY)
    library = build.library()
    assert library.parent == cache and library.read_text() == "library\n"
    assert "Compiling the CPU kernels, once" in capsys.readouterr().err
    assert build.library() == library and (tmp_path / "calls").read_text() == "once\n"
    assert capsys.readouterr().err == "" and list(cache.iterdir()) == [library]


def test_another_torch_has_another_library(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(COPY)
    library = build.library()
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert build.library() != library


def test_a_failed_compilation_says_the_first_error_and_leaves_nothing(compiler: Compiler) -> None:
    cache = compiler('echo "x.h:3: error: no such thing" >&2; exit 1')
    with pytest.raises(KernelsUnavailable, match=r"compiler failed: x.h:3: error: no such thing"):
        build.library()
    assert list(cache.iterdir()) == []


def test_no_compiler_and_no_place(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(COPY)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(KernelsUnavailable, match="cannot be written"):
        build.library()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsUnavailable, match="no C.. compiler here .no-such-compiler"):
        build.library()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(KernelsUnavailable, match="Linux"):
        build.library()


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_loaded", set())
    monkeypatch.setattr(kernels, "_unavailable", {})


@pytest.mark.usefixtures("nothing_loaded")
def test_a_failed_compilation_is_said_once_and_not_tried_again(compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    compiler('echo "x.h:3: error: no such thing" >&2; exit 1')
    assert not kernels.use_kernels(torch.nn.Linear(1, 1), "cpu", "auto")  # no part, no compilation
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert not kernels.use_kernels(ConvFFN(16), "cpu", "auto")
    said = capsys.readouterr().err
    assert said.count("Compiling the CPU kernels") == said.count("x.h:3: error: no such thing. The plain form runs") == 1


@pytest.mark.usefixtures("nothing_loaded")
def test_where_they_cannot_be_had_the_plain_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    part = ConvFFN(16)
    assert not kernels.use_kernels(part, "cpu", "auto") and not part.kernels
    with pytest.raises(KernelsUnavailable):
        kernels.use_kernels(part, "cpu")
    with pytest.raises(KernelsUnavailable, match="not for mps"):
        kernels.load("mps")
    assert part(torch.randn(1, 16, 4, 4)).shape == (1, 16, 4, 4)
