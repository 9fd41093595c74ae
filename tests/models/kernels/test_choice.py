"""The choice between custom kernels and the eager form on a GPU, with a made-up clock: on a CPU, whose kernels are not needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stvit_cli.models import create_model, kernels
from stvit_cli.models.kernels import choice
from stvit_cli.models.kernels.choice import Setting, attach, choose, kind_of, kinds_with_kernels, served
from stvit_cli.models.layers import ConvFFN, ConvPosEnc
from stvit_cli.models.super_token import SuperTokenAttention

CPU = Setting(torch.device("cpu"))


class FakeKernels:
    """Runs no kernel; what it serves is what a clock can tell from the eager form."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls = 0

    def supports(self, x: Tensor, channels: int | None = None) -> bool:
        self.calls += 1
        if self.failing == "all" or (self.failing and channels is not None):
            raise RuntimeError("error: no such instruction\n  at line 3")
        return False

    def supports_self_attention(self, x: Tensor, head_dim: int) -> bool:
        return False


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "NUMBERS", 1)
    monkeypatch.setattr(choice, "_triton_version", lambda: "3")


def clock(fast: FakeKernels, *, gain: Callable[[nn.Module], float] = lambda layer: 2.0) -> tuple[choice.Timer, list[int]]:
    """Return a timer that finds out by the calls of ``fast`` whether a step uses it, and how often it was asked."""
    asked: list[int] = []

    def timer(step: choice.Step) -> float:
        asked.append(1)
        before = fast.calls
        step()
        return 6.0 if fast.calls == before else 6.0 / gain(nn.Identity())

    return timer, asked


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(ConvPosEnc(4), ConvPosEnc(4), ConvFFN(4), SuperTokenAttention(4, 2, 2), SuperTokenAttention(4, 2))


KINDS = ("ConvFFN 4, 16 hidden", "ConvPosEnc 4", "SuperTokenAttention 4, 2 heads, grid 2 x 2, 1 iterations")


@pytest.mark.parametrize(("gain", "chosen"), [(2.0, KINDS), (1.02, ()), (0.5, ())])
def test_what_is_faster_is_chosen_and_measured_once(model: nn.Module, gain: float, chosen: tuple[str, ...]) -> None:
    fast = FakeKernels()
    timer, asked = clock(fast, gain=lambda layer: gain)
    state = torch.get_rng_state()
    assert choose(model, CPU, fast, timer) == chosen
    assert torch.equal(state, torch.get_rng_state())
    assert kinds_with_kernels(model) == ()  # the model itself is left alone
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(asked) == 3 * 2 * choice.ROUNDS  # two layers of a kind are one
    assert choose(model, CPU, fast, timer) == chosen
    assert len(asked) == 3 * 2 * choice.ROUNDS
    assert attach(model, chosen, fast) == chosen == kinds_with_kernels(model)


def test_another_precision_gpu_version_or_compilation_is_measured_again(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = FakeKernels()
    timer, asked = clock(fast)
    device, each = torch.device("cpu"), 3 * 2 * choice.ROUNDS
    choose(model, CPU, fast, timer)
    choose(model, Setting(device, torch.bfloat16), fast, timer)
    assert len(asked) == 2 * each
    monkeypatch.setattr(choice, "_step", lambda layer, tokens, setting: lambda: layer(tokens))  # without the compiler
    choose(model, Setting(device, compiled=True), fast, timer)
    assert len(asked) == 3 * each
    for name, value in (
        ("_triton_version", lambda: "4"),
        ("_sources", lambda: "x"),
        ("describe_gpu", lambda device: {"gpu": "A"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(choice, name, value)
            before = len(asked)
            choose(model, CPU, fast, timer)
            assert len(asked) == before + each, name


def test_inference_is_measured_by_the_forward_pass_and_kept_beside(model: nn.Module, tmp_path: Path) -> None:
    """In the same file, whose older form has the training alone."""
    fast, gradients, modes = FakeKernels(), [], []
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inference = Setting(torch.device("cpu"), train=False)

    def timer(step: choice.Step) -> float:
        before = fast.calls
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: gradients.append(1) or kept, lambda kept: kept):
            step()
        modes.append(bool(gradients))
        gradients.clear()
        uses_kernels = fast.calls > before
        return 6.0 if not uses_kernels else 12.0 if modes[-1] else 3.0  # slower to train, faster without a backward pass

    assert choose(model, CPU, fast, timer) == ()
    assert set(modes) == {True}
    (path,) = (tmp_path / "stvit" / "kernels").iterdir()
    older = {key: value for key, value in json.loads(path.read_text()).items() if key in ("identity", "milliseconds")}
    path.write_text(json.dumps(older))
    modes.clear()
    assert choose(model, inference, fast, timer) == KINDS
    assert set(modes) == {False}
    asked = len(modes)
    assert choose(model, CPU, fast, timer) == ()
    assert choose(model, inference, fast, timer) == KINDS
    assert len(modes) == asked
    content = json.loads(path.read_text())
    assert content["milliseconds"] == older["milliseconds"]
    assert content["inference milliseconds"].keys() == set(KINDS)


def test_what_another_process_has_stored_meanwhile_counts(model: nn.Module, tmp_path: Path) -> None:
    fast = FakeKernels()
    timer, _ = clock(fast)

    def late(step: choice.Step) -> float:
        if not (tmp_path / "stvit").exists():
            choose(model, CPU, FakeKernels(), lambda step: 1.0)  # for it, none is faster
        return timer(step)

    assert choose(model, CPU, fast, late) == ()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"identity": {}, "milliseconds": {}}', "one kind", "text for a number"],
)
def test_a_damaged_cache_is_measured_again_and_mended(model: nn.Module, tmp_path: Path, damage: bytes | str) -> None:
    fast = FakeKernels()
    timer, asked = clock(fast)
    choose(model, CPU, fast, timer)
    (path,) = (tmp_path / "stvit" / "kernels").iterdir()
    content = json.loads(path.read_text())
    if damage == "one kind":
        del content["milliseconds"][KINDS[1]]
    elif damage == "text for a number":
        content["milliseconds"][KINDS[1]]["eager"] = "6"
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps(content).encode())
    before = len(asked)
    assert choose(model, CPU, fast, timer) == KINDS
    assert len(asked) - before == 2 * choice.ROUNDS * (1 if isinstance(damage, str) else 3)
    assert choose(model, CPU, fast, timer) == KINDS
    assert json.loads(path.read_text())["milliseconds"].keys() == set(KINDS)


