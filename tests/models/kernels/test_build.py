"""Compiling the kernels of a CPU: once, whole or not at all, and with a line of reason where it cannot be."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stvit_cli.cli.streams import log_to_stderr
from stvit_cli.models import kernels
from stvit_cli.models.kernels import KernelsUnavailableError, build
from stvit_cli.models.layers import ConvFFN
from stvit_cli.utils import library_cache as cache

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
        return tmp_path / "cache" / "stvit" / "kernels"

    return write


COPY = 'while [ "$1" != -o ]; do shift; done; echo library > "$2"; echo once >> "$(dirname "$0")/calls"'


def test_once_for_a_source_and_a_processor(compiler: Compiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = compiler(COPY)
    library = build.library()
    assert library.parent == folder
    assert library.read_text() == "library\n"
    assert "Compiling the CPU kernels, once" in capsys.readouterr().err
    assert build.library() == library
    assert (tmp_path / "calls").read_text() == "once\n"
    assert capsys.readouterr().err == ""
    assert sorted(folder.iterdir()) == [library, Path(f"{library}.blake2b")]


def test_another_torch_has_another_library(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(COPY)
    library = build.library()
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert build.library() != library


def test_a_failed_compilation_says_the_first_error_and_leaves_nothing(compiler: Compiler) -> None:
    folder = compiler('echo "x.h:3: error: no such thing" >&2; exit 1')
    with pytest.raises(KernelsUnavailableError, match=r"compiler failed: x.h:3: error: no such thing"):
        build.library()
    assert list(folder.iterdir()) == []


def test_no_compiler_and_no_place(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(COPY)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(KernelsUnavailableError, match="cannot be written"):
        build.library()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsUnavailableError, match=r"no C.. compiler here .no-such-compiler"):
        build.library()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(KernelsUnavailableError, match="Linux"):
        build.library()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "is damaged": lambda library: os.truncate(library, 3),
    "has no checksum": lambda library: Path(f"{library}.blake2b").unlink(),
    "can be written by other users": lambda library: library.chmod(0o777),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_library_is_compiled_again_before_it_is_loaded(
    compiler: Compiler, tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    compiler(COPY)
    library = build.library()
    DAMAGE[reason](library)
    capsys.readouterr()
    assert build.library() == library
    assert library.read_text() == "library\n"
    said = capsys.readouterr().err
    assert said == f"Compiling the CPU kernels again, as {library} {reason}: some seconds\n"
    assert build.library() == library
    assert (tmp_path / "calls").read_text() == "once\nonce\n"


def test_the_library_is_flushed_before_it_has_its_name(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiler(COPY)
    folder.mkdir(parents=True)
    sizes: list[int] = []
    sync = os.fsync

    def record(handle: int) -> None:
        if not any(folder.glob("*.so")):
            sizes.append(os.fstat(handle).st_size)
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    build.library()
    assert sizes == [len("library\n")]


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_whatever_the_umask_nobody_else_can_write(compiler: Compiler, umask: int) -> None:
    compiler(COPY)
    before = os.umask(umask)
    try:
        library = build.library()
    finally:
        os.umask(before)
    assert cache.untrusted(library) is None
    assert cache.untrusted(library.parent) is None
    assert cache.damage(library) is None


@pytest.mark.parametrize("name", ["kernels", "."])
def test_a_folder_that_others_can_write_is_not_used(compiler: Compiler, tmp_path: Path, name: str) -> None:
    folder = compiler(COPY)
    build.library()
    (folder.parent / name).chmod(0o777)
    with pytest.raises(KernelsUnavailableError, match=r"can be written by other users, .*; run: chmod go-w '/"):
        build.library()
    (folder.parent / name).chmod(0o755)
    build.library()


def test_what_belongs_to_another_user_is_not_used(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiler(COPY)
    folder.mkdir(parents=True)
    stat_of = Path.stat

    def of_another(path: Path, **options: bool) -> os.stat_result:
        fields = list(stat_of(path, **options))
        fields[stat.ST_UID] = os.geteuid() + 1
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", of_another)
    with pytest.raises(KernelsUnavailableError, match="belongs to another user"):
        build.library()


def test_a_cache_that_cannot_be_written_announces_nothing(
    compiler: Compiler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = compiler(COPY)
    folder.mkdir(parents=True)
    opened = Path.open

    def refuse(path: Path, mode: str = "r", **options: str | None) -> object:
        if "x" in mode:
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(KernelsUnavailableError, match=r"cannot be written .Read-only file system"):
        build.library()
    assert capsys.readouterr().err == ""


def test_no_home_and_no_execution(
    compiler: Compiler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(COPY)
    real = os.statvfs
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: type("Status", (), {"f_flag": real(path).f_flag | os.ST_NOEXEC}))
        with pytest.raises(KernelsUnavailableError, match=r"noexec.; set XDG_CACHE_HOME"):
            build.library()

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(KernelsUnavailableError, match="no home directory; set XDG_CACHE_HOME"):
        build.library()
    assert capsys.readouterr().err == ""


def test_another_processor_has_another_library(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(COPY)
    monkeypatch.setattr(build, "_processor", lambda: ["flags : avx2"])
    library = build.library()
    monkeypatch.setattr(build, "_processor", lambda: ["flags : avx2 avx512f"])
    assert build.library() != library


def test_where_the_system_does_not_describe_the_processor_the_machine_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor : 0\n")
    monkeypatch.setattr("platform.node", lambda: "first")
    first = build._processor()
    monkeypatch.setattr("platform.node", lambda: "second")
    assert build._processor() != first


def test_a_compiler_of_several_words(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(f'echo "$1" > "{tmp_path}/first"; {COPY}')
    monkeypatch.setenv("CXX", f"{tmp_path / 'compiler'} g++")
    build.library()
    assert (tmp_path / "first").read_text() == "g++\n"
    monkeypatch.setenv("CXX", "g++ 'unclosed")
    with pytest.raises(KernelsUnavailableError, match="which is not a command"):
        build.library()


def test_a_signal_that_ends_the_compiler_does_not_take_the_kernels_away(compiler: Compiler, tmp_path: Path) -> None:
    compiler(f'if [ ! -e "{tmp_path}/calls" ]; then echo once >> "{tmp_path}/calls"; kill -INT $$; fi; {COPY}')
    assert build.library().read_text() == "library\n"


def test_ctrl_c_does_not_reach_the_compiler_of_a_run(compiler: Compiler, tmp_path: Path) -> None:
    compiler(f'ps -o pgid= -p $$ > "{tmp_path}/group"; {COPY}')
    build.library()
    assert int((tmp_path / "group").read_text()) != os.getpgrp()


def test_where_ctrl_c_ends_the_command_it_ends_the_compiler(
    compiler: Compiler, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # A shell starts what runs in its background with SIGINT ignored, and so do some CI runners.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    folder = compiler(f'echo $$ > "{tmp_path}/pid"; exec sleep 30')

    def interrupt() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        time.sleep(0.3)  # on a busy machine this process may still be within Popen
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        build.library()
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert list(folder.iterdir()) == []


@pytest.fixture(autouse=True)
def _logged() -> Iterator[None]:
    """What is logged, as the command line prints it."""
    with log_to_stderr():
        yield


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_loaded", set())
    monkeypatch.setattr(kernels, "_unavailable", {})
    monkeypatch.setattr(kernels, "are_faster", lambda device_type: device_type == "cpu")


@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "DEFAULT"])
def test_auto_takes_them_where_they_were_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(kernels, "is_available", lambda device_type: True)
    assert kernels.use_kernels(ConvFFN(16), "cpu", "auto") is (capability != "DEFAULT")
    assert not kernels.use_kernels(ConvFFN(16), "cuda", "auto")


@pytest.mark.usefixtures("nothing_loaded")
def test_a_failed_compilation_is_said_once_and_not_tried_again(compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    compiler('echo "x.h:3: error: no such thing" >&2; exit 1')
    assert not kernels.use_kernels(torch.nn.Linear(1, 1), "cpu", "auto")  # no part, no compilation
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert not kernels.use_kernels(ConvFFN(16), "cpu", "auto")
    said = capsys.readouterr().err
    assert said.count("Compiling the CPU kernels") == said.count("x.h:3: error: no such thing. The eager form runs") == 1


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(("setup", "reason"), [("no-such-compiler", "no C++ compiler here"), (None, "cannot be loaded")])
def test_the_reason_is_said_once(
    compiler: Compiler,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    setup: str | None,
    reason: str,
) -> None:
    compiler(COPY)  # what it makes is no library
    if setup is not None:
        monkeypatch.setenv("CXX", setup)
    for _ in range(2):
        assert not kernels.use_kernels(ConvFFN(16), "cpu", "auto")
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Compiling")]
    assert len(said) == 1
    assert reason in said[0]
    assert said[0].endswith("The eager form runs instead, slower.")


@pytest.mark.usefixtures("nothing_loaded")
def test_where_they_cannot_be_had_the_plain_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    part = ConvFFN(16)
    assert not kernels.use_kernels(part, "cpu", "auto")
    assert not part.kernels
    with pytest.raises(KernelsUnavailableError):
        kernels.use_kernels(part, "cpu")
    with pytest.raises(KernelsUnavailableError, match="not for mps"):
        kernels.load("mps")
    assert part(torch.randn(1, 16, 4, 4)).shape == (1, 16, 4, 4)
