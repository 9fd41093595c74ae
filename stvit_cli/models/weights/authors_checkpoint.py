"""The authors' published layout: its names in ours, and which model a file is for, told by its shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from stvit_cli.errors import UserError
from stvit_cli.models.registry import create_model, list_models
from stvit_cli.models.weights.info import WeightsInfo
from stvit_cli.utils.text import shortened

LICENCE = "the authors' published weights, from a repository that states no licence"
PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put before a key
# What a training script's own module puts before all keys: Lightning's `self.model`, a backbone of a larger model. Before some of
# them it means something: a segmenter has a backbone beside its decoder.
COMMON_PREFIXES = ("model.", "backbone.")
STEM_WEIGHT = "stem.0.conv.weight"
ISOTROPIC_STEM_WEIGHT = "patch_embed.weight"
HEAD_WEIGHT = "head.weight"
STVIT_NAME = re.compile(
    r"(stem\.[0-3]\.(conv|norm)|stages\.\d+\.(downsample\.(conv|norm)|blocks\.\d+\."
    r"(cpe\.conv|norm[12]|attn\.(qkv|proj)|mlp\.(fc[12]|conv\.conv)|ls[12]))|proj|norm|head)\.\w+$"
)

# The published names and ours. The first match is taken; a name that none matches is ours already or foreign.
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
IDENTITY_KERNELS = (".attn.unfold.weights", ".attn.fold.weights")  # 9 x 1 x 3 x 3: each picks one neighbour; no weights of ours


def our_name(name: str) -> str:
    """Return our name for a published one, without the prefixes of wrappers."""
    name = _unwrapped(name)
    for pattern, target in RENAMES:
        if match := pattern.match(name):
            number, rest = int(match[1]), name[match.end() :]
            if target.startswith("stem"):  # conv, GELU, norm: three places of the published Sequential for each layer
                rest = ("norm." if number % 3 else "conv.") + rest
            name = target.format(layer=number // 3, stage=number, next_stage=number + 1) + rest
            break
    for theirs, ours in BLOCK_RENAMES:
        name = name.replace(theirs, ours)
    return name


def _unwrapped(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def common_prefix(names: Iterable[str]) -> str:
    """Return what a wrapper has put before every one of the names, such as ``module.model.``; empty where they differ."""
    rest, prefix = list(names), ""
    while rest and (found := next((p for p in PREFIXES + COMMON_PREFIXES if all(n.startswith(p) for n in rest)), "")):
        prefix += found
        rest = [name.removeprefix(found) for name in rest]
    return prefix


def our_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Return the tensors under our names, the names that were changed (theirs to ours), and the identity kernels left out.

    Raises:
        UserError: two names that become one, or a kernel of unfold or fold that is not the identity.
    """
    state_dict: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    left_out: list[str] = []
    prefix = common_prefix(tensors)
    for name, tensor in tensors.items():
        if name.endswith(IDENTITY_KERNELS):
            if tensor.ndim < 1 or not torch.equal(tensor.reshape(len(tensor), -1).float(), torch.eye(9)):
                raise UserError(f"{shortened(name)} is not the identity; the model has no place for another unfold or fold.")
            left_out.append(name)
            continue
        ours = our_name(name.removeprefix(prefix))
        if ours in state_dict:
            raise UserError(f"{shortened(name)} and another name both mean {shortened(ours)}; expected one model's weights.")
        # Layer scale is published as (1, C, 1, 1).
        state_dict[ours] = tensor.flatten() if ours.endswith(".gamma") else tensor
        if ours != name:
            renamed[name] = ours
    return state_dict, renamed, left_out


def identify(state_dict: Mapping[str, Tensor], image_size: int | None = None) -> WeightsInfo:
    """Tell by names and shapes which model the weights (under our names) are for, with its classes and channels.

    The size of the images leaves no trace in the shapes: without ``image_size`` it is 224. With 1000 classes these are
    ImageNet's, named by their synsets, as its folders are.

    Raises:
        UserError: no model has these tensors.
    """
    found = _shapes(state_dict)
    head, stem = found.get(HEAD_WEIGHT), found.get(STEM_WEIGHT, found.get(ISOTROPIC_STEM_WEIGHT))
    isotropic = STEM_WEIGHT not in found
    candidates = [name for name in list_models() if name.startswith("isotropic") == isotropic] if stem and len(stem) == 4 else []
    name = next((name for name in candidates if _body(found) == _body(_shapes_of(name))), None)
    if name is None or stem is None:
        raise UserError(f"these are no weights of a model known here: {_layout(found)}.")
    num_classes, in_chans = head[0] if head else 0, stem[1]
    info = WeightsInfo(name, num_classes=num_classes, in_chans=in_chans, image_size=image_size or 224)
    if num_classes == 1000:
        info = replace(info, class_names=tuple(ImageNetInfo().label_names()))
    return info if in_chans == 3 else replace(info, mean=(0.5,) * in_chans, std=(0.5,) * in_chans)


def is_counter(name: str) -> bool:
    """Whether a tensor is a batch norm's count of batches. PyTorch before 0.4.1 did not write it, and no result depends on it."""
    return name.endswith(".num_batches_tracked")


def is_stvit(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are laid out as an STViT's, of whatever widths and depths."""
    shapes = {name: state_dict[name].ndim for name in (STEM_WEIGHT, HEAD_WEIGHT) if name in state_dict}
    return all(STVIT_NAME.match(name) for name in state_dict) and shapes.get(STEM_WEIGHT) == 4 and shapes.get(HEAD_WEIGHT, 2) == 2


def _layout(shapes: Mapping[str, torch.Size]) -> str:
    places = [
        (int(match[1]), int(match[2])) for name in shapes if (match := re.match(r"stages\.(\d{1,2})\.blocks\.(\d{1,4})\.", name))
    ]
    if not places or STEM_WEIGHT not in shapes:
        first = ", ".join(shortened(name) for name in list(shapes)[:2])
        return f"{len(shapes)} tensors, {first} and others"
    stages = range(max(stage for stage, _ in places) + 1)
    depths = " ".join(str(1 + max((block for stage, block in places if stage == i), default=-1)) for i in stages)
    first_of = [shapes.get(f"stages.{i}.blocks.0.cpe.conv.weight") for i in stages]
    widths = " ".join(str(shape[0]) if shape else "?" for shape in first_of)
    return f"an STViT of widths {widths} and depths {depths}"


def _body(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """Return the shapes that depend neither on the classes nor on the channels."""
    return {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith("head.") and name not in (STEM_WEIGHT, ISOTROPIC_STEM_WEIGHT)
    }


@cache
def _shapes_of(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return _shapes(create_model(name).state_dict())


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes by name, without the counters that old checkpoints lack."""
    return {name: tensor.shape for name, tensor in state_dict.items() if not is_counter(name)}
