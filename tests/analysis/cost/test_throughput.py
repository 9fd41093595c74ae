"""The throughput report, not the speed itself."""

import json
import time
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers.reference_model import to_reference

from stvit_cli.analysis.cost.throughput import Candidate, Setting, prepare, time_in_turn
from stvit_cli.cli import main
from stvit_cli.cli.profile import _print_speed
from stvit_cli.models import create_model, kernels
from stvit_cli.models.layers import ConvFFN
from stvit_cli.models.super_token import SuperTokenAttention


@pytest.mark.parametrize("mode", [[], ["--train"]])
def test_two_models_in_turn(mode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "speed.json"
    command = [
        "profile",
        "stvit-nano",
        "--image-size",
        "64",
        "--throughput",
        "--against",
        "resnet18",
        "--batch-size",
        "2",
        "--rounds",
        "2",
    ]
    assert main([*command, *mode, "--json", str(report)]) == 0
    rows = json.loads(report.read_text())
    assert [row["model"] for row in rows] == ["stvit-nano", "resnet18"]
    for row in rows:
        speed = row["throughput"]
        slowest, fastest = speed["spread"]
        assert 0 < slowest <= speed["images_per_second"] <= fastest
        assert speed["ms_per_image"] == pytest.approx(1e3 / speed["images_per_second"])
        assert 0 < speed["share_of_peak"] < 1.5
        assert speed["mode"] == ("train" if mode else "inference")
        assert speed["served_by"].startswith("PyTorch") or speed["kernels"]
        assert speed["machine"]["threads"] == torch.get_num_threads()
        assert speed["peak_memory_bytes"] > 2 * 3 * 64 * 64 * 4  # more than the images
    out = capsys.readouterr().out
    assert "share of peak" in out
    assert "ratio to resnet18" in out


@pytest.mark.skipif(not kernels.is_available("cpu"), reason="no C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_are_reported_where_they_ran(
    precision: Literal["fp32", "bf16"], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stvit_cli.analysis.cost.throughput.peak_flops", lambda setting: 1e12)  # takes seconds
    setting = Setting((8, 8), in_chans=16, batch_size=1, precision=precision, rounds=1, kernels=True)
    speed = time_in_turn([prepare("ffn", ConvFFN(16), setting)], setting)["ffn"]
    assert speed["kernels"] is True
    assert (speed["served_by"], speed["precision"]) == ("custom kernels", precision)
    _print_speed([{"model": "ffn", "throughput": speed}])
    assert "custom kernels" in capsys.readouterr().out


@pytest.mark.skipif(not kernels.is_available("cpu"), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("model", "enable", "said"),
    [
        (ConvFFN(16), False, "PyTorch: custom kernels are turned off"),
        (ConvFFN(16), "auto", "PyTorch: custom kernels are not faster on this CPU"),
        (ConvFFN(6, ratio=1), True, "PyTorch: custom kernels do not take these sizes"),
        (torch.nn.Conv2d(16, 16, 1), "auto", "PyTorch"),
    ],
)
def test_why_the_kernels_did_not_run_is_said(
    model: torch.nn.Module, enable: bool | Literal["auto"], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "are_faster", lambda *_: False)
    chans = 6 if "sizes" in said else 16
    candidate = prepare("", model, Setting((8, 8), in_chans=chans, batch_size=1, kernels=enable))
    assert (candidate.served_by, candidate.kernels) == (said, False)


def test_candidates_take_turns() -> None:
    turns: list[str] = []

    def step(name: str) -> None:
        time.sleep(0.01)
        turns.append(name)

    time_in_turn([Candidate(name, partial(step, name), 1) for name in "ab"], Setting(rounds=3))
    rounds = [name for name, _ in groupby(turns)]
    assert rounds == list("abababab")  # once for the memory, then three rounds, each of as many steps as fill a turn
    assert len(turns) > len(rounds)


def test_memory_of_attention_is_linear_in_the_tokens() -> None:
    def peak(side: int) -> int:
        attention, x = SuperTokenAttention(32, 2).eval(), torch.randn(1, 32, side, side)
        with torch.inference_mode():
            results = time_in_turn([Candidate("", partial(attention, x), 1)], Setting(rounds=1))
        return results[""]["peak_memory_bytes"]

    assert peak(64) / peak(32) < 4.5  # 4096 tokens and 1024; all pairs at once would be 16 times as much


def test_reference_implementation_computes_the_same() -> None:
    model = create_model("stvit-nano").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(to_reference(model)(images), expected)


def test_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "stvit-nano", "--throughput", "--against", "swin_tt"]) == 2
    assert "Did you mean 'swin_t'?" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--train"], ["--compile"], ["--kernels"], ["--no-kernels"], ["--precision", "bf16"]])
def test_timing_options_without_throughput_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "stvit-nano", *flags]) == 2
    assert capsys.readouterr().err == f"stvit: {' '.join(flags)} is about the timed step; add --throughput to time the models.\n"
