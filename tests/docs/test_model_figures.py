"""The figures of docs/model.md: drawn by their script, and its formula counts what the model computes."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
import torch
from helpers.scripts import load_script
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stvit_cli.models.super_token import SuperTokenAttention

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("docs/examples/model_figures.py")


def parts(svg: str) -> tuple[list[str], list[float]]:
    """Return what is no number and the numbers, without maps: other processors round their pixels differently.

    Another version of matplotlib writes other paths: of that the words alone.
    """
    if re.search(r"Matplotlib v[\d.]+", svg)[0] != f"Matplotlib v{matplotlib.__version__}":  # type: ignore[index]
        return re.findall(r">([^<>]+)</text>", svg), []
    svg = re.sub(r'"data:image/png;base64,[^"]*" id="\w+"', "", svg)
    return re.split(r"\d+\.\d+", svg), [float(number) for number in re.findall(r"\d+\.\d+", svg)]


def test_the_script_draws_the_figures_of_the_page(script: ModuleType, tmp_path: Path) -> None:
    drawn = {path.name: path.read_text(encoding="utf-8") for path in script.main(tmp_path)}
    page = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    committed = sorted((ROOT / "docs" / "images" / "model").glob("*.svg"))
    assert sorted(drawn) == [path.name for path in committed]
    assert [name for name in drawn if f"(images/model/{name})" not in page] == []
    for path in committed:
        (texts, numbers), (drawn_texts, drawn_numbers) = parts(path.read_text(encoding="utf-8")), parts(drawn[path.name])
        assert drawn_texts == texts, path
        assert drawn_numbers == pytest.approx(numbers, abs=0.5), path
    assert max(path.stat().st_size for path in committed) < 250_000
    assert "stage1.block1: outlines" in drawn["associations.svg"]


@pytest.mark.parametrize("cell", [1, 4])
def test_the_plot_of_the_cost_counts_what_is_computed(script: ModuleType, cell: int) -> None:
    channels, side = 8, 16
    # The counter does not know the fused attention of CPUs; the plain one is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        SuperTokenAttention(channels, 1, cell)(torch.zeros(1, channels, side, side))
    projections = 4 * channels**2 * (side // cell) ** 2
    assert script.multiply_adds(side**2, channels, cell) == counter.get_total_flops() / 2 - projections
