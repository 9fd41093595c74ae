"""Recipes for a user's own data: which fits a folder, and the values that "auto" stands for. All is said in a line each."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_main_process
from stvit_cli.utils.text import printable, shell_command

if TYPE_CHECKING:
    from stvit_cli.data.layouts import Layout
    from stvit_cli.models.weights.file import WeightsInfo
    from stvit_cli.recipe import Recipe

logger = logging.getLogger(__name__)

FIRST_RUN = "quickstart"
"""The recipe that trains on a folder as without a recipe, where it is given one."""

SIZE_KEYS = (
    *("data.image_size", "detection.short_sides", "detection.long_side", "segmentation.max_size"),
    *("detection.channels", "detection.fc_dim", "detection.num_proposals", "detection.num_samples", "detection.anchor_scale"),
    *("segmentation.channels", "segmentation.aux_channels"),
)
"""Keys that ``data.auto_size`` decides."""

LAYOUT_KEYS = (
    *("data.kind", "detection.head"),
    *(f"detection.{split}_{key}" for split in ("train", "val") for key in ("json", "images")),
    *(f"segmentation.{split}_{key}" for split in ("train", "val") for key in ("images", "maps")),
    *(f"segmentation.{key}" for key in ("image_suffix", "map_suffix", "class_names", "label_values", "reduce_zero_label")),
)
"""Keys that a layout decides, or the annotations found in it."""


def recipe_for(layout: Layout) -> str:
    """Return the recipe for a layout.

    >>> from stvit_cli.data.layouts import Layout
    >>> recipe_for(Layout("detection", "coco", "boxes"))
    'own-boxes'
    """
    if layout.task == "detection":
        return "own-masks" if layout.has_masks else "own-boxes"
    return {"classification": "own-images", "segmentation": "own-maps"}[layout.task]


def new_recipe(
    recipe: str | os.PathLike[str] | None, words: Sequence[str], weights: str | os.PathLike[str] | None = None
) -> Recipe:
    """Return the recipe of a new run, with every "auto" resolved by the data, the weights and the device.

    Args:
        recipe: the name of a shipped recipe, or a file; None: the one that fits the folder ``data.dir``.
        words: ``key=value`` overrides.
        weights: the run starts from this weights file or run directory.

    Raises:
        UserError: the recipe is invalid, or it does not fit the data, or what the data are is ambiguous.
    """
    from stvit_cli.recipe import io as recipe_io

    given = keys_of(words)
    if recipe == FIRST_RUN and "data.dir" in given and "data.kind" not in given:
        _say(f"{FIRST_RUN} trains on the digits in the package; with a folder, the recipe that fits the folder is taken")
        recipe = None
    if recipe is None:
        if not given.get("data.dir"):
            raise UserError("Expected a recipe, or the folder of the data, whose recipe is then found: data.dir=DIR.")
        layout = _layout(given["data.dir"], given)
        recipe = recipe_for(layout)
        _say_found(layout, f"recipe {recipe}")
        settings = recipe_io.load(recipe, with_layout(_with_warmup(words, recipe, given), layout, given))
    else:
        name = recipe if isinstance(recipe, str) else Path(recipe)
        words = _with_warmup(words, name, given)
        settings = recipe_io.load(name, words)
        if settings.data.kind == "auto":
            known = _set_by_file(name) | given
            layout = _layout(settings.data.dir, known, settings)
            _say_found(layout, f"recipe {settings.name}")
            settings = recipe_io.load(name, with_layout(words, layout, known))
        elif settings.data.kind == "imagefolder" and settings.data.dir is not None:
            _doubt_classes(settings.data.dir)
    info = _weights_info(weights) if settings.model.name == "auto" or settings.data.auto_size else None
    settings = _with_model(settings, info)
    if settings.data.auto_size:
        settings = _with_sizes(settings, info, given)
    return recipe_io.with_absolute_paths(settings)


def as_saved(settings: Recipe, saved: Recipe, given: Collection[str] = ()) -> Recipe:
    """Return a recipe that a run is resumed by, with what it leaves to the data taken from the run's own recipe.

    Args:
        settings: the recipe to resume by.
        saved: the run's own.
        given: keys that the user has set, which stay as they are.
    """
    from stvit_cli.recipe.io import flatten

    values, keys = flatten(saved), []
    if settings.model.name == "auto":
        keys.append("model.name")
    if settings.data.kind == "auto":
        keys += LAYOUT_KEYS
    if settings.data.auto_size:
        keys += ["data.auto_size", *SIZE_KEYS]
    if settings.schedule.min_steps is not None:
        keys += [f"schedule.{key}" for key in ("min_steps", "epochs", "warmup_epochs", "milestones")]
        keys += ["train.eval_every_epochs", "train.global_batch_size"]
    return _updated(settings, {key: values[key] for key in keys if key not in given})


def keys_of(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``key=value`` overrides by key, under the keys' present names.

    >>> keys_of(["optim.lr=1e-3", "data.kind=coco"])
    {'optim.lr': 0.001, 'data.kind': 'coco'}
    """
    from stvit_cli.recipe.renamed_keys import rename_key
    from stvit_cli.recipe.yaml import parse

    found: dict[str, Any] = {}
    for word in words:
        given, equals, text = word.partition("=")
        if equals:  # what is no override is refused by whoever loads the recipe
            key = rename_key(given.strip())[0]
            if key in found:
                raise UserError(f"{key} is given twice; keep one of them.")
            found[key] = parse(text, f"{given}=")[0]
    return found


