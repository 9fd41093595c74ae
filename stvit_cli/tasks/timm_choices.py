"""What a recipe leaves open for a model of timm: drop path, normalization, and where pretrained weights come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stvit_cli.errors import UserError
from stvit_cli.models import create_model, list_models
from stvit_cli.models.options import LACKS, given, options_of
from stvit_cli.models.timm_models import built_in_name, is_timm_name, require_known
from stvit_cli.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from stvit_cli.utils.text import first_line, shortened


def resolve_model(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Make the choices that a recipe for the built-in models leaves to a model of timm; others are returned as they are.

    Args:
        recipe: of a new run.

    Returns:
        The recipe with concrete values, and a line for the user on each choice.

    Raises:
        UserError: timm has no such model, or no weights for it where ``model.pretrained`` asks for them.
    """
    name, model = recipe.model.name, recipe.model
    notes: list[str] = []
    changed: dict[str, Any] = {}
    rates = model.drop_path_rate
    if name != built_in_name(name) and isinstance(rates, dict) and name not in rates and built_in_name(name) in rates:
        changed["drop_path_rate"] = rates[built_in_name(name)]
    if is_timm_name(name):
        require_known(name)
        if isinstance(rates, dict) and name not in rates:
            nearest = _nearest_in_size(name, rates, model.kwargs)
            changed["drop_path_rate"] = rates[nearest]
            notes.append(f"model.drop_path_rate: {rates[nearest]:g} for {name}, as for {nearest}, the nearest in size.")
        for key in given(options_of(model)).keys() & LACKS.keys():
            changed[key] = None
            notes.append(f"model.{key}: not used, as {name} has no {LACKS[key]}.")
    resolved = recipe.model_copy(update={"model": model.model_copy(update=changed)}) if changed else recipe
    return _with_pretrained_normalization(resolved, notes), notes


def _with_pretrained_normalization(recipe: Recipe, notes: list[str]) -> Recipe:
    """Take mean and std of the pretrained weights, where the recipe has the default ones; else say that they differ."""
    data = recipe.data
    if not recipe.model.pretrained or recipe.model.in_chans != 3:
        return recipe
    config = _pretrained_config(recipe.model.name)
    own = {"mean": tuple(config.mean), "std": tuple(config.std)}
    if own == {"mean": data.mean, "std": data.std}:
        return recipe
    values = f"data.mean={list(own['mean'])} data.std={list(own['std'])}"
    if (data.mean, data.std) != (IMAGENET_MEAN, IMAGENET_STD):
        notes.append(f"Warning: the pretrained weights of {recipe.model.name} expect {values}; the recipe's are other ones.")
        return recipe
    notes.append(f"{values}: those of the pretrained weights of {recipe.model.name}.")
    return recipe.model_copy(update={"data": data.model_copy(update=own)})


def _nearest_in_size(name: str, choices: dict[str, float], kwargs: Mapping[str, Any]) -> str:
    """Return the built-in model among ``choices`` whose number of parameters is nearest to that of a model."""
    known = [choice for choice in choices if choice in list_models()]
    with torch.device("meta"):
        count = _num_params(name, kwargs)
        return min(known or list(choices), key=lambda choice: abs(math.log(_num_params(choice) / count)))


def _num_params(name: str, kwargs: Mapping[str, Any] | None = None) -> int:
    return sum(parameter.numel() for parameter in create_model(name, 0, kwargs=kwargs).parameters())


def _pretrained_config(name: str) -> Any:
    from timm import get_pretrained_cfg

    config = get_pretrained_cfg(require_known(name)) if is_timm_name(name) else None
    if config is None or not config.has_weights:
        raise UserError(
            f"model.pretrained: there are no weights to download for {name}.\n"
            "Use model.pretrained=false, or start from a file: weights=FILE"
        )
    return config


def download_pretrained(name: str) -> Path:
    """Download timm's weights of a model into the cache of its source, or find them there, and return the file.

    Args:
        name: such as ``timm/resnet50``, or with a tag, ``timm/resnet50.a1_in1k``.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from timm.models._hub import download_cached_file

    config = _pretrained_config(name)
    try:
        if not config.hf_hub_id:
            return Path(download_cached_file(config.url, check_hash=True))
        files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        for file in files:
            try:
                return Path(hf_hub_download(config.hf_hub_id, file))
            except EntryNotFoundError as error:
                missing = error
        raise missing
    except Exception as error:  # of the network, of the hub's client and of the disk: there are many kinds
        raise UserError(
            f"model.pretrained: the weights of {name} cannot be downloaded: {shortened(first_line(error), 120)}.\n"
            "Without a network, use model.pretrained=false, or start from a file downloaded elsewhere: weights=FILE"
        ) from error
