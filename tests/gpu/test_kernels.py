"""Each Triton kernel against the eager form: on a GPU, and by Triton's interpreter in `test_triton`, which runs this file too.

By hand without a GPU: TRITON_INTERPRET=1 pytest -m gpu tests/gpu/test_kernels.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers.cuda_graphs import captured
from torch import Tensor, nn

from stvit_cli.engine.determinism import fixed_order, strict
from stvit_cli.models import create_model, kernels, super_token
from stvit_cli.models.kernels import choice, operators
from stvit_cli.models.layers import ConvFFN, ConvPosEnc
from stvit_cli.models.stvit import STViT, Variant
from stvit_cli.models.super_token import SuperTokenAttention

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


pytestmark = pytest.mark.gpu
ops = operators.ops
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if INTERPRETED:
    from stvit_cli.models.kernels.triton import library as gpu  # noqa: F401

    kernels._loaded.add("cpu")
else:
    kernels.load("cuda")


class AsOnGpu(type(kernels.KERNELS)):  # type: ignore[misc]
    """The kernels as on a GPU, where attention and sums with a residual are PyTorch's."""

    def supports_self_attention(self, x: Tensor, head_dim: int) -> bool:
        return False

    def upsample_add(self, association: Tensor, super_tokens: Tensor, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        return x + ops.upsample(association, super_tokens, *grid_size, *x.shape[2:])

    def conv_pos_enc_layer_norm(self, x: Tensor, conv: nn.Conv2d, residual: bool, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        y = self.conv_pos_enc(x, conv, residual)
        return y, norm(y)


KERNELS = AsOnGpu() if INTERPRETED else kernels.KERNELS
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "contiguous": lambda x: x.contiguous(),
    "every other channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other row of a larger image": lambda x: F.pad(x.repeat_interleave(2, 2), (3, 2))[:, :, ::2, 3:-2],
    "one image for all": lambda x: x[:1].expand_as(x),
}
CELLS = [(64, (8, 8), (16, 17), 1), (20, (2, 5), (7, 11), 2), (3, (16, 16), (17, 5), 1), (96, (4, 4), (5, 3), 1)]
SIZES = [(64, (9, 8)), (70, (3, 15)), (32, (1, 1))]
if not INTERPRETED:
    CELLS += [(128, (4, 4), (28, 28), 1), (320, (2, 2), (50, 40), 3), (448, (1, 8), (33, 70), 1)]
    SIZES += [(256, (2, 15)), (1280, (14, 14)), (448, (57, 113)), (96, (200, 7)), (2560, (7, 7))]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products in float32, not in TF32."""
    torch.manual_seed(0)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Compare results and gradients with those of the eager form in float64, of the same rounded inputs."""
    found = ours(*inputs)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    expected = theirs(*exact)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn_like(expected).to(dtype)
    gradients = torch.autograd.grad(found, inputs, upstream)
    exact_gradients = torch.autograd.grad(expected, exact, upstream.double())
    for mine, other in zip((found, *gradients), (expected, *exact_gradients), strict=True):
        bound = TOLERANCE[dtype] * max(1.0, other.abs().max().item())
        assert mine.isfinite().all()
        assert (mine.double() - other).abs().max().item() <= bound
    for mine, value in zip(gradients, inputs, strict=True):
        assert mine.dtype == value.dtype
        assert mine.shape == value.shape


def skip_in_the_interpreter(dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies the bits of bfloat16 as whole numbers")


def tokens(channels: int, size: tuple[int, int], dtype: torch.dtype, images: int = 2, memory: str = "channels-last") -> Tensor:
    x = torch.randn(images, channels, *size, device=DEVICE).to(dtype)
    return FORMATS[memory](x).detach().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "grid", "size", "num_iters"), CELLS)
def test_sampling_and_upsampling(
    channels: int, grid: tuple[int, int], size: tuple[int, int], num_iters: int, dtype: torch.dtype
) -> None:
    skip_in_the_interpreter(dtype)

    def ours(x: Tensor) -> Tensor:
        super_tokens, association = operators.sample(x, grid, num_iters)
        assert super_tokens.dtype == association.dtype == dtype
        return ops.upsample(association, super_tokens, *grid, *size)

    def theirs(x: Tensor) -> Tensor:
        super_tokens, association = super_token.sample(super_token.to_cells(x, grid), num_iters)
        return super_token.from_cells(super_token.upsample(association, super_tokens), grid, size)

    assert_same(ours, theirs, [tokens(channels, size, dtype)], dtype)


