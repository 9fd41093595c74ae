"""Windows and macOS as far as Linux can play them: import, prediction and training without workers. See docs/platforms.md."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from stvit_cli.engine.peak_memory import peak_memory
from stvit_cli.utils import file_lock, files, machine_failures
from stvit_cli.utils.memory import process_limit

HELPER = Path(__file__).parent / "helpers" / "other_system.py"


@pytest.mark.parametrize("system", ["win32", pytest.param("darwin", marks=pytest.mark.slow)])  # macOS lacks less than Windows
def test_import_predict_and_train_without_what_the_system_lacks(system: str, tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, HELPER, tmp_path, system], capture_output=True, text=True, cwd=HELPER.parents[2])
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / system / "run" / "best.safetensors").is_file()
    assert "digit-3.png  3 " in ended.stdout


def test_a_lock_on_windows_is_a_byte_beyond_the_content(tmp_path: Path) -> None:
    """There nobody else can read what is locked, and the message of a refused run reads who holds the lock."""
    path = tmp_path / ".lock"
    path.write_bytes(b"holder")
    calls, refusal = [], PermissionError(errno.EACCES, "Permission denied")

    def locking(handle: int, mode: int, length: int) -> None:
        calls.append((os.lseek(handle, 0, os.SEEK_CUR), mode, length))
        if len(calls) > 1:
            raise refusal

    handle = os.open(path, os.O_RDWR)
    try:
        windows = SimpleNamespace(locking=locking, LK_NBLCK=2)
        file_lock._lock_on_windows(handle, windows)
        with pytest.raises(BlockingIOError):
            file_lock._lock_on_windows(handle, windows)
        assert calls == [(1 << 30, 2, 1)] * 2
        assert os.read(handle, 6) == b"holder"  # the position is where it was
    finally:
        os.close(handle)


def test_reading_at_a_position_without_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 64)
    handle = os.open(path, os.O_RDONLY | files.CLOSE_ON_EXEC)
    expected = [os.pread(handle, 16, 16 * number) for number in range(64)]
    monkeypatch.delattr(os, "pread")
    found: dict[int, bytes] = {}

    def read(numbers: range) -> None:
        found.update({number: files.read_at(handle, 16, 16 * number) for number in numbers})

    threads = [threading.Thread(target=read, args=(range(first, 64, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(handle)
    assert [found[number] for number in range(64)] == expected


def test_what_is_not_known_without_the_module_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) is None
    assert process_limit("RLIMIT_NOFILE") is None
    said = machine_failures.describe(machine_failures.MachineFailure("open files", "Too many open files"))
    assert said.startswith("Too many open files: Too many open files.\nRaise the limit")


def test_macos_counts_memory_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    import torch

    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=5000))
    assert peak_memory(torch.device("cpu")) == 5000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory(torch.device("cpu")) == 5000
