"""A signal ends a run after its step, with the state saved; a second one at once, with no file damaged."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from helpers import toy
from torch import Tensor

from stvit_cli.engine import checkpoint
from stvit_cli.engine.signals import StopRequest, stop_request


def run(folder: Path, *numbers: int, at: int = 0, pause: float = 0.0, resume: bool = False) -> int:
    """Run; in training loss number ``at`` the process sends itself the signals, and then pauses."""

    def on_loss(call: int, loss: Tensor) -> Tensor:
        if call == at:
            for number in numbers:
                os.kill(os.getpid(), number)
            time.sleep(pause)
        return loss

    settings = ("checkpoint.every_steps=null", "data.num_workers=1")
    return int(toy.start(lambda: toy.train(folder, *settings, norm=True, on_loss=on_loss, resume=resume), folder)()[0].code)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)],
)
def test_the_step_ends_the_state_is_saved_and_the_run_goes_on(unbroken: Path, tmp_path: Path, number: int, code: int) -> None:
    assert run(tmp_path, number, at=4 * 7 + 2) == code
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == 8
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    if number == signal.SIGINT:
        assert run(tmp_path, resume=True) == 0
        toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_in_the_last_step_of_an_epoch_the_evaluation_is_made_up_for(unbroken: Path, tmp_path: Path) -> None:
    assert run(tmp_path, signal.SIGTERM, at=4 * 5) == 143
    assert '"eval"' not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert run(tmp_path, resume=True) == 0
    toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_a_second_one_exits_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run(tmp_path, signal.SIGTERM, signal.SIGINT, at=4 * 7 + 2, pause=30.0) == 130
    assert time.monotonic() - began < 25
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == 5


def test_under_torchrun_an_echo_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    request = StopRequest()
    request.receive(signal.SIGINT, None)
    request.receive(signal.SIGINT, None)
    assert request.number == signal.SIGINT


def test_timeout_sends_one_request_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    request = StopRequest()
    request.receive(signal.SIGTERM, None)
    request.receive(signal.SIGTERM, None)
    assert request.number == signal.SIGTERM


def test_the_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as request:
        assert signal.getsignal(signal.SIGTERM) == request.receive
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_hangup_that_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_to_the_whole_group_leaves_the_workers_to_their_parent(tmp_path: Path) -> None:
    """As when a terminal closes: every process of the session gets the signal."""

    def on_loss(call: int, loss: Tensor) -> Tensor:
        if call == 2:
            os.killpg(0, signal.SIGHUP)
            time.sleep(0.2)
        return loss

    def work() -> None:
        os.setpgid(0, 0)
        toy.train(tmp_path, "checkpoint.every_steps=null", "data.num_workers=1", on_loss=on_loss)

    assert toy.start(work, tmp_path)()[0].code == 143
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == 1
