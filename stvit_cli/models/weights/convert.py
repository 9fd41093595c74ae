"""A published checkpoint as a weights file of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.models.weights.authors_checkpoint import HEAD_WEIGHT, STEM_WEIGHT, is_stvit
from stvit_cli.models.weights.file import WeightsFile, WeightsInfo, describe, read_weights, save_weights
from stvit_cli.utils.files import writing

CUSTOM = "custom"  # an STViT of widths and depths that have no name here: for `load_weights` and a model of one's own


def convert(source: Path, target: Path, container: str | None = None, image_size: int | None = None) -> dict[str, Any]:
    """Write ``source`` to ``target`` as safetensors and return what became of every key.

    Args:
        source: a checkpoint, such as a published `.pth` file.
        target: the new `.safetensors` file.
        container: which weights of the checkpoint to take, where it has several.
        image_size: the side of an image, where the file does not say it (or says it wrongly).

    Raises:
        UserError: the source cannot be read or is no STViT, or the target cannot be written.
    """
    file = read_weights(source, container)
    info = _describe(file, image_size)
    known = "option" if image_size is not None else "file" if file.info is not None or file.image_size else "assumed"
    with writing(target, advice=""):
        save_weights(target, file.state_dict, info)
    return {
        "model": info.model,
        "num_classes": info.num_classes,
        "in_chans": info.in_chans,
        "image_size": info.image_size,
        "image_size_from": known,
        "container": file.container,
        "other_containers": list(file.others),
        "tensors": len(file.state_dict),
        "renamed": file.renamed,
        "left_out": file.left_out,
        "file": str(target),
    }


def _describe(file: WeightsFile, image_size: int | None) -> WeightsInfo:
    try:
        info = describe(file)
    except UserError:
        if not is_stvit(file.state_dict):
            raise
        num_classes = len(file.state_dict[HEAD_WEIGHT]) if HEAD_WEIGHT in file.state_dict else 0
        info = WeightsInfo(CUSTOM, num_classes=num_classes, in_chans=file.state_dict[STEM_WEIGHT].shape[1])
        info = replace(info, image_size=file.image_size or info.image_size)
    return info if image_size is None else replace(info, image_size=image_size)
