"""Messages whose reader has gone end nothing."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

import pytest
from helpers import toy

from stvit_cli.utils.streams import Lasting, lasting_output, open_standard_files


def broken_pipe() -> TextIO:
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("kind", ["closed pipe", "full disk", "closed stream"])
def test_what_cannot_be_printed_is_dropped(monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    stream = broken_pipe() if kind != "full disk" else Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    if kind == "closed stream":
        stream.close()
    monkeypatch.setattr(sys, name, stream)
    with lasting_output("stdout", "stderr"):
        for _ in range(3):
            print("a line", file=getattr(sys, name), flush=True)
        with lasting_output("stderr"):
            print("x" * 100_000, file=getattr(sys, name))
    assert getattr(sys, name) is stream
    stream.close()  # flushes what is left, and would fail


def test_a_stream_that_is_read_gets_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    with lasting_output("stdout", "stderr"):
        print("out")
        print("err", file=sys.stderr)
    assert capsys.readouterr() == ("out\n", "err\n")


def test_what_is_printed_to_a_missing_stream_is_dropped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with lasting_output("stderr"):
        print("nobody", file=sys.stderr)  # with None, Python prints it to standard output
    assert sys.stderr is None
    assert capsys.readouterr().out == ""


def test_characters_that_an_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as file:
        Lasting(file).write("größer\n")
    assert (tmp_path / "log").read_text() == "gr\\xf6\\xdfer\n"


def test_a_standard_file_that_was_closed_is_not_the_next_file_that_is_opened(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(2)
        open_standard_files()
        file = os.open(tmp_path / "checkpoint", os.O_WRONLY | os.O_CREAT)
        os.write(2, b"a message")
        os._exit(0 if file != 2 and not (tmp_path / "checkpoint").read_bytes() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_training_outlives_the_reader_of_its_messages(unbroken: Path, tmp_path: Path) -> None:
    """As in ``stvit train 2>&1 | tee log`` when tee dies."""

    def work() -> None:
        stream = broken_pipe()
        sys.stdout = sys.stderr = stream
        toy.train(tmp_path, norm=True)
        stream.close()

    assert toy.start(work, tmp_path)()[0].code == 0
    toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_a_signal_without_a_terminal_still_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    from stvit_cli.engine.signals import StopRequest

    def gone(number: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("stvit_cli.engine.signals.os.write", gone)
    request = StopRequest()
    request.receive(1, None)
    assert request.number == 1
