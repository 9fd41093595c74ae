"""The documentation site: it is built without a warning and without network, and the pages have what they promise."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from site_pages import recipes
from typer.core import TyperCommand

import stvit_cli
from stvit_cli.cli import app
from stvit_cli.recipe import Recipe
from stvit_cli.recipe.error_messages import dotted_keys

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)="?(https?:)?//[^">\s]+""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site") / "built"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def text_of(site: Path, page: str) -> str:
    return (site / page).read_text(encoding="utf-8")


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert [(page.name, found[0]) for page in pages if (found := LOADED.search(page.read_text(encoding="utf-8")))] == []


def test_every_key_of_a_recipe_is_explained(site: Path) -> None:
    page = text_of(site, "reference/recipes.html")
    assert [key for key in dotted_keys() if f'id="{key}"' not in page] == []


@pytest.mark.parametrize("key", [key for key in dotted_keys() if "." in key])
def test_the_example_of_a_key_is_valid(key: str) -> None:
    section, _, leaf = key.partition(".")
    schema = type(Recipe.model_fields[section].default)
    value = recipes.example(key, schema.model_fields[leaf])
    assert value is not None, "give it an example in EXAMPLES of tools/site_pages/recipes.py"
    assert getattr(schema(**{leaf: value}), leaf) == value


def test_every_command_and_option_is_there(site: Path) -> None:
    page = html.unescape(re.sub(r"<[^>]+>", "", text_of(site, "reference/cli.html")))

    def walk(command: TyperCommand, words: list[str]) -> Iterator[str]:
        yield " ".join(words)
        yield from (option for param in command.params for option in param.opts)
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])

    wanted = {name for name in walk(typer.main.get_command(app), ["stvit"]) if " " in name or name.startswith("-")}
    assert len(wanted) > 50
    assert sorted(name for name in wanted if name not in page) == []


def test_every_public_name_is_there(site: Path) -> None:
    page = text_of(site, "reference/python.html")
    missing = [name for name in stvit_cli.__all__ if not name.startswith("_") and f'id="stvit_cli.{name}"' not in page]
    assert missing == []
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page  # examples are code, not quotations


def test_nothing_is_left_to_be_generated(site: Path) -> None:
    assert [page for page in sorted(site.rglob("*.html")) if "<!-- generated:" in page.read_text(encoding="utf-8")] == []


def test_tutorials_show_their_scripts(site: Path) -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (site / "tutorials").glob("*.html")}
    assert [name for name, text in pages.items() if re.search(r"examples/\w+\.py:\w", text)] == []
    assert "make_photos" in pages["classifier.html"]
    assert "InferenceSession" in pages["classifier.html"]
