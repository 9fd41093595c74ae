"""Every figure in README and docs has its line in docs/results, and what is written there is what the lines say."""

from __future__ import annotations

import json
import re
import shlex
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from helpers import figures
from helpers.figures import CLAIMS, PAGES, ROOT, prose, tables, uncovered

from stvit_cli.analysis.reproduce import experiments, results
from stvit_cli.analysis.reproduce.markdown import as_markdown
from stvit_cli.recipe import io as recipe_io

ALL_CLAIMS = figures.read_claims()
RESULTS = [path for path in sorted(CLAIMS.parent.glob("*.json")) if path != CLAIMS]
ACCURACY = re.compile(rf"{figures.METRICS}|of the \d+ that are held out")
ADD = "Add a line to docs/results/claims.json, and run: python tests/helpers/figures.py"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def value_of(reference: str) -> float:
    """Return the figure that ``fashion-mnist#settings/stvit-nano/mean`` names."""
    name, _, path = reference.partition("#")
    content = json.loads((CLAIMS.parent / f"{name}.json").read_text(encoding="utf-8"))
    return float(reduce(lambda part, key: part[key], path.split("/"), content))


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_has_its_line(page: str) -> None:
    assert uncovered(page, text_of(page), ALL_CLAIMS) == [], ADD


@pytest.mark.parametrize("key", ALL_CLAIMS)
def test_a_claim_is_what_the_page_says(key: str) -> None:
    claim = ALL_CLAIMS[key]
    page = text_of(claim["file"])
    if "text" in claim:
        assert claim["text"] in prose(page), f"{claim['file']} does not say this any more: {claim['text']}"
        assert next(figures.figures(claim["text"]), None) is not None
    else:
        found = [table for table in tables(page) if table.header == claim["table"]]
        assert found, f"{claim['file']} has no table {claim['table']}"
        if claim["kind"] == "measured":
            assert claim["rows"] == [row for table in found for row in table.rows], ADD


@pytest.mark.parametrize("key", ALL_CLAIMS)
def test_a_claim_says_where_it_comes_from(key: str) -> None:
    claim = ALL_CLAIMS[key]
    assert claim["kind"] in ("measured", "counted", "published", "given")
    if "of" in claim:
        decimals = [number for _, _, text in figures.figures(claim["text"]) for number in re.findall(r"\d+\.\d+", text)]
        digits = len(decimals[0].partition(".")[2])
        assert f"{value_of(claim['of']):.{digits}f}" in decimals
        return
    needed = ("command", "machine", "version", "written") if claim["kind"] == "measured" else ("source",)
    assert all(isinstance(claim[name], str) and claim[name] for name in needed)


def test_accuracies_in_the_readme_link_to_their_lines() -> None:
    keys = [key for key, claim in ALL_CLAIMS.items() if claim["file"] == "README.md" and "text" in claim]
    accuracies = [key for key in keys if ALL_CLAIMS[key]["kind"] == "measured" and ACCURACY.search(ALL_CLAIMS[key]["text"])]
    assert "quickstart" in accuracies
    for key in accuracies:
        text = ALL_CLAIMS[key]["text"]
        if not text.startswith("# "):  # no link can be in a comment of a command
            target = ALL_CLAIMS[key]["of"].partition("#")[0] + ".md" if "of" in ALL_CLAIMS[key] else f"claims.md#{key}"
            assert f"](docs/results/{target}" in text, f"{key}: link the figure to docs/results/{target}"


def test_the_pages_of_results_are_written_from_their_json() -> None:
    assert CLAIMS.with_suffix(".md").read_text(encoding="utf-8") == figures.as_markdown(ALL_CLAIMS), ADD
    for path in RESULTS:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert path.read_text(encoding="utf-8") == results.as_text(content)
        assert path.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(content)
    index = (CLAIMS.parent / "README.md").read_text(encoding="utf-8")
    assert [name for name in experiments.names() if f"`{name}`" not in index and f"[{name}]" not in index] == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_of_the_recipes_of_today(path: Path) -> None:
    experiment = experiments.load(path.stem)
    lines = json.loads(path.read_text(encoding="utf-8"))["runs"]
    known = results.known_runs(results.read_earlier(path), experiment)
    assert [key for key in lines if key not in known] == [], "the recipes of these runs have changed since: train them again"
    for line in lines.values():
        words = shlex.split(line["command"])
        assert words[:3] == ["stvit", "train", "--recipe"]
        assert recipe_io.recipe_hash(recipe_io.load(words[3], words[4:])) == line["recipe_hash"], line["command"]
    assert all(line[name] is not None for line in lines.values() for name in ("version", "machine", "threads", "minutes", "date"))


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("It reaches 93.7 % top-1.", "93.7 %"),
        ("It takes 40 ms a step.", "40 ms"),
        ("After three minutes it ends.", "three minutes"),
        ("At 1.3 of its speed.", "1.3"),
        ("A mIoU of 86 is enough.", "mIoU of 86"),
        ("```bash\nstvit train  # 530 images/s\n```\n", "530 images/s"),
        ("| model | images/s |\n|---|---|\n| a | 12 |\n", "| model | images/s |"),
    ],
)
def test_a_new_figure_is_noticed(text: str, figure: str) -> None:
    found = uncovered("README.md", text, {})
    assert len(found) == 1
    assert figure in found[0]


@pytest.mark.parametrize(
    "text",
    ["Python 3.11, `lr=5e-4 ms`, [a](b/1.5 s)", "step 7 of 224 x 224", "```python\nx = 1.5  # 3 ms\n```", "with 95 % intervals"],
)
def test_numbers_that_are_no_figures_need_no_line(text: str) -> None:
    assert uncovered("README.md", text, {}) == []


def test_a_claim_covers_its_own_words_on_its_own_page_only() -> None:
    claims: dict[str, dict[str, Any]] = {"a": {"file": "README.md", "text": "in 40 ms"}}
    assert uncovered("README.md", "in 40\nms", claims) == []
    assert len(uncovered("README.md", "in 40 ms, or 50 ms", claims)) == 1
    assert len(uncovered("docs/int8.md", "in 40 ms", claims)) == 1
