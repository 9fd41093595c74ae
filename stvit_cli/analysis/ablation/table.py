"""Table II: what the paper says of its rows, what we count, what was trained here, and what the rows say against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

from stvit_cli.analysis.cost.flops import count_flops
from stvit_cli.analysis.cost.profile import Paper
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.isotropic import FULL, MINI, ROWS, VARIANTS
from stvit_cli.models.stvit import GridSizes
from stvit_cli.utils.text import did_you_mean

# In the order of the table; accuracies in percent, on ImageNet.
PAPER = {
    "swin-12": Paper(28e6, 4.5e9, 81.3),
    "stvit-12": Paper(30e6, 4.3e9, 82.3),
    "swin-20": Paper(23e6, 4.2e9, 81.4),
    "swin-20-global": Paper(23e6, 4.3e9, 81.7),
    "stvit-20": Paper(24e6, 4.0e9, 82.6),
    "swin-20-norpe": Paper(23e6, 4.2e9, 80.2),
    "stvit-20-norpe": Paper(24e6, 4.0e9, 82.3),
}
LABELS = {
    name: "Swin†" if row.global_stage is not None else "Swin" if row.attention == "swin" else "STViT"
    for name, row in ROWS.items()
}
NUMBERS = dict(enumerate(ROWS, start=1))
PAIRS = ((1, 2), (3, 5), (4, 5), (6, 7))  # a row of Swin, and the row of STViT with its widths, depths and encoding

# How near our counts must come to the paper's rounded figures.
PARAMS_TOLERANCE, FLOPS_TOLERANCE = 0.6e6, 0.1e9


@dataclass(frozen=True)
class Setting:
    """What the rows are counted at: by default what the paper's table is."""

    family: str = FULL
    image_size: int = 224
    num_classes: int = 1000
    in_chans: int = 3
    grid_sizes: GridSizes | None = None

    @property
    def is_papers(self) -> bool:
        return self == Setting()


@dataclass(frozen=True)
class Row:
    """A row of the table: ``flops`` are multiply-adds without the norms', ``scores`` the top-1 of each seed in percent."""

    number: int
    name: str
    model: str
    label: str
    setting: Setting
    params: int
    flops: int
    uncounted: dict[str, int]
    scores: tuple[float, ...] = ()

    @property
    def paper(self) -> Paper:
        return PAPER[self.name]

    @property
    def mean(self) -> float | None:
        return fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation between seeds, where there are several."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    def as_json(self) -> dict[str, Any]:
        variant = VARIANTS[self.model]
        return {
            "row": self.number,
            "model": self.model,
            "dims": list(variant.embed_dims),
            "depths": list(variant.depths),
            "rpe": variant.rpe,
            "params": self.params,
            "flops": self.flops,
            "uncounted": self.uncounted,
            "image_size": self.setting.image_size,
            "num_classes": self.setting.num_classes,
            "paper": self.paper._asdict(),
            "top1": self.mean,
            "top1_std": self.deviation,
            "top1_by_seed": list(self.scores),
        }


def family_of(model: str) -> str:
    """Return what a row's model name begins with: `FULL`, or `MINI` for a quarter of the width.

    Raises:
        UserError: the model is no row of Table II.
    """
    if model not in VARIANTS:
        raise UserError(
            f"model.name: found {model}, expected a row of Table II, such as isotropic-stvit-20 "
            f"(or isotropic-mini-stvit-20).{did_you_mean(model, VARIANTS)}\n"
            "Shipped recipes for them: isotropic300, isotropic-mini."
        )
    return MINI if model.startswith(MINI) else FULL


def build_table(setting: Setting, scores: Mapping[int, Sequence[float]]) -> list[Row]:
    """Count the seven rows, and put beside them the accuracies in ``scores``, which are by row."""
    rows = []
    for number, name in NUMBERS.items():
        model = setting.family + name
        params, flops, uncounted = _count(model, setting)
        rows.append(Row(number, name, model, LABELS[name], setting, params, flops, uncounted, tuple(scores.get(number, ()))))
    return rows


@cache
def _count(name: str, setting: Setting) -> tuple[int, int, dict[str, int]]:
    """Return parameters, multiply-adds without norms, and the operators that the latter lacks."""
    grid_sizes = setting.grid_sizes if VARIANTS[name].attention == "stvit" else None
    model = create_model(name, setting.num_classes, setting.in_chans, grid_sizes=grid_sizes)
    count = count_flops(model, (setting.image_size, setting.image_size), setting.in_chans)
    norms = sum(flops for operator, flops in count.by_operator.items() if operator.endswith("_norm"))
    return sum(p.numel() for p in model.parameters()), count.total - norms, count.uncounted


