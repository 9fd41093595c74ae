"""Standard output and error that are closed, full, or of another alphabet; and names that could steer a terminal."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from stvit_cli.cli import main
from stvit_cli.cli.output import echo, print_table
from stvit_cli.cli.streams import GuardedOutput, log_to_stderr
from stvit_cli.engine.progress import Progress
from stvit_cli.engine.schedule import Timeline
from stvit_cli.errors import UserError

HOSTILE = "cat\x1b]0;owned\x07\x1b[2J\r\n\x00:smile:[red]"
SHOWN = r"cat\x1b]0;owned\x07\x1b[2J\r\n\x00:smile:[red]"


def shell(words: str, redirected: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m stvit_cli {words} {redirected}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


def test_a_full_standard_output_is_said() -> None:
    ended = shell("recipes show deit300", "> /dev/full")
    assert ended.returncode == 2
    assert ended.stderr == "stvit: standard output cannot be written: No space left on device.\n"


def test_a_run_whose_metrics_cannot_be_printed_is_said_to_be_complete(capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("stvit_cli.cli._run", lambda words, output: setattr(output, "failure", OSError(28, "No space left")) or 0)
    for words, lines in ((["train", "--json", "-"], 2), (["train", "--dry-run", "--json", "-"], 1), (["eval", "--json", "-"], 1)):
        assert main(words) == 2
        said = capfd.readouterr().err
        assert len(said.splitlines()) == lines
        assert ("The run itself is complete, and saved as usual" in said) is (lines == 2)


@pytest.mark.parametrize("redirected", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-", "2> /dev/full"])
def test_closed_streams_do_not_end_a_command(redirected: str) -> None:
    ended = shell("recipes list", redirected)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("redirected", ["2>&-", "2> /dev/full", ">&- 2> /dev/full"])
def test_a_message_that_cannot_be_said_keeps_its_exit_code(redirected: str) -> None:
    ended = shell("recipes show nothing", redirected)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


def test_json_for_a_closed_standard_output_is_refused_before_the_work() -> None:
    ended = shell("recipes list --json -", ">&-")
    assert ended.returncode == 2
    assert ended.stderr.startswith("stvit: --json -: standard output is closed")


def test_letters_that_a_terminal_lacks_are_escaped() -> None:
    inner = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = GuardedOutput(inner)
    stream.write("Katze: 猫")
    stream.flush()
    assert inner.buffer.getvalue() == rb"Katze: \u732b"  # type: ignore[attr-defined]


def test_a_failing_stream_is_remembered_and_written_to_again() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    inner = Full()
    stream = GuardedOutput(inner)
    stream.write("lost")
    inner.full = False
    stream.write("there")
    assert inner.getvalue() == "there"
    assert stream.failure is not None
    assert stream.failure.errno == 28


def test_log_records_are_printed_as_single_lines_by_the_command_line_alone(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("stvit_cli.some.module")
    with log_to_stderr():
        logger.warning("%s is odd", "a\nname\x1b[2J")
        logger.info("compiling")
    logger.warning("from Python")
    assert capsys.readouterr().err == "Warning: a\\nname\\x1b[2J is odd\ncompiling\n"
    assert [record.getMessage() for record in caplog.records][-1] == "from Python"


def test_commands_print_names_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    echo(HOSTILE)
    print_table(["name"], [[HOSTILE]], title=HOSTILE)
    progress = Progress(Timeline(1, 1, 1), 0, quiet=False)
    progress.say(HOSTILE.replace("\n", "\\n"))
    progress.warn(HOSTILE.replace("\n", "\\n"))
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:2] == [SHOWN, SHOWN]
    assert lines[3].strip() == SHOWN
    assert captured.err.splitlines() == [SHOWN, f"Warning: {SHOWN}"]


def test_a_message_about_a_hostile_name_is_escaped(stvit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = stvit("recipes", "show", f"x{HOSTILE}.yaml")
    assert ended.code == 2
    assert SHOWN in ended.err
    assert "\x1b" not in ended.err
    assert len(ended.err.splitlines()) <= 3

    def fail() -> None:
        raise UserError("first line\nsecond \x1b[2J")

    monkeypatch.setattr("stvit_cli.recipe.io.list_recipes", fail)
    assert stvit("recipes", "list").err == "stvit: first line\nsecond \\x1b[2J\n"


def test_predict_prints_hostile_class_and_file_names_escaped(stvit, short_run: Path, tmp_path: Path) -> None:
    from stvit_cli.models.weights.file import WeightsInfo, read_info, read_weights, save_weights

    info = read_info(short_run / "best.safetensors")
    names = tuple(f"{name} {HOSTILE}" for name in info.class_names)
    hostile = WeightsInfo(**{**vars(info), "class_names": names})
    save_weights(tmp_path / "w.safetensors", read_weights(short_run / "best.safetensors").state_dict, hostile)
    image = tmp_path / "a\x1b[2J\nb.png"
    Image.new("RGB", (40, 40)).save(image)
    ended = stvit("predict", image, "--weights", tmp_path / "w.safetensors", "--json", tmp_path / "found.json")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 1
    assert SHOWN in ended.out
    assert r"a\x1b[2J\nb.png" in ended.out
    assert "\x1b" not in ended.out
    assert json.loads((tmp_path / "found.json").read_text())[0]["file"] == str(image)


def test_a_command_to_paste_leads_to_the_path_it_names(tmp_path: Path) -> None:
    from stvit_cli.utils.text import shell_command

    names = ["-x", "--json", "a b'c", "tab\there", "esc\x1b[2J", "new\nline", "back\\sl\x07", "caf\udce9", "ü", "$HOME"]
    for name in names:
        (tmp_path / name).mkdir()
    command = shell_command("ls", "-d", *(Path(name) for name in names))
    assert "\x1b" not in command
    assert "\n" not in command
    bash = shutil.which("bash")
    assert bash is not None
    listed = subprocess.run([bash, "-c", f"{command} --zero"], cwd=tmp_path, capture_output=True, check=True)
    found = {part.removeprefix(b"./").decode(errors="surrogateescape") for part in listed.stdout.split(b"\0") if part}
    assert found == set(names)
