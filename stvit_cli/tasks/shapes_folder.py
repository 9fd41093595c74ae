"""The folder of the synthetic shapes that a recipe asks for (``data.kind=shapes``)."""

from __future__ import annotations

from pathlib import Path

from stvit_cli.data.shapes import shapes_tree
from stvit_cli.recipe import DataSection, ShapesSection


def shapes_folder(layout: str, data: DataSection, shapes: ShapesSection) -> Path:
    """Return the folder of the images; what is missing in it is generated.

    Args:
        layout: coco, ade20k or table, see `data.shapes.shapes_tree`.
        data: the recipe's section: side of the images, and where they go.
        shapes: the recipe's section: how many, and their seed.

    Raises:
        UserError: the folder cannot be written.
    """
    return shapes_tree(layout, (shapes.num_train, shapes.num_val), data.image_size, shapes.seed, data.dir)
