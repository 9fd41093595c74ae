"""What there is to choose from: the built-in models, and the weights that come with the package. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.utils.model_catalog import MODELS, ROWS, ModelEntry
from stvit_cli.utils.packaged_weights import PackagedWeights, list_weights, read_description
from stvit_cli.utils.text import did_you_mean


@dataclass(frozen=True)
class ModelCatalog:
    """What `describe_models` found.

    Attributes:
        models: the built-in models.
        weights: the weights of them that come with the package.
        class_names: the names of the classes, by name of weights.
    """

    models: tuple[ModelEntry, ...]
    weights: tuple[PackagedWeights, ...]
    class_names: dict[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return what `stvit models --json` writes."""
        of_model = {
            model.name: [weights.name for weights in self.weights if weights.model == model.name] for model in self.models
        }
        return {
            "models": [model.to_dict() | {"weights": of_model[model.name]} for model in self.models],
            "weights": [weights.to_dict() | {"class_names": list(self.class_names[weights.name])} for weights in self.weights],
        }


def describe_models(word: str = "") -> ModelCatalog:
    """Return the built-in models with their size, cost, aliases and weights.

    Args:
        word: part of the name of a model, of an alias or of weights, or a task, in any case. Without it, the rows of Table II
            (``isotropic-*``) are left out.

    Returns:
        The models and weights that match. A model that matches has all of its weights, and weights that match have their model.

    Raises:
        UserError: nothing matches.

    Example:
        >>> [model.name for model in describe_models().models]
        ['stvit-s', 'stvit-b', 'stvit-l', 'stvit-nano']
        >>> [weights.name for weights in describe_models("segment").weights]
        ['stvit-nano.shapes-upernet']
    """
    wanted, weights = word.strip().lower(), list_weights()
    candidates = (*MODELS, *ROWS) if wanted else MODELS
    models = [model for model in candidates if any(wanted in name for name in (model.name, *model.aliases))]
    names = {model.name for model in models}
    shown = [item for item in weights if item.model in names or wanted in item.name or wanted in item.task]
    models += [model for model in candidates if model.name not in names and model.name in {item.model for item in shown}]
    if not models:
        known = [*(name for model in candidates for name in (model.name, *model.aliases)), *(item.name for item in weights)]
        raise UserError(
            f"no model and no weights here have {word!r} in their names.{did_you_mean(wanted, known)}\n"
            "All of them: stvit models. Those of timm, which every recipe takes as timm/NAME: stvit models timm/WORD"
        )
    classes = {item.name: tuple(map(str, read_description(item.path)["class_names"] or ())) for item in shown}
    return ModelCatalog(tuple(models), tuple(shown), classes)


def list_timm_models(word: str) -> list[tuple[str, list[str]]]:
    """Return timm's models of a name, each with the tags of its pretrained weights. Imports timm.

    Args:
        word: part of the name, or a pattern such as ``swin*_224``; empty for all.

    Returns:
        Names with the prefix that recipes take (``timm/resnet50``), and tags such as ``a1_in1k``.

    Raises:
        UserError: timm has none.

    Example:
        >>> "timm/resnet50d" in dict(list_timm_models("resnet50"))
        True
    """
    import timm

    pattern = word if "*" in word else f"*{word}*"
    found = timm.list_models(pattern)
    if not found:
        raise UserError(
            f"timm {timm.__version__} has no model with {word!r} in its name.{did_you_mean(word, timm.list_models())}"
        )
    tags: dict[str, list[str]] = {name: [] for name in found}
    for full in timm.list_models(pattern, pretrained=True):
        name, _, tag = full.partition(".")
        if name in tags:
            tags[name].append(tag)
    return [(f"timm/{name}", own) for name, own in tags.items()]
