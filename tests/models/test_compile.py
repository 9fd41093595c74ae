from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from stvit_cli.models import create_model


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own look at every tensor it meets
def test_blocks_of_equal_shape_are_compiled_once_whatever_their_drop_path(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    model = create_model("stvit-nano", num_classes=3, drop_path_rate=0.3).train()
    model.compile_blocks()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    # Seven blocks in four stages; the very first has no drop path, but is alone in its stage.
    assert counter.frame_count == 4
    torch.compiler.reset()
