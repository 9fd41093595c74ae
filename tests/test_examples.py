"""The scripts of docs/examples run, as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.mark.slow
def test_ray_data_predicts_a_folder_with_a_damaged_image(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from pyarrow import parquet

    (tmp_path / "images").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    words = [tmp_path / "images", tmp_path / "out", "--weights", "stvit-nano.digits", "--batch-size", "4"]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment = os.environ | quiet | {"PYTHONPATH": str(EXAMPLES.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / "ray_data.py", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = sorted(parquet.read_table(tmp_path / "out").to_pylist(), key=lambda row: row["path"])
    assert [Path(row["path"]).name for row in rows] == [*(f"{number}.png" for number in range(5)), "damaged.png"]
    assert all(len(row["embedding"]) == 256 for row in rows[:5])
    assert all(row["class"] in "0123456789" and row["score"] > 0 and not row["error"] for row in rows[:5])
    assert rows[5]["class"] is rows[5]["score"] is rows[5]["embedding"] is None
    assert "damaged.png" in rows[5]["error"]
