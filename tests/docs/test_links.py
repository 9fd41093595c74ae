"""Links in README and docs lead to files and headings that are there; no network."""

from __future__ import annotations

import re
from functools import cache

import pytest
from helpers.snippets import ROOT
from site_pages.links import Link, links, rewritten, without_code

PAGES = tuple(str(path.relative_to(ROOT)) for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))))
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")


@cache
def anchors(page: str) -> frozenset[str]:
    """The anchors of a page, as GitHub makes them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blank = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    found: list[str] = []
    for heading in HEADING.findall(blank):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{slug}-{count}" if (count := sum(one.rstrip("-0123456789") == slug for one in found)) else slug)
    return frozenset(found) | frozenset(ANCHOR.findall(text))


def broken(link: Link) -> bool:
    target = ROOT / link.path
    if not target.exists():
        return True
    if not link.anchor or target.suffix != ".md":
        return False
    is_generated = "<!-- generated: " in target.read_text(encoding="utf-8")  # `mkdocs build --strict` knows these
    return link.anchor not in anchors(link.path) and not is_generated


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert [link.target for link in links((ROOT / page).read_text(encoding="utf-8"), page) if broken(link)] == []


def test_a_broken_link_is_noticed() -> None:
    text = "[a](b.md) [c](model.md#no-such) [d](../README.md) `[e](f.md)` [![g](h.png)](https://a.b)\n```\n[i](j.md)\n```\n"
    assert [link.target for link in links(text, "docs/index.md") if broken(link)] == ["b.md", "model.md#no-such", "h.png"]


def test_links_are_rewritten_for_the_site() -> None:
    text = "[a](docs/shards.md#x) [`b`](CONTRIBUTING.md), ![c](tests/images/coffee.jpg) [d](docs) `[e](docs/f.md)`"
    site = "[a](shards.md#x) [`b`](contributing.md), ![c](source/tests/images/coffee.jpg) d `[e](docs/f.md)`"
    assert rewritten(text, "CHANGELOG.md", "changelog.md") == site
    text = "[a](../../README.md) [b](../models.md)"
    assert rewritten(text, "docs/results/x.md", "results/x.md") == "[a](../index.md) [b](../models.md)"
    assert without_code("`a` b") == "    b"
