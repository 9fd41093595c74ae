"""The rows of a classifier whose classes a weights file has under the same name, ``finetune.keep_classes``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stvit_cli.data.class_subset import match_classes
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsFile, describe


@torch.no_grad()
def keep_rows(model: nn.Module, file: WeightsFile, class_names: Sequence[str]) -> str:
    """Copy the rows of the classes that a file has into the classifier of a model.

    Args:
        model: whose classifier is new.
        file: the weights that it starts from.
        class_names: of the model, (K,).

    Returns:
        A line for the user.

    Raises:
        UserError: the file names no classes or has fewer than two of these, or its classifier is no linear layer of the width.
    """
    before = describe(file).class_names
    head = model.get_classifier()  # type: ignore[operator]
    weight = next((tensor for name, tensor in file.state_dict.items() if name.endswith("head.weight")), None)
    bias = next((tensor for name, tensor in file.state_dict.items() if name.endswith("head.bias")), None)
    fits = isinstance(head, nn.Linear) and weight is not None and weight.shape == (len(before), head.in_features)
    if not fits or not before:
        found = "does not name its classes" if not before else "has no linear classifier of this width"
        raise UserError(f"finetune.keep_classes: {file.path} {found}. finetune.keep_classes=false makes a new classifier.")
    kept = match_classes(class_names, before, "finetune.keep_classes")
    own = {name: index for index, name in enumerate(class_names)}
    rows, columns = torch.tensor([own[name] for name in kept.names]), torch.from_numpy(kept.columns)
    assert isinstance(head, nn.Linear)
    assert weight is not None
    head.weight[rows] = weight[columns].to(head.weight.dtype)
    if bias is not None and head.bias is not None:
        head.bias[rows] = bias[columns].to(head.bias.dtype)
    new = f"; {len(kept.lacking)} are new" if kept.lacking else ""
    return f"The classifier starts from the rows of {len(kept.names)} of the file's {len(before)} classes{new}."
