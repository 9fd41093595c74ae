"""The authors' published checkpoints: their keys renamed to those here, and the model identified by its shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from stvit_cli.errors import UserError
from stvit_cli.models.isotropic_rows import VARIANTS as ISOTROPIC
from stvit_cli.models.stvit import VARIANTS as STVIT
from stvit_cli.models.stvit import STViT
from stvit_cli.models.weights import imagenet
from stvit_cli.models.weights.info import WeightsInfo
from stvit_cli.utils.text import shortened

LICENCE = "the authors' published weights, from a repository that states no licence"
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
# The prefix of all keys where a training script wraps the model: Lightning's `self.model`, the backbone of a larger model. Before
# only some of the keys it has a meaning: a segmenter has a backbone and a decoder.
COMMON_PREFIXES = ("model.", "backbone.")
STEM_WEIGHT = "stem.0.conv.weight"
ISOTROPIC_STEM_WEIGHT = "patch_embed.weight"
HEAD_WEIGHT = "head.weight"
BLOCK_NAME = re.compile(r"stages\.(\d{1,2})\.blocks\.(\d{1,4})\.")
STVIT_NAME = re.compile(
    r"(stem\.[0-3]\.(conv|norm)|stages\.\d+\.(downsample\.(conv|norm)|blocks\.\d+\."
    r"(cpe\.conv|norm[12]|attn\.(qkv|proj)|mlp\.(fc[12]|conv\.conv)|ls[12]))|proj|norm|head)\.\w+$"
)

# The published keys and those here. The first match is applied; a key without a match is one of these already, or foreign.
RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^patch_embed\.proj\.(\d{1,4})\.", "stem.{layer}."),
        (r"^layers\.(\d{1,4})\.downsample\.proj\.0\.", "stages.{next_stage}.downsample.conv."),
        (r"^layers\.(\d{1,4})\.downsample\.proj\.1\.", "stages.{next_stage}.downsample.norm."),
        (r"^layers\.(\d{1,4})\.", "stages.{stage}."),
    )
)
BLOCK_RENAMES = (
    (".pos_embed.conv.", ".cpe.conv."),
    (".norm1.norm.", ".norm1."),
    (".attn.stoken_refine.", ".attn."),
    (".mlp2.", ".mlp."),
    (".gamma_1", ".ls1.gamma"),
    (".gamma_2", ".ls2.gamma"),
)
IDENTITY_KERNELS = (".attn.unfold.weights", ".attn.fold.weights")  # (9, 1, 3, 3): each selects one neighbour; not a weight here


def rename_key(name: str) -> str:
    """Return the key of the model here for a published one, without the prefixes of wrappers."""
    name = _unwrapped(name)
    for pattern, target in RENAMES:
        if match := pattern.match(name):
            number, rest = int(match[1]), name[match.end() :]
            if target.startswith("stem"):  # conv, GELU, norm: three indices of the published Sequential for each layer
                rest = ("norm." if number % 3 else "conv.") + rest
            name = target.format(layer=number // 3, stage=number, next_stage=number + 1) + rest
            break
    for published, here in BLOCK_RENAMES:
        name = name.replace(published, here)
    return name


def _unwrapped(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def common_prefix(names: Iterable[str]) -> str:
    """Return the prefix that a wrapper has put before all of the keys, such as ``module.model.``; empty if there is none."""
    rest, prefix = list(names), ""
    while rest and (found := next((p for p in PREFIXES + COMMON_PREFIXES if all(n.startswith(p) for n in rest)), "")):
        prefix += found
        rest = [name.removeprefix(found) for name in rest]
    return prefix


def rename_keys(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Rename the keys of a published state dict.

    Args:
        tensors: a state dict with published keys, or with those of the models here, with or without a wrapper's prefix.

    Returns:
        The renamed state dict; the keys that were changed, old to new; the identity kernels, which were left out.

    Raises:
        UserError: two keys become one, or a kernel of unfold or fold is not the identity.
    """
    state_dict: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    left_out: list[str] = []
    prefix = common_prefix(tensors)
    for name, tensor in tensors.items():
        if name.endswith(IDENTITY_KERNELS):
            if tensor.ndim < 1 or not torch.equal(tensor.reshape(len(tensor), -1).float(), torch.eye(9)):
                raise UserError(f"{shortened(name)} is not the identity; the model supports no other unfold or fold.")
            left_out.append(name)
            continue
        renamed_key = rename_key(name.removeprefix(prefix))
        if renamed_key in state_dict:
            raise UserError(
                f"{shortened(name)} and another key both become {shortened(renamed_key)}; expected one model's weights."
            )
        # Layer scale is published as (1, C, 1, 1).
        state_dict[renamed_key] = tensor.flatten() if renamed_key.endswith(".gamma") else tensor
        if renamed_key != name:
            renamed[name] = renamed_key
    return state_dict, renamed, left_out


