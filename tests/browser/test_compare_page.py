"""The page of `stvit compare` in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.browser import axe, overflow, tab_through

import stvit_cli


@pytest.fixture(scope="session")
def compared(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "compare.html"
    stvit_cli.compare([train("classifier"), train("classifier", "optim.lr=1e-5")]).write(path)
    return path


def test_comparison_holds_for_everyone(open_page, shoot, compared: Path, width: int) -> None:
    page = open_page(compared, width=width, dark=width == 390, touch=width == 390)
    shoot(page, f"compare-{width}")
    assert overflow(page) <= 0
    assert "optim.lr" in page.inner_text("main")
    assert page.locator(".plot svg").count() == page.locator(".plot").count() > 0
    headings = page.locator("main > section > h2").all_inner_texts()
    assert page.locator("nav a").all_inner_texts() == headings
    axe(page)
    for summary in page.locator("summary:visible").all():
        summary.click()
    assert len(tab_through(page)) > 10


def test_images_on_which_the_runs_differ_are_enlarged(open_page, compared: Path) -> None:
    page = open_page(compared)
    card = page.locator(".card").first
    card.click()
    assert page.locator("dialog[open] img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