def explain_mismatch(error: UserError, settings: Recipe) -> UserError:
    """Return the error about data that a recipe cannot use, with the recipe that fits them where there is one."""
    from stvit_cli.data.layouts import find_layout

    if settings.data.dir is None or settings.data.kind in ("shapes", "digits"):
        return error
    try:
        layout = find_layout(settings.data.dir)
    except UserError:
        return error
    if layout.task == settings.task and layout.kind == settings.data.kind:
        return error
    fitting = f"This looks like {layout.description}; --recipe {recipe_for(layout)} trains on it."
    return UserError("\n".join([*str(error).splitlines()[:5], fitting]))


def _doubt_classes(folder: str) -> None:
    """Warn where what is trained on as folders by class looks like something else, such as images/ and masks/."""
    from stvit_cli.data.layouts import find_layout

    try:
        layout = find_layout(folder)
    except UserError:
        return  # nothing else was recognized, or it could be several things: the recipe says which
    if layout.task != "classification":
        _say(f"Warning: {printable(folder)} looks like {layout.description}; its folders are taken for classes all the same")


def _layout(folder: object, given: Mapping[str, object], settings: Recipe | None = None) -> Layout:
    """Find out the layout of a folder, that of the recipe's task if it could be several."""
    from stvit_cli.data.layouts import find_layout

    if not folder:
        raise UserError("data.dir is not set. Set it to the folder of the data: data.dir=DIR.")
    answers = {key: value for key, value in given.items() if (key, value) != ("data.kind", "auto")}
    layout = find_layout(str(folder), answers, task=None if settings is None else settings.task)
    if settings is not None and layout.task != settings.task:
        raise UserError(
            f"{printable(str(folder))}: found {layout.description}; the recipe {settings.name} is for {settings.task}.\n"
            f"Leave the recipe out, or give the one that fits: {recipe_for(layout)}"
        )
    return layout


def with_layout(words: Sequence[str], layout: Layout, known: Mapping[str, object], *, skip_unreadable: bool = False) -> list[str]:
    """Return overrides with the keys of a layout before them; ``known`` keys, which the user has set, stay.

    Args:
        words: ``key=value`` overrides.
        layout: of the data.
        known: keys that the user has set, with their values.
        skip_unreadable: the classes of label maps are those of the maps that can be read.
    """
    from stvit_cli.recipe.yaml import flow

    mine = {key: value for key, value in layout.keys.items() if key not in known or key in ("data.dir", "data.kind")}
    named = known.get("segmentation.class_names") or known.get("data.class_names_file")
    if layout.task == "segmentation" and not named:
        keys = {**layout.keys, **{key: value for key, value in known.items() if key in mine}}
        mine |= _map_classes(keys, skip_unreadable=skip_unreadable)
    return [f"{key}={flow(value)}" for key, value in mine.items()] + [
        word for word in words if not keys_of([word]).keys() & {"data.dir", "data.kind"}
    ]


