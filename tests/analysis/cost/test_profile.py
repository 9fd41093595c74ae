"""Parameters and multiply-adds match those of the authors' code, and no operator is left uncounted."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.analysis.cost.flops import count_flops
from stvit_cli.cli import main
from stvit_cli.utils import model_catalog

# fvcore on the authors' published code, in G.
AUTHORS = {
    224: {"stvit-s": 4.367, "stvit-b": 9.872, "stvit-l": 15.597},
    384: {"stvit-s": 14.156, "stvit-b": 31.489, "stvit-l": 49.748},
}
TRAINABLE = {"stvit-s": 25_495_624, "stvit-b": 51_691_288, "stvit-l": 94_971_096}


@pytest.mark.parametrize("size", [224, pytest.param(384, marks=pytest.mark.slow)])
def test_table_one(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "profile.json"
    assert main(["profile", *TRAINABLE, "--image-size", str(size), "--json", str(report)]) == 0
    rows = json.loads(report.read_text())
    assert [row["model"] for row in rows] == list(TRAINABLE)
    for row in rows:
        assert row["params"] == TRAINABLE[row["model"]]
        if size == 224:
            listed = model_catalog.entry(row["model"])
            assert listed is not None
            assert (listed.params, listed.flops) == (row["params"], row["flops"])
        assert row["flops"] == pytest.approx(AUTHORS[size][row["model"]] * 1e9, rel=0.005)
        assert row["flops"] == sum(row["flops_by_operator"].values()) == row["flops_by_module"][""]
        assert row["uncounted"] == {}
        assert row["paper"]["params"] == pytest.approx(row["params"], rel=0.03)
    out = capsys.readouterr().out
    assert "4.4 G" in out if size == 224 else "32.5 G" in out


def test_default_profiles_every_model_and_prints_the_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--image-size", "64x96", "--by-module", "--depth", "2"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("stvit-nano", "stvit-s", "stvit-b", "stvit-l", "stages", "stem"))


class Attending(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(x, x, x)
        return (x @ x.transpose(-1, -2)).softmax(-1) @ x


def test_fused_attention_counts_as_its_two_products() -> None:
    fused, eager = (count_flops(Attending(fused), (10, 6)) for fused in (True, False))
    assert fused.total == eager.total == 3 * 2 * 10 * 10 * 6
    assert fused.uncounted == {}


class Unknown(Attending):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, -1)


def test_uncounted_operator_is_reported() -> None:
    assert count_flops(Unknown(False), (8, 8)).uncounted == {"aten::cumsum": 1}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["stvit-x"], "Did you mean 'stvit-s', 'stvit-b' or 'stvit-l'?"),
        (["--image-size", "224 px"], "expected one number such as 384"),
        (["--image-size", "16"], "at least 32 pixels"),
    ],
)
def test_bad_input_is_refused(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *argv]) == 2
    assert expected in capsys.readouterr().err
