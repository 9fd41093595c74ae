"""The reference of the Python functions, from `stvit_cli.__all__`; mkdocstrings renders their docstrings."""

from __future__ import annotations

import stvit_cli


def page() -> str:
    """Return a directive of mkdocstrings for each public name."""
    return "\n\n".join(f"::: stvit_cli.{name}" for name in stvit_cli.__all__ if not name.startswith("_"))
