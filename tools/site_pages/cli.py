"""The reference of the command line, from Typer's app."""

from __future__ import annotations


def page() -> str:
    """Return every command."""
    return ""