@pytest.mark.parametrize("parameters", ["float32", "as the tokens"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_position_encoding(channels: int, size: tuple[int, int], dtype: torch.dtype, residual: bool, parameters: str) -> None:
    if INTERPRETED and residual != (parameters == "float32"):
        pytest.skip("half of the combinations take long enough")
    kind = torch.float32 if parameters == "float32" else dtype
    weight = torch.randn(channels, 1, 3, 3, device=DEVICE).to(kind).requires_grad_()
    shift, bias = (torch.randn(channels, device=DEVICE).to(kind).requires_grad_() for _ in range(2))
    x = tokens(channels, size, dtype, images=1 if INTERPRETED else 3)

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(x, weight, bias, padding=1, groups=channels)
        return x + y if residual else y

    def eager_gelu(u: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return eager(F.gelu(u + shift[:, None, None]), weight, bias)

    assert_same(lambda *inputs: ops.conv_pos_enc(*inputs, residual), eager, [x, weight, bias], dtype)
    assert_same(lambda *inputs: ops.gelu_conv_pos_enc(*inputs, residual), eager_gelu, [x, shift, weight, bias], dtype)


@pytest.mark.parametrize("memory", FORMATS)
def test_tokens_may_lie_anyhow(memory: str) -> None:
    x, weight, bias = tokens(32, (9, 6), torch.float32, memory=memory), torch.randn(32, 1, 3, 3, device=DEVICE), torch.zeros(32)
    dense, bias = x.detach().clone(memory_format=torch.channels_last), bias.to(DEVICE)
    for use in (
        lambda x: ops.conv_pos_enc(x, weight, bias, True),
        lambda x: ops.gelu_conv_pos_enc(x, bias, weight, bias, True),
        lambda x: ops.associate_and_aggregate(x, torch.ones(2, 3, 2, 32, device=DEVICE), 3, 3)[0],
        lambda x: ops.aggregate(torch.ones(2, 3, 2, 9, 9, device=DEVICE), x, 3, 3),
        lambda x: ops.conv_pos_enc_backward(x, x, weight, True)[0],
    ):
        assert torch.equal(use(x), use(dense))


def test_no_images_are_no_launch() -> None:
    x, weight, bias = torch.empty(0, 32, 8, 6, device=DEVICE), torch.randn(32, 1, 3, 3, device=DEVICE), torch.zeros(32)
    bias, none = bias.to(DEVICE), torch.empty(0, 2, 2, 32, device=DEVICE)
    assert ops.conv_pos_enc(x, weight, bias, True).shape == x.shape
    of_x, of_weight, of_bias = ops.conv_pos_enc_backward(x, x, weight, True)
    assert of_x.shape == x.shape
    assert not of_weight.any()
    assert not of_bias.any()
    super_tokens, association, weights = ops.associate_and_aggregate(x, none, 4, 3)
    assert (super_tokens.shape, association.shape, weights.shape) == (none.shape, (0, 2, 2, 9, 12), (0, 2, 2, 1))
    assert ops.aggregate(association, x, 4, 3).shape == none.shape
    assert ops.upsample(association, none, 4, 3, 8, 6).shape == x.shape


def layers() -> nn.Sequential:
    return nn.Sequential(ConvPosEnc(32), SuperTokenAttention(32, 1, 4), ConvFFN(32, 2)).to(DEVICE)


def with_kernels(model: nn.Module, enable: bool = True) -> nn.Module:
    kinds = [choice.kind_of(layer) for layer in choice.served(model)]
    choice.attach(model, kinds if enable else (), KERNELS)
    return model


def results(model: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    y = function(x)
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_under_autocast_and_cast_as_a_whole(dtype: torch.dtype) -> None:
    skip_in_the_interpreter(dtype)
    model, x = layers(), tokens(32, (9, 10), torch.float32)
    expected = results(model, model, x)
    with_kernels(model)
    with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
        found = results(model, model, x)
    assert found[0].dtype == dtype
    cast = model.to(dtype)
    found_cast = results(cast, cast, x.detach().to(dtype).requires_grad_())
    for mine, whole, other in zip(found, found_cast, expected, strict=True):
        bound = 10 * TOLERANCE[dtype] * max(1.0, other.abs().max().item())
        assert (mine.float() - other).abs().max() <= bound
        assert (whole.float() - other).abs().max() <= bound


@pytest.mark.filterwarnings("ignore")  # what the compiler says of its own
def test_they_are_in_the_compiled_graph_without_a_break() -> None:
    model, x = layers(), tokens(32, (8, 12), torch.float32)
    expected = results(model, model, x)
    with_kernels(model)
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        names.extend(str(node.target) for node in graph.graph.nodes)
        if INTERPRETED:
            return graph.forward
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs)

    found = results(model, torch.compile(model, backend=backend, fullgraph=True, dynamic=False), x)
    assert {"stvit.conv_pos_enc", "stvit.associate_and_aggregate", "stvit.upsample", "stvit.gelu_conv_pos_enc"} <= {
        name.removesuffix(".default") for name in names
    }
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * max(1.0, other.abs().max().item()))
    torch.compiler.reset()


def test_a_training_step_is_captured_in_a_cuda_graph_and_replayed() -> None:
    model, x = with_kernels(layers()), tokens(32, (8, 9), torch.float32)
    found: list[Tensor] = []

    def step() -> None:
        new = results(model, model, x)
        if not found:
            found.extend(tensor.detach().clone() for tensor in new)
        for kept, tensor in zip(found, new, strict=True):
            kept.copy_(tensor.detach())

    replay = captured(step, DEVICE)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        replay()
        for mine, other in zip(found, results(model, model, x), strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-4, atol=1e-4)


def test_the_same_bits_every_time() -> None:
    model, x = with_kernels(layers()), tokens(32, (17, 16), torch.float32, images=3)
    with fixed_order(DEVICE), strict():  # as in training: PyTorch's convolutions between them, too
        first, again = results(model, model, x), results(model, model, x)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("train", [False, True])
def test_a_whole_model_is_the_same_function(train: bool) -> None:
    tiny = Variant((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 1, 1), None, grid_sizes=(2, 2, 1, 1), proj_dim=8)
    model = (STViT(tiny, num_classes=3) if INTERPRETED else create_model("stvit-s", num_classes=3)).to(DEVICE).train(train)
    images = torch.randn(2 if INTERPRETED else 4, 3, *((32, 40) if INTERPRETED else (224, 200)), device=DEVICE)
    found = []
    for enable in (False, True):
        with_kernels(model, enable)
        logits = model(images)
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters())) if train else ()
        found.append([logits, *gradients])
    for eager, ours in zip(*found, strict=True):
        assert (ours - eager).norm() <= 1e-3 * eager.norm() + 1e-5


