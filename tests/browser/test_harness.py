"""The checks of pages notice what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.browser import Pages, axe, overflow, small_targets, tab_through

HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title></head><body><main><h1>A page</h1>'


@pytest.fixture
def write(tmp_path: Path):
    def write_(body: str) -> Path:
        (tmp_path / "page.html").write_text(HEAD + body + "</main></body></html>", encoding="utf-8")
        return tmp_path / "page.html"

    return write_


def test_a_sound_page_passes_every_check(open_page, write, width: int) -> None:
    page = open_page(
        write('<p><a href="#x">a link</a> <button style="min-width:44px;min-height:44px">a button</button></p>'), width=width
    )
    axe(page)
    assert len(tab_through(page)) == 2
    assert overflow(page) == 0
    assert small_targets(page) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<button></button>", "button-name"),
        ('<p style="color:#999;background:#fff">too faint to read</p>', "color-contrast"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">', "image-alt"),
    ],
)
def test_axe_finds_a_serious_violation(open_page, write, body: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        axe(open_page(write(body)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('<button>one</button><button tabindex="-1">two</button>', "Tab never reaches .*two"),
        ('<button>one</button><div style="cursor:pointer">a div</div>', "the keyboard cannot reach: .*a div"),
        ('<button style="outline:none">one</button>', "one looks the same with the focus"),
        ('<button>one</button><div style="position:fixed;inset:0;background:#fff"></div>', "one is out of sight"),
    ],
)
def test_what_the_keyboard_misses_is_named(open_page, write, body: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        tab_through(open_page(write(body)))


def test_arrows_reach_the_cells_of_a_grid(open_page, write) -> None:
    cells = "".join(
        f'<div role="row">{"".join(f"<button role=gridcell tabindex=-1>{r}{c}</button>" for c in range(3))}</div>'
        for r in range(2)
    )
    script = """<script>
      const cells = [...document.querySelectorAll("[role=gridcell]")];
      const moves = { ArrowRight: 1, ArrowDown: 3 };
      cells[0].tabIndex = 0;
      document.querySelector("[role=grid]").addEventListener("keydown", event => {
        const at = cells.indexOf(document.activeElement), to = event.key === "Home" ? at - at % 3 : at + (moves[event.key] ?? 0);
        if (event.key === "ArrowRight" && at % 3 === 2 || !cells[to]) return;
        cells.forEach(cell => { cell.tabIndex = -1; }); cells[to].tabIndex = 0; cells[to].focus();
      });</script>"""
    page = open_page(write(f'<div role="grid" aria-label="cells">{cells}</div>{script}'))
    assert len(tab_through(page)) == 6


def test_a_page_that_asks_the_network_or_complains_is_noticed(browser, write) -> None:
    pages = Pages(browser)
    pages.open(
        write('<script>console.error("broken")</script><script>missing()</script><img alt="" src="http://127.0.0.1:9/x.png">')
    )
    with pytest.raises(AssertionError) as found:
        pages.close()
    assert all(text in str(found.value) for text in ("broken", "missing is not defined", "http://127.0.0.1:9/x.png"))


def test_wide_pages_and_small_targets_are_measured(open_page, write) -> None:
    page = open_page(write('<div style="width:500px">wide</div><button style="height:20px">x</button>'), width=390)
    assert overflow(page) > 100
    assert "<button> x" in small_targets(page)[0]
