"""Files that come with the package."""

from __future__ import annotations

from pathlib import Path


def weights_folder() -> Path:
    """Return the folder of the packaged weights."""
    return Path(__file__).resolve().parents[1] / "weights"


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: that of the installed package, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def experiments_folder() -> Path:
    """Return the folder of the experiments that `stvit reproduce` knows: a YAML file each."""
    return Path(__file__).resolve().parents[1] / "analysis" / "reproduce" / "experiments"
