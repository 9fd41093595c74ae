"""Custom kernels for the memory-bound steps of STViT: each reads its tokens once, where PyTorch reads them many times.

| step | layer | on |
|---|---|---|
| super token sampling and upsampling | `super_token.SuperTokenAttention` | CPU, CUDA |
| multi-head self-attention | `super_token.SuperTokenAttention` | CPU |
| position encoding, x + depth-wise 3 x 3 of x | `layers.ConvPosEnc` | CPU, CUDA |
| position encoding, and layer norm of its result | `stvit.Block` | CPU |
| GELU, then position encoding, inside ConvFFN | `layers.ConvFFN` | CPU, CUDA |
| gradients of the weights of convolutions | `accelerated.Conv2d` | CPU |

`operators` defines their arguments, results and gradients. On a CPU they are C++, compiled at first use (`cpu/`, `build`); on a
GPU, Triton (`triton/`). The layers keep their eager form, which runs where no kernel supports the input and is the reference of
the tests.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from stvit_cli.models.accelerated import Accelerated, Conv2d
from stvit_cli.models.exporting import is_exporting
from stvit_cli.models.kernels import choice, convolution, operators
from stvit_cli.models.kernels.errors import KernelsUnavailableError, UnsupportedDeviceError
from stvit_cli.utils.environment import local_rank

__all__ = [
    "KERNELS",
    "KernelsUnavailableError",
    "UnsupportedDeviceError",
    "is_available",
    "load",
    "supports",
    "supports_dtype",
    "use_kernels",
]

logger = logging.getLogger(__name__)

_loaded: set[str] = set()
_unavailable: dict[str, KernelsUnavailableError] = {}


def load(device_type: str) -> None:
    """Load the kernels. The first time on a machine those of a CPU are compiled, which takes seconds.

    Args:
        device_type: ``cpu`` or ``cuda``.

    Raises:
        KernelsUnavailableError: no compiler, no Triton, or another device type. A failure is not retried within a process.
    """
    if device_type in _unavailable:
        raise _unavailable[device_type]
    if device_type in _loaded:
        return
    try:
        _load(device_type)
    except KernelsUnavailableError as error:
        _unavailable[device_type] = error
        raise
    _loaded.add(device_type)


def _load(device_type: str) -> None:
    if device_type == "cpu":
        from stvit_cli.models.kernels import build

        path = build.library()
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            raise KernelsUnavailableError(f"{path} cannot be loaded ({error.__cause__ or error})") from error
    elif device_type == "cuda":
        try:
            from stvit_cli.models.kernels.triton import library  # noqa: F401 (registers the operators)
        except ImportError as error:
            raise KernelsUnavailableError(f"the package {error.name} is missing") from error
    else:
        raise UnsupportedDeviceError(f"there are kernels for cpu and cuda, not for {device_type}")


def use_kernels(
    model: nn.Module,
    device_type: str,
    enable: bool | Literal["auto"] | Collection[str] = True,
    *,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    train: bool = True,
) -> bool:
    """Attach the custom kernels to every layer of ``model`` that has one, or detach them.

    Args:
        model: any model with STViT layers, changed in place.
        device_type: ``cpu`` or ``cuda``, where the model will run.
        enable: ``auto`` attaches them where they are available and were measured to be faster: on a CPU see `are_faster`; on a
            GPU each kind of layer is measured once, see `choice`. Or the kinds of layers that get them, as `choice.kind_of` names
            them.
        dtype: what the model computes in: its own, or that of autocast.
        compiled: the model will be compiled.
        train: it will be trained; False: for inference, where ``auto`` on a GPU goes by the forward pass alone.

    Returns:
        Whether the model now has a layer with kernels.

    Raises:
        KernelsUnavailableError: ``enable`` is true and they are not available; see `load`.

    Example:
        >>> from stvit_cli import create_model
        >>> model = create_model("stvit-nano")
        >>> use_kernels(model, "cpu", enable=False)
        False
    """
    layers = [module for module in model.modules() if isinstance(module, Accelerated)]
    if device_type == "cuda" and enable == "auto":
        enable = ()
        if layers and torch.cuda.is_available() and is_available(device_type):
            gpu = torch.device("cuda", torch.cuda.current_device())
            enable = choice.choose(model, choice.Setting(gpu, dtype, compiled, train), KERNELS)
    elif enable == "auto":
        enable = bool(layers) and are_faster(device_type) and is_available(device_type)
    elif enable is True and layers:
        load(device_type)
    if not isinstance(enable, bool):
        return bool(choice.attach(model, enable if is_available(device_type) else (), KERNELS))
    for module in model.modules():
        if isinstance(module, (Accelerated, Conv2d)):
            module.kernels = KERNELS if enable else None
    return enable and bool(layers)


def are_faster(device_type: str) -> bool:
    """Return whether the kernels were measured to be faster than the eager form: on CPUs with AVX2 or AVX-512, in any precision.

    In bfloat16 on a CPU without instructions for it, the eager form of a depth-wise convolution is 25 to 80 times slower. On ARM
    they were not measured. On a GPU `choice` measures.
    """
    return device_type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def is_available(device_type: str) -> bool:
    """Return whether `load` succeeds. If it fails for a reason that can be mended, log a warning once."""
    known = device_type in _unavailable
    try:
        load(device_type)
    except KernelsUnavailableError as error:
        if not known and not isinstance(error, UnsupportedDeviceError) and local_rank() == 0:
            logger.warning("%s. The eager form runs instead, slower.", error)
        return False
    return True


def supports(x: Tensor, channels: int | None = None) -> bool:
    """Return whether loaded kernels run on a tensor.

    They do not in an exported or traced graph (as FLOPs are counted), nor, on a CPU, in another precision than float32 and
    bfloat16 (of the tokens, or of autocast) or for a number of channels that is no multiple of 16.

    Args:
        x: tokens (B, C, H, W).
        channels: the number of channels that the kernel works on; default C.
    """
    device_type = x.device.type
    if device_type not in _loaded or not x.numel() or is_exporting() or torch.jit.is_tracing():
        return False
    if not supports_dtype(device_type, x.dtype) or not supports_dtype(device_type, _compute_dtype(x)):
        return False
    return device_type != "cpu" or (channels or x.shape[1]) % 16 == 0


def supports_dtype(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether the kernels of a device type run in a precision: float32 and bfloat16, and float16 on a GPU.

    Args:
        device_type: ``cpu`` or ``cuda``.
        dtype: of the tokens, or of autocast.
    """
    return dtype in (torch.float32, torch.bfloat16) or (device_type != "cpu" and dtype == torch.float16)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return what a convolution of ``x`` computes in: the dtype of autocast, or its own."""
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return x.dtype


class _CustomKernels:
    """The interface `accelerated.Kernels`, implemented by the operators ``stvit::...``.

    Autocast does not know the operators. So tokens are converted here where the eager form would convert them, and a result has
    the dtype that it has there: x + dw(x) that of x, everything else that of autocast. Weights stay in float32, as do their
    gradients.
    """

    def supports(self, x: Tensor, channels: int | None = None) -> bool:
        return supports(x, channels)

    def supports_self_attention(self, x: Tensor, head_dim: int) -> bool:
        return x.device.type == "cpu" and supports(x, head_dim)  # on a GPU, PyTorch's is fused already

    def sample(self, x: Tensor, grid_size: tuple[int, int], num_iters: int) -> tuple[Tensor, Tensor]:
        return operators.sample(x, grid_size, num_iters)

    def upsample(self, association: Tensor, super_tokens: Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return operators.ops.upsample(association, super_tokens, *grid_size, *size)

    def upsample_add(self, association: Tensor, super_tokens: Tensor, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        if x.device.type != "cpu":
            return x + operators.ops.upsample(association, super_tokens, *grid_size, *x.shape[2:])
        return operators.ops.upsample_add(association, super_tokens, x, *grid_size)

    def self_attention(self, qkv: Tensor, num_heads: int) -> Tensor:
        return operators.ops.self_attention(qkv.to(_compute_dtype(qkv)), num_heads)[0]

    def conv_pos_enc(self, x: Tensor, conv: nn.Conv2d, residual: bool) -> Tensor:
        x = x if residual else x.to(_compute_dtype(x))
        return operators.ops.conv_pos_enc(x, conv.weight, conv.bias, residual)

    def conv_pos_enc_layer_norm(self, x: Tensor, conv: nn.Conv2d, residual: bool, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        x = x if residual else x.to(_compute_dtype(x))
        if x.device.type != "cpu":
            y = operators.ops.conv_pos_enc(x, conv.weight, conv.bias, residual)
            return y, norm(y)
        y, normalized, *_ = operators.ops.conv_pos_enc_layer_norm(
            x, conv.weight, conv.bias, residual, norm.weight, norm.bias, norm.eps
        )
        return y, normalized

    def gelu_conv_pos_enc(self, u: Tensor, shift: Tensor, conv: nn.Conv2d, residual: bool) -> Tensor:
        return operators.ops.gelu_conv_pos_enc(u.to(_compute_dtype(u)), shift, conv.weight, conv.bias, residual)

    def supports_training(self, x: Tensor, conv: nn.Conv2d) -> bool:
        if not (torch.is_grad_enabled() and conv.weight.requires_grad and x.device.type == "cpu"):
            return False
        return conv.padding_mode == "zeros" and supports(x, 16)

    def conv2d(self, x: Tensor, conv: nn.Conv2d, with_bias: bool = True) -> Tensor:
        bias = conv.bias if with_bias else None
        return convolution.conv2d(x, conv.weight, bias, conv.stride[0], int(conv.padding[0]))

    def __reduce__(self) -> str:
        return "KERNELS"  # one object, also in copies of a model: equal blocks share their compiled code


KERNELS = _CustomKernels()
