"""Read, write and load weights files: safetensors with a description, and the authors' published checkpoints."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stvit_cli.errors import UserError
from stvit_cli.models import timm_models
from stvit_cli.models.weights import authors_checkpoint as published
from stvit_cli.models.weights.authors_checkpoint import is_counter
from stvit_cli.models.weights.info import WeightsInfo, parse
from stvit_cli.models.weights.torch_checkpoint import DTYPES, read_checkpoint
from stvit_cli.utils.files import replacing
from stvit_cli.utils.machine_failures import machine_failure
from stvit_cli.utils.packaged_weights import names_hint, packaged_file
from stvit_cli.utils.text import did_you_mean, shortened

__all__ = [
    "LoadReport",
    "WeightsFile",
    "WeightsInfo",
    "backbone_of",
    "is_counter",
    "load_weights",
    "match_weights",
    "read_info",
    "read_state_dict",
    "read_weights",
    "save_weights",
]

METADATA_KEY = "stvit"  # the only one: the format writes several in no fixed order
CHECKSUM = re.compile(r',"crc32":"([0-9a-f]{8})"}$')  # the end of the description
HEAD = ("head.weight", "head.bias")
_FLATTENED = re.compile(r"\b(stem|stages)_(\d+)\.")
# The data types of the format that the checks below can read; others (F8, complex) are refused before they are read.
READABLE = frozenset({"F16", "BF16", "F32", "F64", "I64"})


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file.

    Attributes:
        state_dict: the tensors under the keys of the models here, memory-mapped from the file.
        info: the description in the file; None for a published checkpoint, see `describe`.
        renamed: keys of the file that were changed, old to new.
        left_out: keys of the file that are not weights (the identity kernels of unfold and fold).
        container: the key of the checkpoint that held the weights.
        others: the other keys that hold weights.
        image_size: side of the training images in pixels, if the file contains it.
    """

    path: Path
    state_dict: dict[str, Tensor]
    info: WeightsInfo | None
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    container: str = ""
    others: tuple[str, ...] = ()
    image_size: int | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The tensors under the keys of the file, for a model of timm."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did with every key.

    Attributes:
        loaded: keys of the model that were loaded, the adapted ones included.
        renamed: keys of the file that were changed, old to new.
        missing: keys of the model that the file lacks; their tensors are unchanged. The batch counters of batch norms, which
            old checkpoints lack and no result depends on, are not listed.
        unexpected: keys of the file that the model lacks.
        reset: keys of the classifier that were not loaded because of ``new_head``.
        adapted: the first kernel of the stem, if it was adapted to another number of channels because of ``new_head``.
        left_out: keys of the file's identity kernels, which are not weights.
    """

    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def save_weights(path: str | Path, weights: nn.Module | Mapping[str, Tensor], info: WeightsInfo) -> None:
    """Write a safetensors file with a description and a checksum in its metadata, atomically.

    Args:
        path: the file to write.
        weights: a model or its state dict.
        info: the description of the model, see `WeightsInfo`.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.

    Example:
        >>> import tempfile
        >>> from stvit_cli import create_model
        >>> from stvit_cli.models.weights import WeightsInfo, read_info, save_weights
        >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> save_weights(path, create_model("stvit-nano", num_classes=2), WeightsInfo("stvit-nano", num_classes=2))
        >>> read_info(path).model
        'stvit-nano'
    """
    state_dict = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # Contiguous, so that equal weights give equal files in whatever memory format they are used.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    text = info.to_json()
    path = Path(path)
    with replacing(path) as temporary:
        mode = temporary.stat().st_mode  # of the user's umask; the library would make the file unreadable to others
        save_file(tensors, temporary, metadata={METADATA_KEY: f'{text[:-1]},"crc32":"{_checksum(tensors, text)}"}}'})
        temporary.chmod(mode)


def read_weights(path: str | Path, container: str | None = None) -> WeightsFile:
    """Read a weights file of `save_weights`, or a published checkpoint (``.pth`` or ``.safetensors``). No code in it is executed.

    Args:
        path: the file, or a name of `list_weights`.
        container: the key of the weights to read from a checkpoint with several; default ``model``, then ``model_ema``.

    Returns:
        The tensors under the keys of the models here, and what the file contains besides.

    Raises:
        UserError: the file is missing or damaged, has no weights, or has values that are not finite.
    """
    path = packaged_file(path) or Path(path)
    _require_file(path)
    if _is_safetensors(path):
        if container is not None:
            raise UserError(f"{path}: a safetensors file has one set of weights, found no '{container}'.")
        tensors, info = _read_safetensors(path)
        names: dict[str, Any] = {}
        image_size = None
    else:
        checkpoint = read_checkpoint(path, container)
        tensors, info, image_size = checkpoint.tensors, None, checkpoint.image_size
        names = {"container": checkpoint.container, "others": checkpoint.others}
    _require_numbers(path, tensors)
    if info is not None and timm_models.is_timm_name(info.model):
        return WeightsFile(path, tensors, info, tensors=tensors)
    try:
        state_dict, renamed, left_out = published.rename_keys(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return WeightsFile(path, state_dict, info, renamed, left_out, image_size=image_size, tensors=tensors, **names)


def read_info(path: str | Path) -> WeightsInfo:
    """Return the description of a weights file; of a published one, what its shapes tell.

    Args:
        path: the file, or a name of `list_weights`. Only its header is read if it has a description.

    Raises:
        UserError: the file is missing or damaged, or its architecture is unknown.
    """
    path = packaged_file(path) or Path(path)
    _require_file(path)
    if _is_safetensors(path):
        with _opened(path) as file:
            info = _info_of(path, file.metadata())
        if info is not None:
            return info
    return describe(read_weights(path))


def describe(file: WeightsFile, image_size: int | None = None) -> WeightsInfo:
    """Return the description in a file; of a published one, what its shapes tell.

    Args:
        file: what `read_weights` returned.
        image_size: side of the images in pixels, for a published file that does not contain it; default 224.

    Raises:
        UserError: the architecture is unknown.
    """
    if file.info is not None:
        return file.info
    try:
        info = published.identify(file.state_dict, image_size or file.image_size)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    return replace(info, licence=published.LICENCE) if file.left_out else info


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file under the keys of the models here. Raises UserError as `read_weights` does."""
    return read_weights(path).state_dict


