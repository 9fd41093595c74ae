"""The formats of an exported model, by the ending of the file's name, and what each holds. Imports no PyTorch."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from stvit_cli.errors import UserError
from stvit_cli.utils.files import require_new_file
from stvit_cli.utils.runtimes import require_runtime

PRECISIONS = {
    ".onnx": ("fp32", "fp16", "bf16", "int8"),
    ".xml": ("fp32", "fp16"),
    ".pt2": ("fp32",),
    ".safetensors": ("fp32", "fp16", "bf16"),
}
"""The endings of the files that a model can be exported to, each with the precisions of its weights."""


def require_exported_file(path: Path, precision: str, *, calibrated: bool = False) -> None:
    """Raise UserError where a file cannot be written in a format and precision: before the work, not after it.

    Args:
        path: the new file; its ending is the format.
        precision: fp32, fp16, bf16 or int8.
        calibrated: images to calibrate int8 on are given.
    """
    require_new_file(path, *PRECISIONS)
    known = PRECISIONS[path.suffix]
    if precision not in PRECISIONS[".onnx"]:
        raise UserError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS['.onnx'])}.")
    if precision != "int8" and calibrated:
        raise UserError(f"{path}: only int8 is calibrated on images (--calibrate), but the precision is {precision}.")
    if precision not in known:
        other = "; int8 is for names that end in .onnx, which OpenVINO reads too" if precision == "int8" else ""
        raise UserError(f"{path}: a {path.suffix} file is written in {' or '.join(known)}, found {precision}{other}.")
    if path.suffix == ".xml":
        require_runtime(path, "openvino")
        if not any(leftovers(path)):
            require_new_file(path.with_suffix(".bin"), ".bin")


def unfinished(path: Path) -> tuple[str, str]:
    """Return the start and the end of the name of the folder in which the unfinished files of ``path`` are.

    Example:
        >>> unfinished(Path("model.xml"))
        ('.model.', '.writing')
    """
    return f".{path.stem[:50]}.", ".writing"


def leftovers(path: Path) -> Iterator[Path]:
    """Yield the folders of exports to an ``.xml`` file that were killed when its ``.bin`` file had its name, and it not yet.

    Such a ``.bin`` file is no model, and may be replaced.
    """
    start, end = unfinished(path)
    for folder in path.parent.glob(f"{glob.escape(start)}*{end}"):
        if (folder / path.name).is_file() and not (folder / path.with_suffix(".bin").name).exists():
            yield folder
