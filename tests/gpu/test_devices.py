"""Devices never mix: forward passes under FakeTensorMode on ``cuda``, and the simulated GPU itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.simulated_gpu import GpuTensor, MixedDevicesError, simulated_gpu
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from stvit_cli.models import create_model
from stvit_cli.models.optimize.fuse import fuse

CUDA = torch.device("cuda", 0)


def on_fake_gpu(model: nn.Module) -> nn.Module:
    """Give a model's parameters and buffers fake memory on the GPU; within FakeTensorMode."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return model


def assert_on_gpu(result: Any) -> None:
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    assert tensors
    assert {tensor.device for tensor in tensors} == {CUDA}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["stvit-nano", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stvit-s", "stvit-l"))])
def test_a_classifier_is_on_one_device(name: str, train: bool) -> None:
    with torch.device("meta"):
        built = create_model(name, num_classes=5, drop_path_rate=0.3)
    models = [built.train()] if train else [built.eval(), fuse(built)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(2, 3, 70, 90, device=CUDA)
        for model in map(on_fake_gpu, models):
            assert_on_gpu(model(images))
            assert_on_gpu(model.forward_intermediates(images))
        with pytest.raises(RuntimeError, match="same device"):
            model(torch.empty(2, 3, 70, 90))


def test_a_segmenter_is_on_one_device() -> None:
    from stvit_cli.tasks.segmentation.upernet import create_segmenter

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_fake_gpu(create_segmenter("stvit-nano", 5, channels=16, aux_channels=8)).train()
        assert_on_gpu(model(torch.empty(2, 3, 64, 96, device=CUDA)))


@pytest.mark.parametrize("head", ["mask-rcnn", "cascade-mask-rcnn", "faster-rcnn"])
def test_a_detector_is_on_one_device_as_far_as_it_can_run_without_values(head: str) -> None:
    """Which boxes remain depends on values: there it ends. The rest runs on the simulated GPU (`test_runs`)."""
    from stvit_cli.tasks.detection.detector import create_detector

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_fake_gpu(create_detector("stvit-nano", 3, head=head, channels=16, fc_dim=16)).eval()
        features = model.backbone(torch.empty(2, 3, 64, 96, device=CUDA))
        assert_on_gpu(features)
        with pytest.raises(Exception) as caught:  # noqa: PT011 (checked below)
            model([torch.empty(3, 64, 96, device=CUDA)])
        assert "device" not in str(caught.value).lower() or isinstance(caught.value, DynamicOutputShapeException)


def test_the_simulated_gpu_computes_what_the_cpu_does_and_refuses_what_a_gpu_refuses() -> None:
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=3, drop_path_rate=0.3).train()
    reference, images, target = copy.deepcopy(model), torch.randn(2, 3, 64, 48), torch.tensor([0, 1])

    def step(model: nn.Module, images: Tensor, target: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        F.cross_entropy(model(images), target).backward()
        torch.optim.AdamW(model.parameters(), fused=True).step()
        return list(copy.deepcopy(model).parameters())

    expected = step(reference, images, target)
    with simulated_gpu() as device:
        found = step(model.to(device, memory_format=torch.channels_last), images.to(device), target.cuda())
        assert all(type(parameter) is GpuTensor and parameter.device == CUDA and parameter.is_cuda for parameter in found)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs.detach())
        x = torch.ones(2, 3, device="cuda")
        assert (x[torch.tensor([1])] + torch.tensor(1.0)).sum().item() == 6.0
        refused: list[Callable[[], Any]] = [
            lambda: x + torch.ones(2, 3),
            lambda: torch.ones(3) * x.sum(),
            lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
            lambda: model(images),
            lambda: torch.ones(2, 3)[x[0].long()],
        ]
        for mixed in refused:
            with pytest.raises(MixedDevicesError, match="expected all tensors on one device"):
                mixed()
        with pytest.raises(TypeError, match="convert cuda:0 device type tensor to numpy"):
            x.numpy()
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "a simulated GPU"
    assert not isinstance(torch.zeros(1), (GpuTensor, FakeTensor))
