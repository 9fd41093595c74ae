"""Whether the files of the repository agree on a version that is to be published.

    python tools/release.py v0.3.0

The version is that of `stvit_cli/__init__.py`, which the build reads; CITATION.cff and CHANGELOG.md repeat it. Without a tag
these are compared alone; with one, README.md, which a package index shows, may have no relative links. Needs nothing but Python.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def package_version(root: Path = ROOT) -> str:
    """Return the version of the package, as hatchling reads it."""
    return _found(root / "stvit_cli" / "__init__.py", r'^__version__ = "([^"]+)"$')


def disagreements(tag: str | None = None, root: Path = ROOT) -> list[str]:
    """Return what has to be changed before a version is published, a line each; nothing where it can be.

    Args:
        tag: of git, such as ``v0.3.0``; None: before there is one.
        root: of the repository.
    """
    version, found = package_version(root), []
    if tag is not None and tag != f"v{version}":
        found.append(f"the tag is {tag}, but stvit_cli/__init__.py has the version {version}: expected the tag v{version}")
    cited = _found(root / "CITATION.cff", r"^version: (\S+)$")
    if cited != version:
        found.append(f"CITATION.cff: version is {cited}, expected {version}")
    headings = re.findall(r"^## \[(.+?)\](?: - (\S+))?", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    dates = dict(headings)
    released = _found(root / "CITATION.cff", r"^date-released: (\S+)$")
    if version not in dates:
        found.append(f"CHANGELOG.md: there is no heading ## [{version}] - {released}")
    elif dates[version] != released:
        found.append(f"CHANGELOG.md: [{version}] is of {dates[version] or 'no date'}, date-released of CITATION.cff {released}")
    if tag is not None and headings[0][0] != version:
        found.append(f"CHANGELOG.md: [{headings[0][0]}] stands above [{version}]: what is published is under its own heading")
    relative = re.findall(r"\]\((?!#|\w+:)([^)]+)\)", (root / "README.md").read_text(encoding="utf-8"))
    if tag is not None and relative:
        found.append(
            f"README.md: {len(relative)} links and images are relative, such as {relative[0]}, and lead nowhere on the page of a "
            f"package index: expected URLs of the repository's files at {tag}"
        )
    return found


def _found(path: Path, pattern: str) -> str:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "not there"


if __name__ == "__main__":
    wrong = disagreements(sys.argv[1] if len(sys.argv) > 1 else None)
    print("\n".join(wrong) or f"Version {package_version()}: all files agree.")
    sys.exit(1 if wrong else 0)
