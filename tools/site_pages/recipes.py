"""The reference of recipes, from the schema."""

from __future__ import annotations

from stvit_cli.recipe import Recipe, Section
from stvit_cli.recipe.error_messages import expected
from stvit_cli.recipe.yaml import flow


def page() -> str:
    """Return every key by its section."""
    lines: list[str] = []
    for name, field in Recipe.model_fields.items():
        if isinstance(field.default, Section):
            lines += ["", f"## {name}", "", type(field.default).__doc__ or "", ""]
            for key, entry in type(field.default).model_fields.items():
                lines += [
                    f"### {name}.{key}",
                    "",
                    f"{expected(entry)}; default `{flow(entry.default)}`",
                    "",
                    " ".join((entry.description or "").split()),
                    "",
                ]
    return "\n".join(lines)
