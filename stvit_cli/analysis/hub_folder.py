"""The folder of a run that `stvit push` uploads: weights, timm's ``config.json``, the model card and the recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from stvit_cli.analysis.model_card import CARD, REPO, card_text, is_generated, is_in_timm, is_local, public_recipe
from stvit_cli.engine.run_dir import RECIPE, RunDir
from stvit_cli.errors import UserError
from stvit_cli.models.options import given, options_of
from stvit_cli.models.timm_models import NAMES_IN_TIMM
from stvit_cli.models.weights.file import WeightsInfo, read_weights, save_weights
from stvit_cli.models.weights.hub import WEIGHTS
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.loading import open_trained
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.text import first_line

CONFIG = "config.json"


def write_hub_folder(run: Path, folder: Path, *, repo: str = REPO, licence: str | None = None) -> list[str]:
    """Write what a repository of a run's model holds. Nothing in it names a path of this machine.

    Args:
        run: the run directory.
        folder: exists; files of the same names are replaced.
        repo: the repository, for the card.
        licence: the licence of the weights, for the card; None: what the run's card says, if its user has stated one.

    Returns:
        The names of the files.

    Raises:
        UserError: no run is there, it has no weights, or a file cannot be written.
    """
    saved = RunDir(run)
    saved.require_run()
    if not saved.best.is_file():
        raise UserError(f"{run} has no {saved.best.name} yet: the run was not evaluated. Resume it, and push it then.")
    trained = open_trained(saved.best)
    info = public_info(trained.info)
    recipe = public_recipe(recipe_io.load(saved.recipe))
    texts = {
        CONFIG: json.dumps(_config(info, trained.model), indent=2) + "\n",
        CARD: _card(run, repo, licence),
        RECIPE: recipe_io.dump(recipe),
    }
    with writing(folder):
        for name, text in texts.items():
            replace_file(folder / name, text.encode())
        save_weights(folder / WEIGHTS, read_weights(saved.best).tensors, info)
    return [WEIGHTS, *texts]


def _card(run: Path, repo: str, licence: str | None) -> str:
    """Return the run's card for a repository: the one of the run directory where it was edited by hand."""
    own = run / CARD
    text = own.read_text(encoding="utf-8") if own.is_file() else ""
    if not text or is_generated(text):
        return card_text(run, licence=licence, repo=repo)
    text = text.replace(f"hf-hub:{REPO}", f"hf-hub:{repo}")
    if licence is None:
        return text
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
        card.data["license"] = licence
    except (ValueError, TypeError) as error:
        raise UserError(f"{own}: its head cannot be read: {first_line(error)}") from None
    return str(card)


def public_info(info: WeightsInfo) -> WeightsInfo:
    """Return the metadata without folders of this machine, which a segmenter's settings may name."""
    if not info.settings:
        return info
    settings = json.loads(info.settings)
    kept = {key: value for key, value in settings.items() if not (isinstance(value, str) and is_local(value))}
    return info if kept == settings else replace(info, settings=json.dumps(kept))


def _config(info: WeightsInfo, model: Any) -> dict[str, Any]:
    """Return timm's ``config.json`` of a classifier; of other models what the Hub needs to count downloads."""
    shown = {"model": info.model, "task": info.task, "multi_label": info.multi_label}
    names = {"label_names": list(info.class_names)} if info.class_names else {}
    if not is_in_timm(info):
        return {"architecture": info.model, "num_classes": info.num_classes, **names, "stvit": shown}
    built_in = NAMES_IN_TIMM.get(info.model)
    architecture = built_in or info.model.removeprefix("timm/").partition(".")[0]
    own = dict(getattr(model, "pretrained_cfg", None) or {})
    pretrained = {
        "tag": "stvit",
        "custom_load": False,
        "input_size": [info.in_chans, info.image_size, info.image_size],
        "fixed_input_size": bool(own.get("fixed_input_size", False)),
        "interpolation": info.interpolation,
        "crop_pct": info.resolved_crop_pct,
        "crop_mode": "center",
        "mean": list(info.mean),
        "std": list(info.std),
        "num_classes": info.num_classes,
        "pool_size": None,
        # timm would adapt the first convolution to another number of channels than three, and it is of that number already.
        "first_conv": own.get("first_conv", "stem.0.conv") if info.in_chans == 3 else None,
        "classifier": "head" if built_in else own.get("classifier"),
    }
    args: dict[str, Any] = {"in_chans": info.in_chans} if info.in_chans != 3 else {}
    options = given(options_of(info))
    args |= options.pop("kwargs", {})
    args |= {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return {
        "architecture": architecture,
        "num_classes": info.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": pretrained,
        **({"model_args": args} if args else {}),
        **names,
        "stvit": shown,
    }
