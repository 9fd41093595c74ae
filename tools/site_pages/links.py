"""Links of Markdown pages: found outside of code, and changed where a page is shown at another place than its file."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = "docs"
INCLUDED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "UPGRADING.md": "upgrading.md",
}
"""Files of the root, and the pages of the site that show them (the README: that take its place)."""
ASSETS = "source"
"""Folder of the site with the files outside of docs/ that pages link to."""

_CODE = re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[`~]*[ \t]*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|!?\[[^\[\]]*\](?:\([^()]*\))?)*)\]\((?P<target>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\)"
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class Link(NamedTuple):
    """A link or an image of a page.

    Attributes:
        path: of the file from the root of the repository; of the page itself for a link such as ``#nan-loss``.
        anchor: what follows ``#``, or nothing.
        target: as the page writes it.
    """

    path: str
    anchor: str
    target: str


def without_code(text: str) -> str:
    """Return a page's text with blanks in the place of its code, line by line as long as before.

    >>> without_code("a `[b](c)` d")
    'a          d'
    """
    return _CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def links(text: str, page: str) -> Iterator[Link]:
    """Yield the links of a page to files of the repository, also those within the text of other links.

    Args:
        text: of the page.
        page: its path from the root, such as ``docs/model.md``.
    """
    for match in _LINK.finditer(without_code(text)):
        yield from links(match["text"], page)
        if not _SCHEME.match(match["target"]):
            yield _resolved(match["target"], page)


def _resolved(target: str, page: str) -> Link:
    path, _, anchor = target.partition("#")
    return Link(posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page, anchor, target)


def rewritten(text: str, page: str, shown_as: str) -> str:
    """Return a page's text with the links that it needs on the site.

    Args:
        text: of the page.
        page: path of its file from the root.
        shown_as: path of the page on the site, such as ``model.md``.
    """
    return _replaced(text, lambda link: _target_on_site(link, shown_as), page)


def _replaced(text: str, target_of: Callable[[Link], str | None], page: str) -> str:
    """Put other targets into links; where there is none, the text of a link stays, and an image goes."""
    plain, parts, end = without_code(text), [], 0
    for match in _LINK.finditer(plain):
        if _SCHEME.match(match["target"]):
            continue
        target = target_of(_resolved(match["target"], page))
        inner = _replaced(text[match.start("text") : match.end("text")], target_of, page)
        new = f"{match['image']}[{inner}]({target}{match['title'] or ''})" if target else "" if match["image"] else inner
        parts += [text[end : match.start()], new]
        end = match.end()
    return "".join(parts) + text[end:]


def _target_on_site(link: Link, shown_as: str) -> str | None:
    if (ROOT / link.path).is_dir():
        return None
    place = INCLUDED.get(link.path) or (
        link.path.removeprefix(f"{DOCS}/") if link.path.startswith(f"{DOCS}/") else f"{ASSETS}/{link.path}"
    )
    anchor = f"#{link.anchor}" if link.anchor else ""
    if place == shown_as and anchor:
        return anchor
    return posixpath.relpath(place, posixpath.dirname(shown_as) or ".") + anchor


def outside_files(text: str, page: str) -> set[str]:
    """Return the files that a page links to and that are neither in docs/ nor pages of the site."""
    paths = {link.path for link in links(text, page)}
    return {path for path in paths if path not in INCLUDED and not path.startswith(f"{DOCS}/") and (ROOT / path).is_file()}
