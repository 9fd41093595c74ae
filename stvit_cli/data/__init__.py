"""Datasets, transforms and loaders. They take plain arguments and know no recipe; ``tasks/*/data.py`` read its sections.

Listed here is what other packages use most.
"""

from stvit_cli.data.classification import ClassificationData, EvalSet, TrainSet
from stvit_cli.data.imagefolder import find_eval_images, find_images
from stvit_cli.data.images import open_image
from stvit_cli.data.loader import build_eval_loader, build_train_loader
from stvit_cli.data.sampling import SampleKey, TrainBatches, derive_seed, sample_order
from stvit_cli.data.transforms import eval_transform, train_transform

__all__ = [
    "ClassificationData",
    "EvalSet",
    "SampleKey",
    "TrainBatches",
    "TrainSet",
    "build_eval_loader",
    "build_train_loader",
    "derive_seed",
    "eval_transform",
    "find_eval_images",
    "find_images",
    "open_image",
    "sample_order",
    "train_transform",
]