def load_weights(model: nn.Module, path: str | Path | WeightsFile, *, new_head: bool = False) -> LoadReport:
    """Load a weights file into a model. Everything is checked before the first weight changes.

    Args:
        model: the model to load into; also a model with an STViT inside, such as one of timm's with ``features_only``, or a
            network of segmentation-models-pytorch, whose other weights stay as they are.
        path: a weights file, a name of `list_weights`, or what `read_weights` returned. Of a detector's or segmenter's file, a
            model without a classifier gets the backbone.
        new_head: keep the classifier of ``model`` if it has another size, and adapt the stem to another number of channels (the
            kernels are summed, or repeated and scaled, as in timm).

    Returns:
        What was done with every key.

    Raises:
        UserError: the file cannot be read, is of another architecture, or has tensors of other shapes.

    Example:
        >>> import tempfile
        >>> from stvit_cli import create_model, load_weights
        >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> save_weights(path, create_model("stvit-nano", num_classes=2), WeightsInfo("stvit-nano", num_classes=2))
        >>> report = load_weights(create_model("stvit-nano", num_classes=5), path, new_head=True)
        >>> report.missing, report.reset
        ([], ['head.weight', 'head.bias'])
    """
    file = path if isinstance(path, WeightsFile) else read_weights(path)
    state_dict, report = _matched(model, file, new_head)
    model.load_state_dict({name: state_dict[name] for name in report.loaded}, strict=False)
    return report


