"""Docstrings as griffe reads them: this project heads an example by ``Example:``, griffe's word is ``Examples:``."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class ExampleHeadings(Extension):
    """Gives ``Example:`` griffe's heading, so that the site shows its code with the output."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
