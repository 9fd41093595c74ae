"""Table II: the paper's numbers, the counted parameters and multiply-adds, trained accuracies, and the comparison of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean, stdev
from typing import Any

from stvit_cli.analysis.ablation.statistics import Estimate, estimate, paired_difference
from stvit_cli.analysis.cost.flops import count_flops
from stvit_cli.analysis.cost.profile import Paper
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.isotropic_rows import FULL, MINI, ROWS, VARIANTS
from stvit_cli.models.stvit import GridSizes
from stvit_cli.recipe.files import list_recipes
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
PAIRS = ((1, 2), (3, 5), (4, 5), (6, 7))  # a Swin row and the STViT row with the same widths, depths and position encoding

# Largest expected difference of the counts from the paper's rounded numbers.
PARAMS_TOLERANCE, FLOPS_TOLERANCE = 0.6e6, 0.1e9


@dataclass(frozen=True)
class Setting:
    """The setting in which parameters and multiply-adds are counted; the defaults are the paper's.

    Attributes:
        family: prefix of the model names, `FULL` or `MINI`.
        image_size: side in pixels.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        grid_sizes: of the STViT rows; their own if None.
        num_iters: iterations of super token sampling of the STViT rows; their own if None.
    """

    family: str = FULL
    image_size: int = 224
    num_classes: int = 1000
    in_chans: int = 3
    grid_sizes: GridSizes | None = None
    num_iters: int | None = None

    @property
    def is_papers(self) -> bool:
        """Whether this is the paper's setting."""
        return self == Setting()


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        number: 1 to 7.
        name: without the family, such as ``stvit-20``.
        model: full model name.
        label: as printed in the paper.
        setting: in which the row was counted.
        params: number of parameters.
        flops: multiply-adds of one image, without normalization layers.
        uncounted: operators missing from ``flops``, with their number of calls.
        scores: top-1 in percent, by seed.
    """

    number: int
    name: str
    model: str
    label: str
    setting: Setting
    params: int
    flops: int
    uncounted: dict[str, int]
    scores: Mapping[int, float] = field(default_factory=dict)

    @property
    def paper(self) -> Paper:
        """The paper's numbers for this row."""
        return PAPER[self.name]

    @property
    def mean(self) -> float | None:
        """Mean top-1 over the seeds in percent; None before training."""
        return fmean(self.scores.values()) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of top-1 over the seeds; None for fewer than two."""
        return stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean top-1 over the seeds; None for fewer than two."""
        found = estimate(list(self.scores.values()))
        return None if found is None or found.low is None or found.high is None else (found.low, found.high)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of this row in table.json."""
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
            "top1_interval": None if self.interval is None else list(self.interval),
            "top1_by_seed": list(self.scores.values()),
        }


def family_of(model: str) -> str:
    """Return the family of a row's model: `FULL`, or `MINI` for a quarter of the width.

    Raises:
        UserError: the model is not a row of Table II.
    """
    if model not in VARIANTS:
        shipped = [path.stem for path in list_recipes() if path.stem.startswith("isotropic")]
        raise UserError(
            f"model.name: found {model}, expected a row of Table II, such as isotropic-stvit-20 "
            f"(or isotropic-mini-stvit-20).{did_you_mean(model, VARIANTS)}\n"
            f"Shipped recipes for them: {', '.join(shipped)}."
        )
    return MINI if model.startswith(MINI) else FULL


def build_table(setting: Setting, scores: Mapping[int, Mapping[int, float]]) -> list[Row]:
    """Count the seven rows and add their accuracies.

    Args:
        setting: in which they are counted.
        scores: top-1 in percent, by row number and seed.
    """
    rows = []
    for number, name in NUMBERS.items():
        model = setting.family + name
        params, flops, uncounted = _count(model, setting)
        rows.append(Row(number, name, model, LABELS[name], setting, params, flops, uncounted, dict(scores.get(number, {}))))
    return rows


@cache
def _count(name: str, setting: Setting) -> tuple[int, int, dict[str, int]]:
    """Return parameters, multiply-adds without norms, and uncounted operators."""
    of_super_tokens = {"grid_sizes": setting.grid_sizes, "num_iters": setting.num_iters}
    options: Any = of_super_tokens if VARIANTS[name].attention == "stvit" else {}
    model = create_model(name, setting.num_classes, setting.in_chans, **options)
    count = count_flops(model, (setting.image_size, setting.image_size), setting.in_chans)
    norms = sum(flops for operator, flops in count.by_operator.items() if operator.endswith("_norm"))
    return sum(p.numel() for p in model.parameters()), count.total - norms, count.uncounted


def notes_on_counts(rows: Sequence[Row]) -> list[str]:
    """Return sentences on how the rows were counted, and how far the counts are from the paper's."""
    size = rows[0].setting.image_size
    classes = rows[0].setting.num_classes
    notes = [
        f"FLOPs are multiply-adds of one {size} x {size} image without norms; parameters are counted with {classes} classes."
    ]
    notes += [f"Row {row.number}: not counted: {', '.join(row.uncounted)}." for row in rows if row.uncounted]
    if not rows[0].setting.is_papers:
        return [
            *notes,
            "The paper's numbers are for the full models at 224 on ImageNet: not to be compared with those trained here.",
        ]
    params_gap = max(rows, key=lambda row: abs(row.params - row.paper.params))
    flops_gap = max(rows, key=lambda row: abs(row.flops - row.paper.flops))
    notes.append(
        "Largest difference from the paper's rounded numbers: parameters "
        f"{(params_gap.params - params_gap.paper.params) / 1e6:+.2f} M (row {params_gap.number}), FLOPs "
        f"{(flops_gap.flops - flops_gap.paper.flops) / 1e9:+.2f} G (row {flops_gap.number})."
    )
    far = [
        row.number
        for row in rows
        if abs(row.params - row.paper.params) > PARAMS_TOLERANCE or abs(row.flops - row.paper.flops) > FLOPS_TOLERANCE
    ]
    if far:
        notes.append(
            f"Rows {far} differ by more than {PARAMS_TOLERANCE / 1e6:g} M parameters or {FLOPS_TOLERANCE / 1e9:g} G FLOPs."
        )
    notes.append(
        "The supplement does not state the number of heads: Swin has 32 channels per head, STViT 64 (32 in rows 1 and 2). "
        "STViT merges patches by a 3 x 3 convolution of stride 2, Swin by a linear layer. This reproduces the paper's numbers."
    )
    return notes


