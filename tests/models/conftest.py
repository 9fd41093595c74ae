"""The published layout, written from its description: the oracle of what reads it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

StateDict = dict[str, Tensor]


def to_published(state_dict: StateDict) -> StateDict:
    """Give an STViT's weights the authors' names, shapes and identity kernels."""
    result: StateDict = {}
    for name, tensor in state_dict.items():
        match name.split("."):
            case ["stem", layer, part, leaf]:
                result[f"patch_embed.proj.{3 * int(layer) + 2 * (part == 'norm')}.{leaf}"] = tensor
            case ["stages", stage, "downsample", part, leaf]:
                result[f"layers.{int(stage) - 1}.downsample.proj.{int(part == 'norm')}.{leaf}"] = tensor
            case ["stages", stage, "blocks", block, *rest]:
                here = f"layers.{stage}.blocks.{block}"
                if rest == ["cpe", "conv", "weight"]:
                    result |= {f"{here}.attn.{way}.weights": torch.eye(9).reshape(9, 1, 3, 3) for way in ("unfold", "fold")}
                result[f"{here}.{_in_block(rest)}"] = tensor.reshape(1, -1, 1, 1) if rest[-1] == "gamma" else tensor
            case _:
                result[name] = tensor
    return result


def _in_block(rest: list[str]) -> str:
    theirs = {
        "cpe": "pos_embed",
        "norm1": "norm1.norm",
        "norm2": "norm2",
        "attn": "attn.stoken_refine",
        "mlp": "mlp2",
        "ls1": "gamma_1",
        "ls2": "gamma_2",
    }[rest[0]]
    return theirs if rest[-1] == "gamma" else ".".join([theirs, *rest[1:]])


@pytest.fixture
def published() -> Callable[[StateDict], StateDict]:
    return to_published
