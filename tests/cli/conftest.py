"""A trained run that several tests of the command line look at."""

from __future__ import annotations

from pathlib import Path

import pytest

SMALL = [
    *("data.kind=imagefolder", "data.image_size=32", "data.num_workers=0", "augment.crop_scale=[0.8,1]"),
    *("train.global_batch_size=8", "train.device=cpu", "schedule.warmup_epochs=1"),
]


@pytest.fixture
def small() -> list[str]:
    """Words that make the quickstart recipe a run of seconds on a folder of images."""
    return SMALL


@pytest.fixture(scope="session")
def short_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of sixteen steps on the red and blue images; beside it, run.json has what ``train`` reported."""
    from stvit_cli.cli import main

    run_dir = tmp_path_factory.mktemp("runs") / "red and blue"
    words = ["train", "--recipe", "quickstart", "--data", str(image_folder), "--output", str(run_dir)]
    assert main([*words, "--json", str(run_dir.parent / "run.json"), *SMALL, "schedule.epochs=8"]) == 0
    return run_dir
