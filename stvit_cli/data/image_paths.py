"""Image files named on a command line: files as they are, folders with all images below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from stvit_cli.data.file_listing import left_out_note, list_files
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling

MAP_MODES = ("1", "L", "P", "I", "I;16")
"""Modes of a label map: one number for each pixel."""


def list_images(paths: Sequence[Path], say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Return the files, and of folders all images in and below them, sorted; a link that leads nowhere too, to be named.

    Args:
        paths: files and folders.
        say: is told how many files of a folder are left out, for their extension or as label maps.

    Raises:
        UserError: a path is not there, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            images += [path / name for name in images_below(path, say)]
        elif path.exists() or path.is_symlink():  # a link that leads nowhere is named in its turn: the others are answered
            images.append(path)
        else:
            raise UserError(f"{path}: there is no such file or folder.{nearest_sibling(path)}")
    return images


def images_below(folder: Path, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the names of the images in and below a folder, relative to it and sorted; see `list_images`."""
    listing = list_files(folder)
    for note in left_out_note(listing.other_endings):
        say(f"{folder}: {note}")
    found = sorted(listing.paths + listing.broken_links, key=lambda name: name.replace("/", "\0"))  # by their components
    if not found:
        raise UserError(f"{folder}: no image in this folder; expected files such as *.jpg or *.png.")
    maps = _label_maps(folder, found)
    if not maps:
        return found
    say(f"{folder}: {len(maps)} label maps beside their images are skipped, such as {min(maps)}.")
    return [name for name in found if name not in maps]


def _label_maps(root: Path, names: Sequence[str]) -> set[str]:
    """Return the files that are label maps of other ones: ``a.png`` with one number for each pixel, beside ``a.jpg``."""
    photographs = {name.rpartition(".")[0] for name in names if not name.lower().endswith(".png")}
    candidates = [name for name in names if name.lower().endswith(".png") and name.rpartition(".")[0] in photographs]
    return {name for name in candidates if (root / name).is_file() and _mode(root / name) in MAP_MODES}


def _mode(path: Path) -> str | None:
    """Return the mode in an image's header, None for what cannot be read: it is named when it is opened."""
    try:
        with Image.open(path) as image:
            return image.mode
    except Exception:
        return None