@dataclass(frozen=True)
class Comparison:
    """A Swin row and the STViT row of the same setting.

    Attributes:
        swin: its row.
        stvit: its row.
        gain: top-1 of STViT minus that of Swin in percentage points, paired by seed.
    """

    swin: Row
    stvit: Row
    gain: Estimate

    @property
    def is_significant(self) -> bool:
        """Whether the 95 % interval of the gain is without 0."""
        return self.gain.excludes_zero

    def sentence(self) -> str:
        """Return one sentence on the gain and its interval over the seeds."""
        paper = self.stvit.paper.top1 - self.swin.paper.top1
        pair = f"Rows {self.swin.number} and {self.stvit.number}"
        text = f"{pair}: STViT {self.gain.mean:+.2f} points vs. {self.swin.label} (paper {paper:+.1f})"
        if self.gain.low is None or self.gain.high is None:
            return f"{text}; one seed, so the variation between seeds is unknown."
        wide = ", wide with two seeds" if self.gain.n == 2 else ""
        return f"{text}, 95 % interval [{self.gain.low:+.2f}, {self.gain.high:+.2f}] over {self.gain.n} seeds{wide}."


def compare(rows: Iterable[Row]) -> list[Comparison]:
    """Compare the pairs of `PAIRS` whose rows are both trained with a seed."""
    trained = {row.number: row for row in rows if row.scores}
    found = []
    for swin, stvit in PAIRS:
        if swin in trained and stvit in trained:
            gain = paired_difference(trained[swin].scores, trained[stvit].scores)
            found += [] if gain is None else [Comparison(trained[swin], trained[stvit], gain)]
    return found


def summarize(comparisons: Sequence[Comparison]) -> list[str]:
    """Return sentences that answer whether STViT outperforms Swin at equal settings, as in the paper, and by how much."""
    if not comparisons:
        return []
    ahead = sum(c.gain.mean > 0 for c in comparisons)
    clear = sum(c.gain.mean > 0 and c.is_significant for c in comparisons)
    behind = sum(c.gain.mean < 0 and c.is_significant for c in comparisons)
    verdict = f"ahead in {ahead} of {len(comparisons)} pairs"
    if any(c.gain.low is not None for c in comparisons):
        verdict += f" (significantly in {clear}), and significantly behind in {behind}"
    return [f"Does STViT outperform Swin at equal settings? It is {verdict}.", *(c.sentence() for c in comparisons)]