def match_weights(model: nn.Module, file: WeightsFile, *, new_head: bool = False) -> LoadReport:
    """Return the report of `load_weights` without loading; the model may be on the meta device, without memory.

    Args:
        model: the model.
        file: what `read_weights` returned.
        new_head: see `load_weights`.

    Raises:
        UserError: the file is of another architecture, or has tensors of other shapes or types.
    """
    return _matched(model, file, new_head)[1]


def _matched(model: nn.Module, file: WeightsFile, new_head: bool) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors of the file as the model needs them, and the report on every key."""
    own = model.state_dict()
    names: dict[str, str] = {}
    if timm_models.is_timm_model(model):
        state_dict = timm_models.fitted(model, file.tensors or file.state_dict)
        head, stem = list(timm_models.classifier_names(model)), timm_models.first_convolution(model)
    else:
        tensors = _fitting(own, file).state_dict
        names = _names_in_model(own, tensors)
        head, stem = [names.get(name, name) for name in HEAD], names.get(published.STEM_WEIGHT, published.STEM_WEIGHT)
        state_dict = {names.get(name, name): tensor for name, tensor in tensors.items()}
    reset: list[str] = []
    adapted: list[str] = []
    if new_head:
        adapted = _fit_stem(state_dict, own, stem)
        reset = [name for name in head if name in own and (name not in state_dict or own[name].shape != state_dict[name].shape)]
        for name in reset:
            state_dict.pop(name, None)
    common = [name for name in own if name in state_dict]
    wrong = [name for name in common if own[name].shape != state_dict[name].shape]
    expected = len(names) or len(own)  # of a larger model only the backbone is expected
    if len(common) < expected // 2 or set(wrong) - {*head, stem}:
        fits = f"{len(common) - len(wrong)} of its {expected} tensors are in the file with the same shape"
        raise UserError(f"{file.path}: these are not the weights of this model: {fits}.{_what(file)}")
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{file.path}: {name} is {tuple(state_dict[name].shape)}, the model's is {tuple(own[name].shape)}.{_what(file)}\n"
            "Create the model with as many classes and channels, or fine-tune, which makes a new classifier and adapts the stem."
        )
    for name in common:
        if own[name].is_floating_point() != state_dict[name].is_floating_point():
            found = str(state_dict[name].dtype).removeprefix("torch.")
            raise UserError(
                f"{file.path}: {name} is of type {found}, the model's is {str(own[name].dtype).removeprefix('torch.')}."
            )
    return state_dict, LoadReport(
        loaded=common,
        renamed=file.renamed,
        missing=[name for name in own if name not in state_dict and name not in reset and not is_counter(name)],
        unexpected=[name for name in state_dict if name not in own],
        reset=reset,
        adapted=adapted,
        left_out=file.left_out,
    )


def backbone_of(file: WeightsFile) -> WeightsFile:
    """Return the backbone of a detector's or segmenter's file, under the names that a classifier has; other files as they are."""
    prefixes = [name.removesuffix(published.STEM_WEIGHT) for name in file.state_dict if name.endswith(published.STEM_WEIGHT)]
    if len(prefixes) != 1 or not prefixes[0]:
        return file
    inside = {name: tensor for name, tensor in file.state_dict.items() if name.startswith(prefixes[0])}
    return replace(file, state_dict={name.removeprefix(prefixes[0]): tensor for name, tensor in inside.items()})


def _fitting(own: Mapping[str, Tensor], file: WeightsFile) -> WeightsFile:
    """Return the backbone of a detector's or segmenter's file for a model that is neither that nor a classifier."""
    backbone, plain = backbone_of(file), {name.removeprefix("module.") for name in own}
    is_same = any(name in plain for name in file.state_dict)
    has_classifier = any(name == HEAD[0] or name.endswith(f".{HEAD[0]}") for name in own)
    return file if is_same or has_classifier else backbone


def _names_in_model(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the model's names of a backbone that is wrapped, by its own names; empty for a model with the names of the file.

    timm's ``features_only`` flattens ``stages.0`` to ``stages_0``; DistributedDataParallel, torchvision's FPN and
    segmentation-models-pytorch put a prefix in front, beside the names of a decoder.
    """
    if published.STEM_WEIGHT not in state_dict or published.STEM_WEIGHT in own:
        return {}
    plain = {_FLATTENED.sub(r"\1.\2.", name): name for name in own}
    prefixes = [name.removesuffix(published.STEM_WEIGHT) for name in plain if name.endswith(published.STEM_WEIGHT)]
    if len(prefixes) != 1:
        return {}
    return {name.removeprefix(prefixes[0]): key for name, key in plain.items() if name.startswith(prefixes[0])}


