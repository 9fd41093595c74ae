"""What torchrun sets, half set or wrong, is said instead of a traceback or a wait without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from stvit_cli.api import after_run
from stvit_cli.engine.distributed import joined_world
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.utils.environment import is_main_process, restart_count, single_process, world_size

WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RANK": None}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "but MASTER_ADDR and MASTER_PORT are not set"),
        ({"RANK": "2"}, "RANK is 2, expected 0 to 1: WORLD_SIZE is 2"),
        ({"RANK": "-1"}, "RANK is -1, expected 0 to 1"),
        ({"RANK": "first"}, "RANK is 'first', expected a whole number"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many', expected a whole number"),
        ({"WORLD_SIZE": "0", "RANK": None}, "WORLD_SIZE is 0, expected 1 or more"),
        ({"WORLD_SIZE": None, "RANK": "1"}, "RANK is 1, expected 0 to 0: WORLD_SIZE is 1"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', expected a whole number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http', expected a whole number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000, expected a port"),
    ],
)
def test_processes_that_cannot_find_each_other(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None], said: str
) -> None:
    for name, value in (WHOLE | changed).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said) as ended, joined_world("cpu"):
        pass
    assert len(str(ended.value).splitlines()) <= 6


def test_a_restart_count_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "once")
    with pytest.raises(UserError, match="TORCHELASTIC_RESTART_COUNT is 'once'"):
        restart_count()


def test_the_command_line_says_it_before_it_builds_anything(stvit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = stvit("train", "--recipe", "quickstart", "--output", "never")
    assert ended.code == 2
    assert "RANK and MASTER_ADDR and MASTER_PORT are not set" in ended.err


def test_what_comes_after_a_run_waits_for_no_other_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    sizes = []
    monkeypatch.setattr(after_run, "write_card", lambda _: sizes.append(world_size()))
    monkeypatch.setattr(after_run, "write_report", lambda *_: sizes.append(world_size()))
    after_run.finish(tmp_path, Recipe(), None)
    assert (sizes, world_size()) == ([1, 1], 2)
    monkeypatch.setenv("RANK", "1")
    with single_process():
        assert is_main_process()
    assert not is_main_process()
