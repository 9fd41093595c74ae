"""The page of sections: no text becomes markup, nothing is loaded, equal input gives equal bytes, and it stays small."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from stvit_cli.analysis.report.charts import MAX_POINTS, chart_data, kept_points
from stvit_cli.analysis.report.page import render
from stvit_cli.data.thumbnails import thumbnail
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

EVIL = "</script><img src=x onerror=alert(1)>\"'&@JS@"


def image(seed: int) -> bytes:
    return thumbnail(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 80, 3), dtype=np.uint8)))


def shown(seed: int, name: str = "a.jpg") -> ShownImage:
    return ShownImage(name, [Thumbnail(image(seed), "truth")], ["truth: cat"], is_wrong=True)


def every_part(word: str) -> list[ReportSection]:
    return [
        ReportSection(
            "all",
            word,
            [
                MetricsPart([Metric(word, 1.5, 1.0, 2.0, word, word), Metric("none", None)], word, word),
                MetricsPart([Metric(f"{word}{i}", float("nan"), note=word) for i in range(9)]),
                TablePart(
                    [Column(word), Column("n", "count"), Column("p", "percent")], [[word, 3, None], [None, None, 4.5]], word
                ),
                ChartPart(word, word, word, [Series(word, [1, 2], [0.5, None], best=0), Series(word, [1], [2.0], "bars")], word),
                GalleryPart(word, [shown(0, word)], total=7, note=word),
                MatrixPart(word, [word, "b"], [[1, 2], [0, 4]], {(0, 1): [shown(0, word)]}, word, word),
                TextPart([word], word, "code"),
                TextPart([word], word, "warning"),
            ],
            word,
        )
    ]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes += attrs


def tags(page: str) -> Tags:
    parser = Tags()
    parser.feed(page)
    return parser


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)[1])


def test_no_text_of_the_data_becomes_markup() -> None:
    evil, plain = tags(render(EVIL, EVIL, every_part(EVIL))), tags(render("w", "w", every_part("w" * 60)))
    assert evil.found == plain.found
    assert [name for name, _ in evil.attributes] == [name for name, _ in plain.attributes]
    assert not [name for name, _ in evil.attributes if name.startswith("on")]
    assert data_of(render(EVIL, EVIL, every_part(EVIL)))["charts"][0]["title"] == EVIL


def test_it_loads_nothing() -> None:
    page = render("t", "s", every_part("w"))
    found = dict.fromkeys(value for name, value in tags(page).attributes if name in ("src", "href", "action", "srcset", "poster"))
    assert list(found) == ["data:,", "#page-main", "#all"]
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", page)


def test_sections_of_the_same_id_have_anchors_of_their_own() -> None:
    found = tags(render("t", "s", [ReportSection("curves", name, []) for name in ("Recall", "Loss", "Rate")])).attributes
    ids = [value for name, value in found if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value for name, value in found if name == "href" and value.startswith("#curves")]
    assert links == ["#curves", "#curves-2", "#curves-3"]
    assert {link[1:] for link in links} <= set(ids)


def test_equal_input_gives_equal_bytes() -> None:
    assert render("t", "s", every_part("w")) == render("t", "s", every_part("w"))


def test_an_image_is_in_the_page_once() -> None:
    page = render("t", "s", every_part("w"))
    files = data_of(page)["images"]
    assert len(files) == 1
    assert page.count(files[0]["data"]) == 1
    assert (files[0]["width"], files[0]["height"]) == Image.open(io.BytesIO(image(0))).size


def test_what_the_page_has_no_room_for_is_counted() -> None:
    many = [shown(seed, f"{seed}.jpg") for seed in range(6)]
    gallery = GalleryPart("g", many[:4], total=90)
    matrix = MatrixPart("m", ["a", "b"], [[4, 1], [0, 1]], {(0, 0): many[:5], (0, 1): many[5:]})
    room = sum(len(image(seed)) * 4 // 3 + 80 for seed in (0, 1, 2, 3, 5)) + 9
    page = render("t", "s", [ReportSection("x", "X", [matrix, gallery])], max_image_bytes=room)
    assert "4 of 90 images" in page
    # The gallery goes first; then one image of each cell, of which those of the gallery cost nothing.
    assert {cell: len(images) for cell, images in data_of(page)["matrices"][0]["images"].items()} == {"0,0": 4, "0,1": 1}
    assert "5 are in the page (1 more would make the page too large)" in page
    tight = render("t", "s", [ReportSection("x", "X", [GalleryPart("g", many)])], max_image_bytes=room // 2)
    assert re.search("[12] of 6 images|[12] images? of 6", tight)


def test_a_long_series_keeps_its_ends_its_outline_and_its_best() -> None:
    y: list[float | None] = [float(np.sin(i / 900)) for i in range(20_000)]
    y[7] = y[4444] = None
    y[12_345], y[15_000] = 9.0, -9.0
    series = Series("s", list(range(20_000)), y, best=1234)
    kept = kept_points(series)
    assert len(kept) <= MAX_POINTS + 3
    assert {0, 1234, 7, 4444, 12_345, 15_000, 19_999} <= set(kept)
    drawn = chart_data(ChartPart("t", "x", "y", [series]))["series"][0]
    assert drawn["x"][drawn["best"]] == 1234
    assert kept_points(Series("s", [1.0], [2.0])) == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_a_gap(value: float | None) -> None:
    drawn = chart_data(ChartPart("t", "x", "y", [Series("s", [1.0, 2.0], [value, 1.0])]))
    assert drawn["series"][0]["y"] == [None, 1]


def test_the_matrix_is_sparse() -> None:
    counts = np.diag(np.arange(1000)).tolist()
    matrix = data_of(render("t", "s", [ReportSection("x", "X", [MatrixPart("m", [str(i) for i in range(1000)], counts)])]))
    assert len(matrix["matrices"][0]["entries"]) == 3 * 999