def notes_on_counts(rows: Sequence[Row]) -> list[str]:
    """Say what the figures are, and how far ours are from the paper's."""
    size = rows[0].setting.image_size
    classes = rows[0].setting.num_classes
    notes = [f"FLOPs are multiply-adds of one image of {size} x {size}, norms left out; parameters with {classes} classes."]
    notes += [f"Row {row.number}: not counted: {', '.join(row.uncounted)}." for row in rows if row.uncounted]
    if not rows[0].setting.is_papers:
        return [*notes, "The paper's figures are of the full models, at 224, on ImageNet: not to be compared with the ones here."]
    params_gap = max(rows, key=lambda row: abs(row.params - row.paper.params))
    flops_gap = max(rows, key=lambda row: abs(row.flops - row.paper.flops))
    notes.append(
        f"Furthest from the paper's rounded figures: parameters {(params_gap.params - params_gap.paper.params) / 1e6:+.2f} M "
        f"(row {params_gap.number}), FLOPs {(flops_gap.flops - flops_gap.paper.flops) / 1e9:+.2f} G (row {flops_gap.number})."
    )
    far = [
        row.number
        for row in rows
        if abs(row.params - row.paper.params) > PARAMS_TOLERANCE or abs(row.flops - row.paper.flops) > FLOPS_TOLERANCE
    ]
    if far:
        notes.append(f"Rows {far} are more than {PARAMS_TOLERANCE / 1e6:g} M or {FLOPS_TOLERANCE / 1e9:g} G away.")
    notes.append(
        "The supplement gives no heads: Swin has 32 channels a head, STViT 64 (32 in rows 1 and 2). "
        "STViT merges patches by 3 x 3 of stride 2, Swin by its linear layer. These reproduce the figures."
    )
    return notes


@dataclass(frozen=True)
class Comparison:
    """A row of Swin against the row of STViT at equal settings; figures in points of top-1."""

    swin: Row
    stvit: Row

    @property
    def gain(self) -> float:
        return fmean(self.stvit.scores) - fmean(self.swin.scores)

    @property
    def error(self) -> float | None:
        """The standard error of the gain over the seeds; none where a row has a single one."""
        if self.swin.deviation is None or self.stvit.deviation is None:
            return None
        return math.sqrt(self.swin.deviation**2 / len(self.swin.scores) + self.stvit.deviation**2 / len(self.stvit.scores))

    @property
    def is_beyond_spread(self) -> bool:
        return self.error is not None and abs(self.gain) > 2 * self.error

    def sentence(self) -> str:
        paper = self.stvit.paper.top1 - self.swin.paper.top1
        pair = f"Rows {self.swin.number} and {self.stvit.number}"
        text = f"{pair}: STViT {self.gain:+.2f} points from {self.swin.label} (paper {paper:+.1f})"
        if self.error is None:
            return f"{text}; one seed, so there is no spread to hold it against."
        verdict = "beyond" if self.is_beyond_spread else "within"
        return f"{text}, {verdict} the spread of the seeds (twice the standard error is {2 * self.error:.2f})."


def compare(rows: Iterable[Row]) -> list[Comparison]:
    """Return the pairs of the table of which both rows are trained."""
    trained = {row.number: row for row in rows if row.scores}
    return [Comparison(trained[swin], trained[stvit]) for swin, stvit in PAIRS if swin in trained and stvit in trained]


def answer(comparisons: Sequence[Comparison]) -> list[str]:
    """Answer in words: does STViT beat Swin at equal settings here, as the paper says, and by how much?"""
    if not comparisons:
        return []
    ahead = sum(c.gain > 0 for c in comparisons)
    clear = sum(c.gain > 0 and c.is_beyond_spread for c in comparisons)
    behind = sum(c.gain < 0 and c.is_beyond_spread for c in comparisons)
    verdict = f"ahead in {ahead} of {len(comparisons)} pairs"
    if any(c.error is not None for c in comparisons):
        verdict += f", beyond the spread of the seeds in {clear}; behind beyond it in {behind}"
    return [f"Does STViT beat Swin at equal settings here? It is {verdict}.", *(c.sentence() for c in comparisons)]
