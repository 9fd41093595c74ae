"""Hooks of MkDocs (`hooks:` in mkdocs.yml): generated references, and the files outside docs/ that pages link to.

A page has a line such as ``<!-- generated: recipes -->`` where its generated part belongs: nothing generated is committed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mkdocs.structure.files import File, Files
from site_pages import cli, evidence, links, python, recipes

GENERATORS: dict[str, Callable[[], str]] = {
    "changelog": lambda: _body("CHANGELOG.md"),
    "cli": cli.page,
    "evidence": evidence.page,
    "python": python.page,
    "recipes": recipes.page,
}
_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_WHOLE = {"UPGRADING.md": "Upgrading", "CONTRIBUTING.md": "Contributing"}
"""Files of the root that are pages by themselves, and their names in the last part of the navigation."""


def on_config(config: Any) -> Any:
    """Add the pages of the root to the navigation."""
    (last,) = config.nav[-1].values()
    last += [{title: links.INCLUDED[name]} for name, title in _WHOLE.items() if (links.ROOT / name).is_file()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, and what pages link to outside docs/."""
    pages = {f"{links.DOCS}/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for name in _WHOLE:
        if (links.ROOT / name).is_file():
            text = (links.ROOT / name).read_text(encoding="utf-8")
            pages[name] = text
            files.append(File.generated(config, links.INCLUDED[name], content=links.rewritten(text, name, links.INCLUDED[name])))
    pages["CHANGELOG.md"] = (links.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path in sorted({path for page, text in pages.items() for path in links.outside_files(text, page)}):
        files.append(File.generated(config, f"{links.ASSETS}/{path}", abs_src_path=str(links.ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in what is generated, and turn links to files into links to pages."""
    if page.file.generated_by is not None:  # rewritten already
        return markdown
    shown_as = page.file.src_uri
    text = links.rewritten(markdown, f"{links.DOCS}/{shown_as}", shown_as)
    return _MARK.sub(lambda match: GENERATORS[match[1]](), text)


def _body(name: str) -> str:
    """Return a file of the root without its title, with the links that it needs on its page."""
    text = (links.ROOT / name).read_text(encoding="utf-8")
    return links.rewritten(text.partition("\n")[2], name, links.INCLUDED[name])
