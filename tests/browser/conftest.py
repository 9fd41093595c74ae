"""A real browser for the pages: Debian's Chromium, driven by Playwright, which downloads none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.browser import Pages

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
