"""Pack the weights of a fused model for inference on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from stvit_cli.models.optimize.mkldnn import can_pack, pack_convolutions
from stvit_cli.models.optimize.packed_block import pack_blocks
from stvit_cli.models.optimize.packed_stem import pack_stems


def pack(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Pack the weights of STViT's layers, in place, if PyTorch has oneDNN; blocks and stem become one function each.

    Args:
        model: a copy made by `fuse`.
        dtype: of the packed weights, and of the tokens between the layers.
    """
    if can_pack():
        pack_convolutions(model, dtype)
        pack_stems(model, dtype)
        pack_blocks(model)
