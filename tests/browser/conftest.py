"""A real browser for the pages: Debian's Chromium, driven by Playwright, which downloads none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.browser import Pages
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "STVIT_REQUIRE_BROWSER"  # set: a missing browser is a failure, not a skip

OpenPage = Callable[..., "Page"]
Shoot = Callable[["Page", str], None]


@pytest.hookimpl(tryfirst=True)  # before pytest reads the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, one for all tests; without it the tests are skipped, or fail where STVIT_REQUIRE_BROWSER is set."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _unavailable("Playwright is not installed: pip install 'stvit[browser]'")
    if executable is None:
        _unavailable(f"none of {', '.join(CHROMIUM)} is installed: apt-get install chromium")
    # Chromium's sandbox refuses to run as root.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=executable, args=[*flags, "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


def _unavailable(reason: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(params=[390, 1280], ids=["390px", "1280px"])
def width(request: pytest.FixtureRequest) -> int:
    """A phone and a laptop."""
    found: int = request.param
    return found


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """`Pages.open`; the test fails at its end if a page complained."""
    pages = Pages(browser)
    yield pages.open
    pages.close()


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Shoot:
    """Save a screenshot of the whole page as ``NAME.png``, where the option ``--screenshots DIR`` says so."""
    folder = request.config.getoption("--screenshots")

    def save(page: Page, name: str) -> None:
        if folder:
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return save


HOSTILE = "<img src=x onerror=alert(1)>"
TINY = {
    "classifier": [
        "quickstart",
        "data.kind=imagefolder",
        "data.image_size=32",
        "augment.crop_scale=[0.8,1]",
        "schedule.epochs=2",
    ],
    "detector": [
        *("shapes-mask-rcnn", "data.kind=coco", "detection.short_sides=[64]", "detection.long_side=96", "detection.channels=16"),
        *("detection.fc_dim=16", "schedule.epochs=1"),
    ],
    "segmenter": [
        *("shapes-upernet", "data.kind=ade20k", "data.image_size=64", "segmentation.channels=16", "segmentation.aux_channels=8"),
        *(
            "segmentation.max_size=[64, 64]",
            "segmentation.reduce_zero_label=true",
            "schedule.steps=2",
            "schedule.warmup_steps=0",
            "train.eval_every_steps=2",
        ),
    ],
}
"""A recipe for each task, and what makes it a run of seconds."""


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of three classes, one with a name that nobody would choose."""
    root, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 4)):
        for channel, name in enumerate(("red", "green", HOSTILE)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (32, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 50
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def train(colours: Path, coco_tree: Path, ade20k_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train ``train("detector", "optim.lr=1e-3")``, once for the same words; return the run directory."""
    data, runs = {"classifier": colours, "detector": coco_tree, "segmenter": ade20k_tree}, {}

    def train_(kind: str, *words: str) -> Path:
        from stvit_cli.cli import main

        if (kind, *words) not in runs:
            run = tmp_path_factory.mktemp(kind) / "run"
            recipe, *tiny = TINY[kind]
            common = ["data.num_workers=0", "train.device=cpu", "train.global_batch_size=4", *tiny, *words]
            assert main(["train", "--recipe", recipe, "--data", str(data[kind]), "--output", str(run), *common]) == 0
            runs[kind, *words] = run
        return runs[kind, *words]

    return train_
