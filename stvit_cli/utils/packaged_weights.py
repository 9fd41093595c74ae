"""The weights that come with the package, by name: ``stvit-nano.fashion-mnist``. Imports no torch.

Each is a safetensors file in ``stvit_cli/weights`` with its model card beside it, both written by `tools/package_weights.py`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stvit_cli.errors import UserError
from stvit_cli.utils.safetensors_header import METADATA, read_header
from stvit_cli.utils.shipped import weights_folder
from stvit_cli.utils.text import did_you_mean, printable
from stvit_cli.utils.views import Views

logger = logging.getLogger(__name__)

DEFAULTS = {"stvit-nano": ("fashion-mnist", "digits")}
"""The weights of ``pretrained=True``, by model: the first of these that are there."""

_FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx", ".yaml")


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that come with the package.

    Attributes:
        name: what `load` and every ``--weights`` option take.
        path: the safetensors file.
        card: the model card.
        model: the architecture.
        task: ``classification``, ``detection`` or ``segmentation``.
        size_bytes: of the file.
        num_classes: number of classes.
        in_chans: number of channels of an image.
        image_size: side of the training images in pixels.
        data: what they were trained on.
        data_licence: the licence of those images.
        licence: the licence of the weights.
        metric: the main metric of the task, such as ``top1``.
        value: its value.
        images: what it was measured on: ``test`` or ``validation``.
        num_images: number of those images.
        hflip: whether it was measured with the mirror images too (``eval.hflip``), which predictions do without.
        translate: by how many pixels images were moved too (``eval.translate``); predictions do without.
        recipe: the recipe that trained them.
        recipe_hash: of it.
    """

    name: str
    path: Path
    card: Path
    model: str
    task: str
    size_bytes: int
    num_classes: int
    in_chans: int
    image_size: int
    data: str
    data_licence: str
    licence: str
    metric: str
    value: float
    images: str
    num_images: int
    hflip: bool
    translate: int
    recipe: str
    recipe_hash: str

    @property
    def views(self) -> Views:
        """The views of an image over which the logits were averaged."""
        return Views(self.hflip, self.translate)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit weights list --json` writes them."""
        return {**asdict(self), "path": str(self.path), "card": str(self.card)}


def weights_files() -> dict[str, Path]:
    """Return the files of the packaged weights by name.

    Example:
        >>> "stvit-nano.digits" in weights_files()
        True
    """
    return {path.name.removesuffix(".safetensors"): path for path in sorted(weights_folder().glob("*.safetensors"))}


def list_weights() -> list[PackagedWeights]:
    """Return the weights that come with the package.

    Example:
        >>> [weights.model for weights in list_weights() if weights.name == "stvit-nano.digits"]
        ['stvit-nano']
    """
    return [_read(name, path) for name, path in weights_files().items()]


def find_weights(name: str) -> PackagedWeights:
    """Return packaged weights by name.

    Raises:
        UserError: there are none of this name; the message lists those that there are.
    """
    files = weights_files()
    if name not in files:
        raise UserError(f"There are no packaged weights named {printable(name)!r}.{did_you_mean(name, files)}\n{_known()}")
    return _read(name, files[name])


def packaged_file(name: str | Path) -> Path | None:
    """Return the file of packaged weights by name; None for any other name.

    A file or folder of the same name wins, with a note.
    """
    found = weights_files().get(str(name))
    if found is None or not Path(name).exists():
        return found
    _note(str(name), Path(name).resolve())
    return None


def pretrained_name(model: str, pretrained: str | bool) -> str:
    """Return the name of the packaged weights of a model.

    Args:
        model: the architecture, such as ``stvit-nano``.
        pretrained: what follows the model's name, such as ``digits``; True: those in `DEFAULTS`.

    Raises:
        UserError: the model has no such weights; the message lists those that it has.

    Example:
        >>> pretrained_name("stvit-nano", "digits")
        'stvit-nano.digits'
    """
    tags = [name.removeprefix(f"{model}.") for name in weights_files() if name.startswith(f"{model}.")]
    tag = default_tag(model) if pretrained is True else str(pretrained).removeprefix(f"{model}.")
    if tag in tags:
        return f"{model}.{tag}"
    if not tags:
        raise UserError(
            f"pretrained: no weights of {model} come with the package. The authors publish theirs at "
            "https://github.com/hhb072/STViT:\ndownload a file and load it: stvit_cli.load_weights(model, FILE)."
        )
    known = f"{did_you_mean(tag, tags)} Known: {', '.join(tags)}."
    raise UserError(f"pretrained: there are no weights of {model} named {printable(tag)!r}.{known}")


def default_tag(model: str) -> str:
    """Return what follows the model's name in the weights of ``pretrained=True``; empty for a model without any."""
    files = weights_files()
    return next((tag for tag in DEFAULTS.get(model, ()) if f"{model}.{tag}" in files), "")


def names_hint(path: Path) -> str:
    """Return a line on the packaged weights where a path that does not exist may be meant for a name of them; else nothing."""
    if path.name != str(path) or path.suffix in _FILE_ENDINGS:
        return ""
    files = weights_files()
    return f"{did_you_mean(path.name, files)}\n{_known()}" if files else ""


def read_description(path: Path) -> Mapping[str, Any]:
    """Return the description in a file that `save_weights` wrote, as it is there."""
    description: Mapping[str, Any] = json.loads(read_header(path)[METADATA]["stvit"])
    return description


def read_card_head(path: Path) -> Mapping[str, Any]:
    """Return the YAML at the head of a model card."""
    head = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), re.DOTALL)
    found: Mapping[str, Any] = yaml.safe_load(head[1]) if head else {}
    return found


def _read(name: str, path: Path) -> PackagedWeights:
    card = path.with_name(f"{name}.md")
    described, head = read_description(path), read_card_head(card)
    own = head["stvit"]
    return PackagedWeights(
        name=name,
        path=path,
        card=card,
        size_bytes=path.stat().st_size,
        licence=head["license"],
        recipe_hash=described["recipe_hash"],
        **Views.of(own)._asdict(),
        **{key: described[key] for key in ("model", "task", "num_classes", "in_chans", "image_size")},
        **{key: own[key] for key in ("data", "data_licence", "metric", "value", "images", "num_images", "recipe")},
    )


def _known() -> str:
    return f"Packaged weights: {', '.join(weights_files())}."


@cache  # once for each place
def _note(name: str, path: Path) -> None:
    logger.warning("%s: taken from %s, not the packaged weights of this name.", name, path)
