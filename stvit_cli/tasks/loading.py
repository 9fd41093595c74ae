"""Open a trained model from a weights file or a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsFile, WeightsInfo, describe, load_weights, match_weights, read_weights
from stvit_cli.models.weights.info import missing_parts
from stvit_cli.tasks import registry
from stvit_cli.tasks.exported import is_exported
from stvit_cli.tasks.spec import Trained
from stvit_cli.tasks.weights import weights_file
from stvit_cli.utils.text import first_line, shortened

__all__ = ["Trained", "open_trained", "weights_file"]

_INIT = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")
_RANDOM = {Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, *(getattr(nn.init, name) for name in _INIT)}


def open_trained(
    path: str | Path, model: str | None = None, *, needs_classifier: bool = True, takes_exported: bool = False
) -> Trained:
    """Open a trained model.

    Args:
        path: a weights file, or the directory of a run.
        model: the architecture that is expected; any, where it is not given.
        needs_classifier: a backbone without one will not do.
        takes_exported: a file of `stvit export` will do, which is run in its runtime; see `tasks.exported_file`.

    Raises:
        UserError: nothing there, damaged, of another architecture, or not complete.
    """
    if is_exported(Path(path)):
        return _open_exported(Path(path), model, takes_exported)
    file = read_weights(weights_file(Path(path)))
    info = describe(file)
    if model not in (None, info.model):
        raise UserError(f"{file.path} holds weights of {info.model}, but {model} was asked for.")
    if not info.num_classes and needs_classifier:
        raise UserError(f"{file.path} holds a backbone without a classifier; `stvit finetune` trains one.")
    _require_fit(file, info)
    with _WithoutRandomNumbers():
        net = registry.get(info.task).create_model(info)
    load_weights(net, file)
    return Trained(net.eval(), info, file.path)


def _open_exported(path: Path, model: str | None, takes_exported: bool) -> Trained:
    from stvit_cli.tasks.exported_file import open_exported

    if not takes_exported:
        raise UserError(
            f"{path}: an exported file is for predict and eval; here the weights are needed that it was exported from."
        )
    trained = open_exported(path)
    if model not in (None, trained.info.model):
        raise UserError(f"{path} holds {trained.info.model}, but {model} was asked for.")
    return trained


class _WithoutRandomNumbers(TorchFunctionMode):
    """Creates a model without drawing its initial weights, which takes longer than to load those of a file over them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return (args or tuple(kwargs.values()))[0] if func in _RANDOM else func(*args, **kwargs)


def _require_fit(file: WeightsFile, info: WeightsInfo) -> None:
    """Check that tensors and metadata belong together, on the meta device: metadata may describe a model of any size."""
    for problem in missing_parts(info):
        raise UserError(f"{file.path}: its metadata is incomplete: {problem}.")
    spec = registry.get(info.task)  # outside of the context below: modules that are imported within get meta tensors
    try:
        with torch.device("meta"):
            model = spec.create_model(info)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    except (RuntimeError, ValueError, OverflowError) as error:
        reason = shortened(first_line(error), 160)
        raise UserError(f"{file.path}: its metadata describes a model that cannot be built: {reason}.") from error
    report = match_weights(model, file)
    if report.missing or report.unexpected:
        name = shortened((report.missing + report.unexpected)[0])
        count = f"{len(report.missing)} tensors missing, {len(report.unexpected)} too many"
        raise UserError(f"{file.path}: not the weights of a complete {info.model}: {count}, such as {name}.")
