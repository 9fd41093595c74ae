"""What a page must hold in a browser: no serious violation of axe-core, and a keyboard alone reaches everything on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the default tests collect this file where Playwright need not be installed
    from playwright.sync_api import Browser, BrowserContext, Page

MAX_TABS = 600
LOCAL = ("file:", "data:", "blob:", "about:")
HEIGHT = {390: 844, 1280: 800}  # of a phone and of a laptop, by width

_CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")


class Pages:
    """Pages of one test, each in a context of its own, and what they complained of.

    Args:
        browser: of Playwright.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.problems: list[str] = []

    def open(self, path: Path, *, width: int = 1280, dark: bool = False, touch: bool = False, fragment: str = "") -> Page:
        """Open an HTML file in a window of ``width`` pixels, with ``fragment`` (``#...``) in its address."""
        context = self.browser.new_context(
            viewport={"width": width, "height": HEIGHT[width]},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
            reduced_motion="reduce",
        )
        context.set_default_timeout(10_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(LOCAL) else self.problems.append(f"asks for {request.url}")
        )
        page.goto(path.resolve().as_uri() + fragment)
        return page

    def close(self) -> None:
        """Fail if a page wrote an error or a warning to the console, raised an error, or asked for more than its own file."""
        for context in self.contexts:
            context.close()
        assert not self.problems, "\n".join(self.problems)


def axe(page: Page) -> None:
    """Fail if axe-core finds a serious or critical violation on the page as it is now."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    assert not serious, "\n".join(_explain(violation) for violation in serious)


def tab_through(page: Page) -> list[str]:
    """Fail if the keyboard alone misses an interactive element, or one does not show that it has the focus.

    Tab goes through the page; within a composite widget (``role`` of grid, radiogroup, tablist, toolbar, listbox or menu, or a
    table with buttons that Tab passes over) the arrow keys do. ``details`` and dialogs count as the page shows them: open them
    first.

    Returns:
        What was reached, in order.
    """
    unreachable = _check(page, "prepare")
    assert not unreachable, f"a pointer can click, the keyboard cannot reach: {unreachable}"
    faults: list[str] = []
    reached: list[str] = []
    for _ in range(MAX_TABS):
        page.keyboard.press("Tab")
        found = _look(page, faults, reached)
        if found is None or found["known"]:
            break
        if found["composite"]:
            _walk_by_arrows(page, faults, reached)
    else:
        raise AssertionError(f"more than {MAX_TABS} stops")
    missed = _check(page, "missed")
    assert not missed, f"Tab never reaches {missed}"
    assert not faults, "\n".join(faults)
    return reached


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the window: above 0 it scrolls sideways."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


def small_targets(page: Page, side: int = 44) -> list[str]:
    """Return what a finger can touch and is smaller than ``side`` pixels on a side; links within a text are exempt."""
    found: list[str] = _check(page, "smallTargets", side)
    return found


def _check(page: Page, name: str, argument: int | None = None) -> Any:
    return page.evaluate(f"argument => {{ {_CHECKS}\n return window.checks.{name}(argument); }}", argument)


def _look(page: Page, faults: list[str], reached: list[str]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _check(page, "focused")
    if found is not None and not found["known"]:
        faults += found["faults"]
        reached.append(found["name"])
    return found


def _walk_by_arrows(page: Page, faults: list[str], reached: list[str]) -> None:
    """Visit a composite widget from its first stop: along each row, then a row down, from the start of the row."""
    for _ in range(MAX_TABS):
        for _ in range(MAX_TABS):
            page.keyboard.press("ArrowRight")
            found = _look(page, faults, reached)
            if found is None or found["known"]:
                break
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
        found = _look(page, faults, reached)
        if found is None or found["known"]:
            break


def _explain(violation: dict[str, Any]) -> str:
    nodes = [
        f"    {node['target']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}" for node in violation["nodes"][:5]
    ]
    return "\n".join(
        [f"{violation['impact']}: {violation['id']}: {violation['help']} ({len(violation['nodes'])} elements)", *nodes]
    )
