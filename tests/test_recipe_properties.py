"""Properties of recipes: what is set by ``key=value`` or written to a file is read back equal, for any value the schema takes."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe, Section
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.yaml import flow, parse

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def fields() -> dict[str, FieldInfo]:
    """Return the field of every dotted key."""
    found: dict[str, FieldInfo] = {}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.default, Section):
            found |= {f"{name}.{leaf}": inner for leaf, inner in type(field.default).model_fields.items()}
        else:
            found[name] = field
    return found


FIELDS = fields()


def values(annotation: Any, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Return a strategy of the values that a field of this annotation takes, limits included."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        extra = [limit for item in arguments[1:] for limit in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return values(arguments[0], (*metadata, *extra))
    if origin in (Union, types.UnionType):
        return st.one_of(*(values(part, metadata) for part in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values(arguments[0]), max_size=4).map(tuple)
        return st.tuples(*map(values, arguments))
    if origin is dict:
        return st.dictionaries(TEXT.filter(bool), values(arguments[1]), max_size=3)
    return (
        numbers(annotation, metadata)
        if annotation in (int, float)
        else {str: TEXT, bool: st.booleans()}.get(annotation, st.none())
    )


def numbers(kind: type, metadata: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    limits = {name: getattr(item, name) for item in metadata for name in ("gt", "ge", "lt", "le") if hasattr(item, name)}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if kind is int:
        return st.integers(None if low is None else low + ("gt" in limits), None if high is None else high - ("lt" in limits))
    finite = {"allow_nan": False, "allow_infinity": False}
    return st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits, **finite)


@settings(max_examples=100)
@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_override_round_trip(key: str, data: st.DataObject) -> None:
    value = data.draw(values(FIELDS[key].annotation, tuple(FIELDS[key].metadata)))
    of_task = {"detection": "task: detection\ndata: {kind: coco}\n", "segmentation": "task: segmentation\ndata: {kind: ade20k}\n"}
    text = of_task.get(key.partition(".")[0], "model: {name: stvit-nano}\n")
    try:
        recipe = recipe_io.from_text(text, [f"{key}={flow(value)}"])
    except UserError:
        recipe = None
    assume(recipe is not None)  # refused: it contradicts another key's value
    assert recipe_io.flatten(recipe)[key] == value
    assert recipe_io.from_text(recipe_io.dump(recipe)) == recipe
    assert recipe_io.from_text(recipe_io.dump(recipe, only_changes=True)) == recipe


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


@given(DATA)
def test_flow_is_read_back_equal(value: Any) -> None:
    text = flow(value)
    assert "\n" not in text
    read, _ = parse(f"key: {text}\n", "test")
    assert read == {"key": value}
    assert repr(read) == repr({"key": value}), "also of the same types: 1 is not 1.0 and not true"
