"""Super tokens as superpixels, measured on a set of images with exact maps of their objects."""

from stvit_cli.analysis.superpixels.evaluate import evaluate_superpixels
from stvit_cli.analysis.superpixels.result import SuperpixelOptions, SuperpixelResult

__all__ = ["SuperpixelOptions", "SuperpixelResult", "evaluate_superpixels"]