def test_a_cache_that_cannot_be_written_costs_a_line(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stvit").write_text("a file where the folder should be")
    fast = FakeKernels()
    timer, _ = clock(fast)
    with caplog.at_level(logging.INFO):
        assert choose(model, CPU, fast, timer) == KINDS
    assert "measured again next time" in caplog.text
    monkeypatch.setattr(choice, "cache_dir", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    assert choose(model, CPU, fast, timer) == KINDS


@pytest.mark.parametrize("failing", ["one", "all"])
def test_a_kernel_that_cannot_be_compiled_means_the_eager_form_with_one_warning(
    model: nn.Module, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = FakeKernels(failing)
    timer, _ = clock(broken)
    expected = KINDS[1:] if failing == "one" else ()
    with caplog.at_level(logging.WARNING):
        assert choose(model, CPU, broken, timer) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{KINDS[0] if failing == 'one' else KINDS[1]} cannot run by the custom kernels (error: no such instruction). "
        "The eager form runs instead."
    ]
    mended = FakeKernels()  # a failure is not kept: whoever installs the compiler gets the kernels
    assert choose(model, CPU, mended, clock(mended)[0]) == KINDS


def test_every_layer_of_every_model_has_a_kind() -> None:
    with torch.device("meta"):
        models = [create_model(name) for name in ("stvit-s", "stvit-l", "stvit-nano")]
    for each in models:
        layers = served(each)
        assert {type(layer) for layer in layers} == {ConvPosEnc, ConvFFN, SuperTokenAttention}
        assert len({kind_of(layer) for layer in layers}) == 4 + 4 + 2  # by stage; two stages have ordinary attention
    assert served(nn.Linear(1, 1)) == []
    assert choose(nn.Linear(1, 1), CPU, FakeKernels(), lambda step: 0.0) == ()


def test_a_list_of_kinds_attaches_the_kernels_to_these_layers_alone(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    monkeypatch.setattr(kernels, "is_available", lambda device_type: True)
    assert kernels.use_kernels(model, "cuda", [KINDS[0], "of another model"])
    assert kinds_with_kernels(model) == (KINDS[0],)
    assert [part.kernels is not None for part in model] == [False, False, True, False, False]
    assert not kernels.use_kernels(model, "cuda", ())
    monkeypatch.setattr(kernels, "is_available", lambda device_type: False)
    assert not kernels.use_kernels(model, "cuda", KINDS)


def test_auto_on_a_gpu_is_what_was_measured(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    asked = []

    def chosen(model: nn.Module, setting: Setting, used: object) -> tuple[str, ...]:
        asked.append(setting)
        return KINDS[:1]

    monkeypatch.setattr(kernels, "is_available", lambda device_type: True)
    monkeypatch.setattr(choice, "choose", chosen)
    assert not kernels.use_kernels(model, "cuda", "auto")  # no GPU, nothing to measure
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert kernels.use_kernels(model, "cuda", "auto", dtype=torch.bfloat16, compiled=True)
    assert kernels.use_kernels(model, "cuda", "auto", train=False)
    assert kinds_with_kernels(model) == KINDS[:1]
    gpu = torch.device("cuda", 1)
    assert asked == [Setting(gpu, torch.bfloat16, True), Setting(gpu, train=False)]
