"""Reports in a browser: of sections that hold every part, of a classifier, a detector and a segmenter."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import axe, overflow, tab_through
from PIL import Image

import stvit_cli
from stvit_cli.analysis.report.page import render
from stvit_cli.tasks.report_parts import (
    ChartPart,
    Column,
    GalleryPart,
    MatrixPart,
    Metric,
    MetricsPart,
    ReportSection,
    Series,
    ShownImage,
    TablePart,
    TextPart,
    Thumbnail,
)

HOSTILE = "</script><img src=x onerror=alert(1)>"
CLASSES = [
    "cat",
    "dog",
    HOSTILE,
    "a class whose name is so long that no cell, no row and no phone could ever hold it in one line",
]


def shown(number: int, wrong: bool = True) -> ShownImage:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 20 * number, dtype=np.uint8)).save(buffer, "JPEG")
    return ShownImage(f"{HOSTILE}-{number}.jpg", [Thumbnail(buffer.getvalue(), "prediction")], ["truth: cat"], is_wrong=wrong)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that holds every kind of part, with names that nobody would choose."""
    counts = [[9, 2, 0, 1], [1, 8, 0, 0], [0, 3, 5, 0], [0, 0, 0, 7]]
    images = {(r, c): [shown(4 * r + c), shown(4 * r + c + 1)] for r in range(4) for c in range(4) if r != c and counts[r][c]}
    rows = [[name, 10 - i, 12.5 * (i + 1) if i != 2 else None, 0.1 * i] for i, name in enumerate(CLASSES)]
    columns = [Column("class"), Column("images", "count"), Column("precision", "percent"), Column("loss", "number")]
    many = [[f"class {i}", i, float(i % 100), 1 / (i + 1)] for i in range(60)]
    curve = ChartPart(
        "Loss", "step", "loss", [Series("train", [0, 1, 2, 3], [3.0, 2, None, 1]), Series("val", [1, 3], [2.2, 1.4], best=1)]
    )
    sections = [
        ReportSection(
            "metrics", "Metrics", [MetricsPart([Metric("top1", 75.0, 70.1, 80.2, "%"), Metric("loss", 0.7)])], "How to."
        ),
        ReportSection("confusion", "Confusion", [MatrixPart("Confusion", CLASSES, counts, images)]),
        ReportSection("classes", "Classes", [TablePart(columns, rows, "Classes"), TablePart(columns, many, "Many classes")]),
        ReportSection("curves", "Curves", [curve, ChartPart("One point", "epoch", "top1 (%)", [Series("top1", [1], [50.0])])]),
        ReportSection("mistakes", "Mistakes", [GalleryPart("Mistakes", [shown(i) for i in range(7)], total=40)]),
        ReportSection(
            "words", "Words", [TextPart(["stvit eval RUN " + "x" * 200], "Commands", "code"), TextPart([HOSTILE], "", "warning")]
        ),
    ]
    path = tmp_path_factory.mktemp("made") / "report.html"
    path.write_text(render(f"A run {HOSTILE}", "of a test", sections), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_opens_and_holds_for_everyone(open_page, shoot, made: Path, width: int, dark: bool) -> None:
    page = open_page(made, width=width, dark=dark, touch=width == 390)
    require_sound(page, shoot, f"report-made-{width}-{'dark' if dark else 'light'}")
    page.locator(".cell:not(:empty)").nth(1).click()
    page.locator(".card").first.click()
    assert page.locator("dialog[open]").count() == 1
    axe(page)


def require_sound(page, shoot, name: str) -> None:
    """A report does not scroll sideways, axe finds nothing serious, and the script has drawn what the page promises."""
    shoot(page, name)
    assert overflow(page) <= 0
    assert page.locator(".plot svg").count() == page.locator(".plot").count()
    for place in page.locator("[data-matrix]").all():
        assert place.locator(".cell").count() > 0
    axe(page)


def test_keyboard_reaches_everything(open_page, made: Path, width: int) -> None:
    page = open_page(made, width=width)
    for summary in page.locator("summary").all():
        summary.click()
    reached = tab_through(page)
    assert sum("true cat, predicted dog" in name for name in reached) == 1


def test_a_cell_of_the_confusion_shows_its_images(open_page, made: Path, width: int) -> None:
    page = open_page(made, width=width)
    page.get_by_role("button", name="true cat, predicted dog").click()
    panel = page.locator(".shown")
    assert "True cat, predicted dog: 2 images" in panel.inner_text()
    assert panel.locator("img").count() == 2
    assert panel.locator(".name").first.inner_text() == f"{HOSTILE}-1.jpg"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert "True dog, predicted cat: 1 image (" in panel.inner_text()


def test_counts_become_shares(open_page, made: Path) -> None:
    page = open_page(made)
    texts = page.locator(".cell").all_inner_texts()
    page.get_by_role("button", name="By true class, %").click()
    assert page.locator(".cell").all_inner_texts() != texts
    assert page.locator(".cell").first.inner_text() == "75"


def test_sorting_changes_the_order(open_page, made: Path) -> None:
    page = open_page(made)
    table = page.locator("#classes table").first

    def column(index: int) -> list[str]:
        return [row.locator("th, td").nth(index).inner_text() for row in table.locator("tbody tr").all()]

    assert column(0) == CLASSES
    table.get_by_role("button", name="images").click()
    assert column(1) == ["10", "9", "8", "7"]
    table.get_by_role("button", name="images").click()
    assert column(1) == ["7", "8", "9", "10"]
    table.get_by_role("button", name="precision").click()
    assert column(2)[-1] == ""
    page.keyboard.press("Enter")
    assert column(2)[-1] == "", "an empty cell is last in both orders"
    assert table.locator("[aria-sort=ascending]").count() == 1


def test_images_are_enlarged_and_paged_by_keys(open_page, made: Path) -> None:
    page = open_page(made)
    card = page.locator("#mistakes .card").first
    card.focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#page-viewer-count") == "1 of 7"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#page-viewer-count") == "2 of 7"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert card.evaluate("element => element === document.activeElement")


def test_a_chart_tells_its_values(open_page, made: Path) -> None:
    page = open_page(made)
    plot = page.locator(".plot").first
    plot.focus()
    page.keyboard.press("End")
    tip = page.locator(".tip:visible")
    assert "1.4" in tip.inner_text()
    assert "★" in tip.inner_text()


@pytest.fixture(scope="session")
def report(train: Callable[[str], Path]) -> Callable[[str], Path]:
    """The report of a tiny run: ``report("detector")``."""
    written: dict[str, Path] = {}

    def report_(kind: str) -> Path:
        if kind not in written:
            written[kind] = stvit_cli.report(train(kind))
        return written[kind]

    return report_


KINDS = pytest.mark.parametrize("kind", ["classifier", "detector", "segmenter"])


@KINDS
def test_report_of_a_run_on_a_phone_by_keyboard(open_page, shoot, report, kind: str) -> None:
    page = open_page(report(kind), width=390, dark=True, touch=True)
    require_sound(page, shoot, f"report-{kind}-390")
    for summary in page.locator("summary:visible").all():
        summary.click()
    assert overflow(page) <= 0
    assert len(tab_through(page)) > 20


@KINDS
def test_report_of_a_run_on_a_laptop(open_page, shoot, report, kind: str) -> None:
    page = open_page(report(kind))
    require_sound(page, shoot, f"report-{kind}-1280")
    headings = page.locator("main > section > h2").all_inner_texts()
    assert page.locator("nav a").all_inner_texts() == headings
    assert len(headings) > 6
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    require_cells_show_what_they_count(page)
    require_sorting_by_every_column(page)


def require_cells_show_what_they_count(page) -> None:
    matrix = page.locator("[data-matrix]").first
    filled = matrix.locator(".cell:not(:empty)")
    found = 0
    for cell in filled.all():
        label = cell.get_attribute("aria-label")
        cell.click()
        said = matrix.locator(".shown h3").inner_text()
        count = re.search(r": ([\d\u202f]+) ", label)[1]
        assert f": {count} " in said, (label, said)
        found += matrix.locator(".shown img").count() > 0
    assert found > 0
    matrix.locator(".shown .card").first.click()
    assert page.locator("dialog[open] img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.keyboard.press("Escape")


def require_sorting_by_every_column(page) -> None:
    tables = page.locator("table.sortable").all()
    assert tables
    for table in tables:
        for index, button in enumerate(table.locator("thead button").all()):
            button.click()
            head = table.locator("thead th").nth(index)
            values = table.locator("tbody tr").evaluate_all(
                "(rows, index) => rows.map(row => row.cells[index]).map(c => c.dataset.v ?? c.textContent)", index
            )
            known = [value for value in values if value != ""]
            assert values[: len(known)] == known, "empty cells are last"
            if head.evaluate("head => head.classList.contains('num')"):
                assert [float(value) for value in known] == sorted(
                    map(float, known), reverse=head.get_attribute("aria-sort") == "descending"
                )
