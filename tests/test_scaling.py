"""docs/scaling.md has the tables that its formulas give, and the formulas are those of the models and of DDP."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.scripts import load_script

ROOT = Path(__file__).parents[1]
scaling = load_script("tests/benchmarks/scaling.py")


def test_the_tables_are_those_of_the_formulas() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    for table in (scaling.memory_table(), scaling.scaling_table()):
        assert "\n".join(table) in page


def test_the_head_of_21_841_classes_is_that_of_the_model() -> None:
    import torch

    from stvit_cli.models import create_model

    with torch.device("meta"):
        model = create_model("stvit-s", num_classes=21_841)
    assert sum(p.numel() for p in model.parameters()) == scaling.MODELS[1].params


def test_a_ring_sends_all_but_a_share_twice_and_the_rest_is_hidden_by_two_thirds_of_the_computing() -> None:
    model = scaling.Model("any", 1_000_000_000, 0.0)
    assert scaling.sent(model, 8) == pytest.approx(2 * 7 / 8 * 4e9)
    large = scaling.MODELS[-1]
    hidden = scaling.exposed(large, 64, 1e6)
    assert hidden == pytest.approx(scaling.reduction(large, 64) * scaling.BUCKET / (4 * large.params))
    assert scaling.efficiency(large, 512, 4096) < scaling.efficiency(large, 64, 4096) < scaling.efficiency(large, 8, 4096) < 1
