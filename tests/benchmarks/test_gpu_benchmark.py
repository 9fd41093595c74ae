"""The benchmark for the first GPU runs to its end on a CPU, and survives what fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gpu.py")


def run(tmp_path: Path, *options: str) -> tuple[dict, str]:
    output = tmp_path / "results"
    command = [sys.executable, str(PROGRAM), "--device", "cpu", "--smoke", "--output", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / "results.json").read_text()), (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_every_section_measures_every_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content, table = run(tmp_path)
    sections = {row["section"] for row in content["rows"]}
    assert sections == {"choice", "operators", "inference", "training", "loader"}
    assert [row for row in content["rows"] if row["note"]] == []
    measured = {(row["section"], row["what"], row["form"], row["batch"]) for row in content["rows"] if row["milliseconds"]}
    for section in ("inference", "training"):
        for name, form in (("stvit-nano", "compiled, kernels"), ("stvit-nano", "auto"), ("swin_t", "eager")):
            assert (section, name, form, 1) in measured
        assert {(section, "convnext_tiny", form, 1) for form in ("eager", "compiled")} <= measured
        assert (section, "stvit-nano", "kernels", 2) in measured
    assert ("inference", "swin_t", "CUDA graph", 2) in measured
    assert "`train.kernels=auto` uses the kernels for" in table
    assert "Training step at batch 2: auto" in table
    assert "these are no measurements" in table


@pytest.mark.slow
def test_without_time_it_says_so(tmp_path: Path) -> None:
    content, table = run(tmp_path, "--minutes", "0", "--sections", "inference")
    (row,) = content["rows"]
    assert row["note"].startswith("no time left: stvit-nano eager 1, stvit-nano kernels 1,")
    assert "convnext_tiny compiled 1" in row["note"]
    assert f"| without a number |  |  |  |  |  | {row['note']} |" in table


@pytest.mark.slow
def test_without_a_gpu_it_says_how_to_try_it() -> None:
    pytest.importorskip("torch")
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--device cpu --smoke" in done.stderr
