"""The rows of Table II as numbers. `isotropic` builds them; its import of torchvision's Swin takes seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stvit_cli.models.stvit import GridSizes

FourInts = tuple[int, int, int, int]


@dataclass(frozen=True)
class Variant:
    """A row of Table II.

    The supplement does not give the heads: Swin has 32 channels in each, as published; STViT 64, or 32 where its widths are no
    multiples of 64.
    """

    attention: Literal["swin", "stvit"]
    embed_dims: FourInts
    depths: FourInts
    num_heads: FourInts
    rpe: bool = True
    global_stage: int | None = None  # Swin† attends among all tokens in this stage (counted from 0)
    grid_sizes: GridSizes = (8, 4, 1, 1)  # STViT only
    window_size: int = 7  # Swin only
    image_size: int = 224  # that the position tables are made for


WIDTHS_12, DEPTHS_12 = (96, 192, 384, 768), (2, 2, 6, 2)  # 12 blocks, Swin-T's
WIDTHS_20, DEPTHS_20 = (64, 128, 320, 512), (3, 5, 9, 3)  # 20 blocks, STViT-S's

ROWS = {
    "swin-12": Variant("swin", WIDTHS_12, DEPTHS_12, (3, 6, 12, 24)),
    "stvit-12": Variant("stvit", WIDTHS_12, DEPTHS_12, (3, 6, 12, 24)),
    "swin-20": Variant("swin", WIDTHS_20, DEPTHS_20, (2, 4, 10, 16)),
    "swin-20-global": Variant("swin", WIDTHS_20, DEPTHS_20, (2, 4, 10, 16), global_stage=2),
    "stvit-20": Variant("stvit", WIDTHS_20, DEPTHS_20, (1, 2, 5, 8)),
    "swin-20-norpe": Variant("swin", WIDTHS_20, DEPTHS_20, (2, 4, 10, 16), rpe=False),
    "stvit-20-norpe": Variant("stvit", WIDTHS_20, DEPTHS_20, (1, 2, 5, 8), rpe=False),
}


def miniature(row: Variant) -> Variant:
    """Return the row at a quarter of its width, for images of 64 pixels (2/7 of 224).

    The window is 2 and there are 2 x 2 super tokens instead of 7 x 7: every part attends over the same share of the image.
    """
    a, b, c, d = row.embed_dims
    return replace(row, embed_dims=(a // 4, b // 4, c // 4, d // 4), window_size=2, image_size=64)


FULL, MINI = "isotropic-", "isotropic-mini-"
VARIANTS = {FULL + name: row for name, row in ROWS.items()} | {MINI + name: miniature(row) for name, row in ROWS.items()}
