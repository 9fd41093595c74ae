"""A trained model, opened from a weights file or from the directory of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.weights import WeightsInfo, load_weights, read_info, read_state_dict

_IN_A_RUN = ("best.safetensors", "last.safetensors")


@dataclass(frozen=True)
class Trained:
    """A model in eval mode on the CPU, what its weights file says of it, and that file."""

    model: nn.Module
    info: WeightsInfo
    path: Path


def weights_file(path: Path) -> Path:
    """Return ``path`` itself, or the best weights of the run directory that it is. Raises UserError where there are none."""
    if not path.is_dir():
        return path
    for name in _IN_A_RUN:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: a folder without weights; expected a file, or a run directory with {' or '.join(_IN_A_RUN)}.")


def describe_weights(path: Path, model: str | None = None) -> WeightsInfo:
    """Return what a weights file says of itself, or, for a published ``.pth``, what can be told of its tensors.

    Args:
        model: the architecture; needed for a ``.pth``, which does not name it; elsewhere it must agree.

    Raises:
        UserError: the file cannot be read, or the model is not named, or is another one.
    """
    if path.suffix == ".safetensors":
        info = read_info(path)
        if model not in (None, info.model):
            raise UserError(f"{path} holds weights of {info.model}, but {model} was asked for. Give --model {info.model}")
        return info
    tensors, _ = read_state_dict(path)
    if model is None:
        raise UserError(f"{path} does not say which model it is for; name it: --model stvit-s, for instance.")
    if "head.weight" not in tensors or "stem.0.conv.weight" not in tensors:
        raise UserError(f"{path}: expected a classification model; it has no classifier or no stem.")
    return WeightsInfo(model, num_classes=len(tensors["head.weight"]), in_chans=tensors["stem.0.conv.weight"].shape[1])


def open_trained(path: Path, model: str | None = None) -> Trained:
    """Open a weights file or a run directory.

    Args:
        model: the architecture, for a file that does not name it.

    Raises:
        UserError: nothing there, damaged, of another architecture, or not complete.
    """
    path = weights_file(path)
    info = describe_weights(path, model)
    net = create_model(info.model, info.num_classes, info.in_chans)
    report = load_weights(net, path)
    if report.missing or report.unexpected:
        name = (report.missing + report.unexpected)[0]
        count = f"{len(report.missing)} tensors missing, {len(report.unexpected)} too many"
        raise UserError(f"{path}: not the weights of a whole {info.model}: {count}, such as {name}.")
    return Trained(net.eval(), info, path)
