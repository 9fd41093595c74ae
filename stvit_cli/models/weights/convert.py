"""Convert a published checkpoint to a weights file with a description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.models.weights.authors_checkpoint import HEAD_WEIGHT, STEM_WEIGHT, is_stvit
from stvit_cli.models.weights.file import WeightsFile, WeightsInfo, describe, read_weights, save_weights
from stvit_cli.utils.files import writing

CUSTOM = "custom"  # an STViT of other widths or depths, to load into a model built by the user


def convert(source: Path, target: Path, container: str | None = None, image_size: int | None = None) -> dict[str, Any]:
    """Convert a checkpoint to safetensors with a description.

    Args:
        source: the checkpoint.
        target: the file to write.
        container: the key of the weights to convert in a checkpoint with several.
        image_size: side of the images in pixels, if the file does not contain it or it is wrong there.

    Returns:
        The description, and what was done with every key of the checkpoint.

    Raises:
        UserError: the source cannot be read or is not an STViT, or the target cannot be written.
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
