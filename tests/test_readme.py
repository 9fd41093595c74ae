"""What the README tells a reader to paste works: the Python snippets run, the commands and their options are there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from stvit_cli import WeightsInfo, create_model, save_weights
from stvit_cli.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = sorted({line.split("  #")[0].strip() for line in re.split(r"\n|&&", SHELL) if line.strip().startswith("stvit ")})


def test_the_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON) >= 3
    # What a reader has by then: the run of the quickstart, and one of its samples.
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    info = WeightsInfo("stvit-nano", num_classes=10)
    save_weights(tmp_path / "runs" / "quickstart" / "best.safetensors", create_model("stvit-nano", 10), info)
    shutil.copy(Path(__file__).parent / "images" / "digit-3.png", tmp_path)
    for snippet in PYTHON:
        exec(compile(snippet, "README.md", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_and_options_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command, comments=True)[1:]
    names = [word for word in words[:2] if word.islower() and word.replace("-", "").isalpha()]
    names = names if names[0] in ("recipes", "data", "weights") else names[:1]
    assert main([*names, "--help"]) == 0
    page = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", page), f"{option} is not in the help of {' '.join(names)}"


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
