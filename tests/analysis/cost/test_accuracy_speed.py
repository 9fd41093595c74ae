"""The plot of top-1 against images per second: batch norms are folded where that is right, and the page shows its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from benchmarks import accuracy_speed
from torch import Tensor, nn

DOCS = Path(__file__).parents[3] / "docs"


class Tiny(nn.Module):
    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.in_order = in_order

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if self.in_order else self.conv(self.norm(x))


def test_batch_norms_are_folded_only_where_the_model_computes_the_same() -> None:
    for in_order in (True, False):
        model = Tiny(in_order).eval()
        folded = accuracy_speed.fold_batch_norms(model)
        assert isinstance(folded.norm, nn.Identity) is in_order
        images = torch.randn(1, 3, 4, 4)
        torch.testing.assert_close(folded(images), model(images))


def test_every_model_has_a_source_and_the_plot_is_drawn(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = accuracy_speed.published()
    assert all(row["source"] and row["training"] for row in rows)
    for number, row in enumerate(rows):
        row |= {"flops": 4e9, "device": "a CPU", "images_per_second": {"8": 10.0 + number, "1": 9.0}}
    table = accuracy_speed.to_markdown(rows).splitlines()
    assert len(table) == 2 + len(rows)
    assert "| not published |" in next(line for line in table if "mobilenetv4_hybrid_large at 224" in line)
    accuracy_speed.draw(rows, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_the_page_shows_the_table_of_the_plot() -> None:
    table = (DOCS / "images" / "accuracy-speed.md").read_text(encoding="utf-8")
    assert table in (DOCS / "performance.md").read_text(encoding="utf-8")
    rows = json.loads((DOCS / "images" / "accuracy-speed.json").read_text(encoding="utf-8"))
    assert accuracy_speed.to_markdown(rows) == table
    assert {(row["model"], row["top1"]) for row in rows} <= {(row["model"], row["top1"]) for row in accuracy_speed.published()}
