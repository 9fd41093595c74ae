from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from stvit_cli.models import create_model
from stvit_cli.models.kernels import is_available, use_kernels

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own look at every tensor it meets


def test_blocks_of_equal_shape_are_compiled_once_whatever_their_drop_path(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    for number in (1, 2, 3):  # a later model is compiled too: by itself, for all that has been compiled before
        model = create_model("stvit-nano", num_classes=3, drop_path_rate=0.3).train()
        model.compile_blocks()
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
        # Seven blocks in four stages; the very first has no drop path, but is alone in its stage.
        assert counter.frame_count == 4 * number
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler says of its own
@pytest.mark.parametrize("by_kernels", [False, True])
def test_compiled_blocks_give_the_same_numbers(by_kernels: bool) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=3).train()
    if use_kernels(model, "cpu", by_kernels and is_available("cpu")) != by_kernels:
        pytest.skip("no kernels on this machine")
    compiled = copy.deepcopy(model)
    compiled.compile_blocks()
    images = torch.randn(2, 3, 96, 64)
    found = []
    for one in (model, compiled):
        logits = one(images)
        gradients = torch.autograd.grad(logits.square().sum(), list(one.parameters()))
        found.append((logits, torch.cat([gradient.flatten() for gradient in gradients])))
    for eager, ours in zip(*found, strict=True):
        assert (ours - eager).norm() < 1e-5 * eager.norm()
    torch.compiler.reset()