def _with_warmup(words: Sequence[str], name: str | Path, given: Mapping[str, Any]) -> list[str]:
    """Return overrides with a shorter warmup, if the recipe has one that is as long as the user's run.

    Of the user's epochs the warmup is the same part as of the recipe's; of the user's steps too, if the recipe adapts its length.
    """
    from stvit_cli.recipe import io as recipe_io

    unit = "steps" if given.get("schedule.steps") is not None else "epochs"
    length = given.get(f"schedule.{unit}")
    if not isinstance(length, int) or length < 1 or given.keys() & {"schedule.warmup_epochs", "schedule.warmup_steps"}:
        return list(words)
    schedule = recipe_io.load(name).schedule
    if schedule.warmup_epochs < length if unit == "epochs" else schedule.min_steps is None:
        return list(words)
    shorter = schedule.warmup_epochs * length // schedule.epochs
    _say(f"schedule.warmup_{unit}: {shorter}, as schedule.{unit} is {length} (warmup_epochs was {schedule.warmup_epochs})")
    return [*words, *([] if unit == "epochs" else ["schedule.warmup_epochs=0"]), f"schedule.warmup_{unit}={shorter}"]


def _set_by_file(name: str | Path) -> dict[str, object]:
    """Return the keys that a user's own recipe file sets."""
    from stvit_cli.recipe import io as recipe_io
    from stvit_cli.recipe.inheritance import origins

    found: dict[str, object] = {}
    for key, layer in origins(recipe_io.resolve(name).layers).items():
        section, _, leaf = key.rpartition(".")
        if section:
            found[key] = layer.data[section][leaf]
    return found


def _weights_info(weights: str | os.PathLike[str] | None) -> WeightsInfo | None:
    if weights is None:
        return None
    from stvit_cli.models.weights.file import read_info
    from stvit_cli.tasks.loading import weights_file

    return read_info(weights_file(Path(weights)))


def _with_model(settings: Recipe, weights: WeightsInfo | None) -> Recipe:
    """Return the recipe with a model for "auto"."""
    if settings.model.name != "auto":
        return settings
    if weights is not None:
        from stvit_cli.models.options import given, options_of

        options = given(options_of(weights)) | given(options_of(settings.model))
        options["grid_sizes"] = weights.grid_sizes if weights.task == settings.task else settings.model.grid_sizes
        changed = {f"model.{key}": value for key, value in options.items()}
        return _updated(settings, {"model.name": weights.model, **changed})
    return _updated(settings, {"model.name": "stvit-s" if _on_gpu(settings) else "stvit-nano"})


def _on_gpu(settings: Recipe) -> bool:
    if settings.train.device != "auto":
        return settings.train.device != "cpu"
    import torch

    return torch.cuda.is_available()


def _with_sizes(settings: Recipe, weights: WeightsInfo | None, given: Mapping[str, object]) -> Recipe:
    from stvit_cli.api.image_sizes import fitting_heads, fitting_sizes

    on_gpu = _on_gpu(settings)
    sizes = fitting_sizes(settings, on_gpu=on_gpu) | fitting_heads(settings, weights, on_gpu=on_gpu)
    changes = {key: value for key, value in sizes.items() if key not in given}
    before = {key: _value(settings, key) for key in changes}
    said = ", ".join(f"{key}={_shown(value)}" for key, value in changes.items() if before[key] != value)
    if said:
        _say(f"sizes for {'a GPU' if on_gpu else 'a CPU'} and these images: {said}")
    return _updated(settings, {**changes, "data.auto_size": False})


def _map_classes(keys: Mapping[str, object], *, skip_unreadable: bool) -> dict[str, object]:
    """Return the keys of the classes that the label maps and a file of names tell, and say how they were found."""
    from stvit_cli.data.image_pairs import find_pairs
    from stvit_cli.data.map_classes import find_map_classes

    root, suffix = Path(str(keys["data.dir"])).expanduser(), keys.get("segmentation.image_suffix")
    pairs = find_pairs(
        root,
        str(keys["segmentation.train_images"]),
        str(keys["segmentation.train_maps"]),
        class_names=("",),
        image_suffix=None if suffix is None else str(suffix),
        map_suffix=str(keys.get("segmentation.map_suffix", ".png")),
    )
    found, said = find_map_classes(root, pairs.maps, skip_unreadable=skip_unreadable)
    _say(said)
    return found


def _updated(settings: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values of dotted keys."""
    for key, value in values.items():
        section, _, leaf = key.partition(".")
        settings = settings.model_copy(update={section: getattr(settings, section).model_copy(update={leaf: value})})
    return settings


def _value(settings: Recipe, key: str) -> object:
    section, _, leaf = key.partition(".")
    return getattr(getattr(settings, section), leaf)


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _say_found(layout: Layout, chosen: str) -> None:
    _say(f"{shell_command(Path(str(layout.keys['data.dir'])))}: {layout.description}; {chosen}")


def _say(line: str) -> None:
    if is_main_process():
        logger.info("%s", line)
