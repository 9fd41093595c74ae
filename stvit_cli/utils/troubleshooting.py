"""Where messages lead for more than fits into six lines."""

from __future__ import annotations

from typing import Literal

PAGE = "docs/troubleshooting.md"
"""The page in the repository, which a wheel does not have; the site shows it as Troubleshooting. Its headings are the topics."""

Topic = Literal["chance-accuracy", "out-of-memory", "shared-memory", "nan-loss", "one-gpu", "slow-loader"]


def see(topic: Topic) -> str:
    """Return the last line of a message that the page says more about.

    >>> see("nan-loss")
    'More: docs/troubleshooting.md#nan-loss of the repository'
    """
    return f"More: {PAGE}#{topic} of the repository"