def identify(state_dict: Mapping[str, Tensor], image_size: int | None = None) -> WeightsInfo:
    """Identify the model of a state dict by its keys and shapes.

    Args:
        state_dict: weights under the keys of the models here, see `rename_keys`.
        image_size: side of the images in pixels, which the shapes do not tell; default 224.

    Returns:
        The model with its numbers of classes and channels. 1000 classes are taken for ImageNet's, named by their synsets.

    Raises:
        UserError: no model has these tensors.
    """
    found = _shapes(state_dict)
    head, stem = found.get(HEAD_WEIGHT), found.get(STEM_WEIGHT, found.get(ISOTROPIC_STEM_WEIGHT))
    candidates = _candidates(found) if stem and len(stem) == 4 else []
    name = next((name for name in candidates if _backbone(found) == _backbone(_shapes_of(name))), None)
    if name is None or stem is None:
        raise UserError(f"these are not the weights of a known model: {_layout(found)}.")
    num_classes, in_chans = head[0] if head else 0, stem[1]
    info = WeightsInfo(name, num_classes=num_classes, in_chans=in_chans, image_size=image_size or 224)
    if num_classes == 1000:
        info = replace(info, class_names=imagenet.synsets())
    return info if in_chans == 3 else replace(info, mean=(0.5,) * in_chans, std=(0.5,) * in_chans)


def is_counter(name: str) -> bool:
    """Return whether a tensor is the batch counter of a batch norm: unused, and absent from files of PyTorch before 0.4.1."""
    return name.endswith(".num_batches_tracked")


def is_stvit(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors have the keys of an STViT, of any widths and depths."""
    shapes = {name: state_dict[name].ndim for name in (STEM_WEIGHT, HEAD_WEIGHT) if name in state_dict}
    return all(STVIT_NAME.match(name) for name in state_dict) and shapes.get(STEM_WEIGHT) == 4 and shapes.get(HEAD_WEIGHT, 2) == 2


def _candidates(shapes: Mapping[str, torch.Size]) -> list[str]:
    """Return the models with the widths and depths of the weights; of Table II's rows, those with the same attention."""
    layout = _widths_and_depths(shapes)
    if STEM_WEIGHT in shapes:
        return [name for name, variant in STVIT.items() if (variant.embed_dims, variant.depths) == layout]
    attention = "stvit" if len(shapes.get("stages.0.blocks.0.attn.qkv.weight", ())) == 4 else "swin"  # a convolution or linear
    rpe = any(name.endswith("relative_position_bias_table") for name in shapes)
    expected = (*layout, attention, rpe)
    return [name for name, row in ISOTROPIC.items() if (row.embed_dims, row.depths, row.attention, row.rpe) == expected]


def _widths_and_depths(shapes: Mapping[str, torch.Size]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the width and the number of blocks of each stage; both empty where there are no stages, a width 0 if unknown."""
    blocks = [(int(match[1]), int(match[2])) for name in shapes if (match := BLOCK_NAME.match(name))]
    stages = range(max((stage for stage, _ in blocks), default=-1) + 1)
    depths = tuple(1 + max((block for stage, block in blocks if stage == i), default=-1) for i in stages)
    norms = [shapes.get(f"stages.{i}.blocks.0.norm1.weight") for i in stages]
    return tuple(shape[0] if shape else 0 for shape in norms), depths


def _layout(shapes: Mapping[str, torch.Size]) -> str:
    """Describe weights of no known model, for a message."""
    widths, depths = _widths_and_depths(shapes)
    if not depths or STEM_WEIGHT not in shapes:
        first = ", ".join(shortened(name) for name in list(shapes)[:2])
        return f"{len(shapes)} tensors, {first} and others"
    return f"an STViT of widths {' '.join(str(n or '?') for n in widths)} and depths {' '.join(map(str, depths))}"


def _backbone(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """Return the shapes that depend neither on the number of classes nor on the number of input channels."""
    return {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith("head.") and name not in (STEM_WEIGHT, ISOTROPIC_STEM_WEIGHT)
    }


@cache
def _shapes_of(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return _shapes(_create(name).state_dict())


def _create(name: str) -> nn.Module:
    # Not by `create_model`, which reads weights files, and so imports this module.
    if name in STVIT:
        return STViT(STVIT[name])
    from stvit_cli.models.isotropic import Isotropic  # imports timm, which takes seconds

    return Isotropic(ISOTROPIC[name])


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes by key, without the counters that old checkpoints lack."""
    return {name: tensor.shape for name, tensor in state_dict.items() if not is_counter(name)}