def _fit_stem(state_dict: dict[str, Tensor], own: Mapping[str, Tensor], name: str) -> list[str]:
    """Adapt the first kernel of the stem to the channels of the model; return its key if that was needed."""
    if name not in state_dict or name not in own or state_dict[name].ndim != own[name].ndim:
        return []
    channels, expected = state_dict[name].shape[1], own[name].shape[1]
    if channels == expected:
        return []
    from timm.models import adapt_input_conv

    state_dict[name] = adapt_input_conv(expected, state_dict[name], base_chans=channels)
    return [name]


def _what(file: WeightsFile) -> str:
    """Return a sentence on the model in the file, empty if it is unknown."""
    try:
        info = describe(file)
    except UserError:
        return ""
    use = "" if info.task == "classification" else f" for {info.task}"
    return f" The file holds {info.model}{use} with {info.num_classes} classes and {info.in_chans} channels."


def _require_file(path: Path) -> None:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such weights file"
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() and not path.is_dir() else ""
        )
        hint = "" if near or path.is_dir() else names_hint(path)
        raise UserError(f"{path}: {found}.{near}{hint}")


def _is_safetensors(path: Path) -> bool:
    """Return whether the content is safetensors: eight bytes of header length, then a JSON object; else go by the suffix."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or (path.suffix == ".safetensors" and not head.startswith(b"PK"))


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if machine_failure(error) is not None:
            raise
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({error}).") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    with _opened(path) as file:
        metadata = file.metadata() or {}
        names = list(file.keys())
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in READABLE:
                raise UserError(
                    f"{path}: {shortened(name)} holds {dtype}, which is not a data type of weights.\n"
                    "Expected float32, float16, bfloat16 or float64, which `stvit export` and `stvit convert` write."
                )
        tensors = {name: file.get_tensor(name) for name in names}
    info = _info_of(path, metadata)
    text = metadata.get(METADATA_KEY, "")
    if (match := CHECKSUM.search(text)) and match[1] != _checksum(tensors, text[: match.start()] + "}"):
        raise UserError(f"{path}: damaged, or changed since it was written: its checksum is wrong. Download the file again.")
    if not tensors:
        raise UserError(f"{path}: has no weights.")
    return tensors, info


def _info_of(path: Path, metadata: Mapping[str, str] | None) -> WeightsInfo | None:
    """Return the description in the metadata; None if the file was not written by `save_weights`."""
    text = (metadata or {}).get(METADATA_KEY)
    try:
        return None if text is None else parse(text, str(path))
    except ValueError as error:
        raise UserError(f"{path}: its description cannot be read: {error}. Damaged, or from another program.") from None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the CRC-32 of the description and of every tensor with its key, dtype and shape; the format has no checksum."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _require_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be weights: empty, of another dtype, or with values that are not finite."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or not tensor.numel():
            found = f"is empty, {tuple(tensor.shape)}" if not tensor.numel() else f"is of type {tensor.dtype}"
            raise UserError(f"{path}: {shortened(name)} {found}; expected weights. The file is damaged, or has other content.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{path}: {shortened(name)} has values that are not finite. The file is damaged, or its training diverged."
            )