def test_offsets_beyond_32_bits() -> None:
    """On a GPU 2.4 billion numbers; the last image must be as if it was alone."""
    images, side = (2, 4) if INTERPRETED else (16, 1536)
    try:
        x = torch.empty(images, 64, side, side, device=DEVICE, dtype=torch.float16, memory_format=torch.channels_last)
        weight, bias = torch.randn(64, 1, 3, 3, device=DEVICE), torch.zeros(64, device=DEVICE)
        for image in x:
            image.normal_()
        y = ops.gelu_conv_pos_enc(x, bias, weight, bias, True)
        assert torch.equal(y[-1:], ops.gelu_conv_pos_enc(x[-1:], bias, weight, bias, True))
        del y
        gradient = ops.gelu_conv_pos_enc_backward(x, x, bias, weight, True)[0]
        assert torch.equal(gradient[-1:], ops.gelu_conv_pos_enc_backward(x[-1:], x[-1:], bias, weight, True)[0])
        del gradient
        super_tokens, association = operators.sample(x, (4, 4))
        alone = operators.sample(x[-1:], (4, 4))
        assert torch.equal(association[-1:], alone[1])
        y = ops.upsample(association, super_tokens, 4, 4, side, side)
        assert torch.equal(y[-1:], ops.upsample(alone[1], alone[0], 4, 4, side, side))
    except torch.OutOfMemoryError:
        pytest.skip("needs 40 GB of the GPU's memory")


@pytest.mark.parametrize("channels", [16, 32, 64, 70, 96, 128, 192, 320, 448, 512, 1280])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 14), (56, 56), (13, 200)])
def test_strips_cover_every_token_once(channels: int, size: tuple[int, int]) -> None:
    from stvit_cli.models.kernels.triton import convolution

    for images in (1, 128):
        (programs, blocks), (strips, rows), sides = convolution._plan(torch.empty(images, *size, channels, device="meta"))
        columns = convolution.COLUMNS.value
        assert strips == images * -(-size[0] // rows) * -(-size[1] // columns)
        assert 0 <= programs * sides["GROUPS"] - strips < sides["GROUPS"]
        assert 0 <= blocks * sides["CHANNELS"] - channels < sides["CHANNELS"]
        assert sides["GROUPS"] * sides["CHANNELS"] == convolution.TILE
        assert rows <= max(convolution.ROWS)


def test_the_choice_is_measured_and_kept(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = layers()
    if INTERPRETED:
        monkeypatch.setattr(choice, "NUMBERS", 1)
        monkeypatch.setattr(choice, "_tokens", lambda layer, setting: tokens(32, (4, 4), torch.float32, images=1))
        monkeypatch.setattr(choice, "gpu_time", lambda step: step() or 1.0)
    setting = choice.Setting(DEVICE, torch.float32 if INTERPRETED else torch.bfloat16)
    chosen = choice.choose(model, setting, KERNELS)
    monkeypatch.setattr(choice, "gpu_time", lambda step: pytest.fail("measured twice"))
    assert choice.choose(model, setting, KERNELS) == chosen
    if not INTERPRETED:
        assert kernels.use_kernels(model, "cuda", "auto", dtype=torch.bfloat16) is bool(chosen)
