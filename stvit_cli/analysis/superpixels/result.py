"""What was measured: rows of values, their means and intervals, differences, and sentences that say what follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stvit_cli import __version__
from stvit_cli.analysis.associations.maps import LayerMaps
from stvit_cli.analysis.associations.superpixels import TOLERANCE, Labels
from stvit_cli.analysis.associations.token_grid import Size
from stvit_cli.analysis.cost.machine import machine
from stvit_cli.analysis.superpixels.measure import (
    COMPACTNESS,
    KINDS,
    LOWER_IS_BETTER,
    METRICS,
    NAMES,
    SLIC,
    SUPER_TOKENS,
    VALUES,
    Kind,
    SceneMeasures,
)
from stvit_cli.analysis.superpixels.plots import as_markdown, plot, scenes
from stvit_cli.analysis.superpixels.scenes import SPLIT, Scene
from stvit_cli.analysis.superpixels.settings import Setting
from stvit_cli.analysis.superpixels.statistics import Estimate, difference, estimate
from stvit_cli.utils import strict_json
from stvit_cli.utils.files import replace_file, writing

TRAINED, UNTRAINED = "trained", "untrained"


@dataclass(frozen=True)
class SuperpixelOptions:
    """The set of scenes, and what is compared.

    Attributes:
        num_scenes: number of scenes.
        scene_size: their longer side in pixels.
        scene_seed: seed of the set.
        untrained: number of random initializations of each model.
        image_size: short side of the models' input; by default that of their evaluation, see `measure.input_size`.
    """

    num_scenes: int = 100
    scene_size: int = 96
    scene_seed: int = 0
    untrained: int = 3
    image_size: int | None = None


class Layer(NamedTuple):
    """A layer: its name, the distance of its tokens in pixels of the input, and the tokens of a cell, down and across."""

    name: str
    stride: int
    grid_size: Size


@dataclass(frozen=True)
class Row:
    """A segmentation of all scenes.

    Attributes:
        setting: name of the weights.
        trained: False for random weights.
        layer: whose super tokens are counted; a baseline has as many segments as these.
        kind: super tokens or a baseline.
        values: (seeds, scenes, `VALUES`).
    """

    setting: str
    trained: bool
    layer: Layer
    kind: Kind
    values: NDArray[np.float64]

    def of(self, name: str) -> NDArray[np.float64]:
        """Return the values of one of `VALUES`, (seeds, scenes)."""
        return self.values[..., VALUES.index(name)]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as ``superpixels.json`` has it."""
        seeds, scenes = self.values.shape[:2]
        head = {"setting": self.setting, "trained": self.trained, "layer": self.layer.name, "stride": self.layer.stride}
        head |= {"grid_size": list(self.layer.grid_size), "segmentation": self.kind, "seeds": seeds, "scenes": scenes}
        return head | {name: _as_json(estimate(self.of(name))) for name in VALUES}

    def cells(self) -> list[str]:
        """Return the cells of the table: means, and of the metrics half of the wider interval."""
        weights = f"{self.setting}, {TRAINED if self.trained else UNTRAINED}"
        counts = [_number(estimate(self.of(name)).mean, "{:.1f}") for name in VALUES[:2]]
        share = f"{estimate(self.of('boundary_share')).mean:.3f}"
        metrics = [_with_interval(estimate(self.of(name))) for name in METRICS]
        return [weights, self.layer.name, str(self.layer.stride), self.kind, *counts, share, *metrics]


@dataclass
class Example:
    """A scene with its segmentations by the first weights, to be drawn.

    Attributes:
        scene: the image and the map of its objects.
        labels: (height, width) by layer, trained or not, and kind.
    """

    scene: Scene
    labels: dict[tuple[str, bool, Kind], Labels] = field(default_factory=dict)

    def keep(self, measures: SceneMeasures, layer: LayerMaps, pixels: NDArray[np.uint8], trained: bool) -> None:
        """Keep the super tokens of a layer, and SLIC with as many segments."""
        count = len(np.unique(layer.token_labels()))
        for kind in (SUPER_TOKENS, SLIC):
            if kind in measures.kinds:
                self.labels[layer.name, trained, kind] = measures.labels(kind, layer, pixels, count)


@dataclass(frozen=True)
class SuperpixelResult:
    """The result of `evaluate_superpixels`.

    Attributes:
        settings: the weights.
        rows: one for each setting, trained or not, layer and kind.
        options: the set of scenes.
        examples: the first scenes with their segmentations.
        with_slic: False where scikit-image is not installed: SLIC and connected parts are left out.
    """

    settings: list[Setting]
    rows: list[Row]
    options: SuperpixelOptions
    examples: list[Example]
    with_slic: bool = True

    def row(self, setting: str, layer: str, kind: Kind = SUPER_TOKENS, *, trained: bool = True) -> Row:
        """Return the row of a setting's layer.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.setting, row.layer.name, row.kind, row.trained) == (setting, layer, kind, trained):
                return row
        raise KeyError((setting, layer, kind, trained))

    def layers(self, setting: str) -> list[str]:
        """Return the names of a setting's layers with super tokens, in order."""
        return list(dict.fromkeys(row.layer.name for row in self.rows if row.setting == setting))

    def table(self) -> list[list[str]]:
        """Return the cells of the table, see `COLUMNS`; of random weights without the baselines, which are in the JSON."""
        return [row.cells() for row in self._ordered() if row.trained or row.kind == SUPER_TOKENS]

    def differences(self) -> list[dict[str, Any]]:
        """Return differences of the metrics: trained super tokens less untrained ones, and super tokens less each baseline."""
        return [
            {"setting": setting, "layer": layer, "of": of, "minus": minus} | {name: _as_json(values[name]) for name in METRICS}
            for setting, layer, of, minus, values in self._differences()
        ]

    def notes(self) -> list[str]:
        """Return sentences: how it was measured, and for each layer whether training makes super tokens follow objects."""
        options = self.options
        notes = [
            f"{options.num_scenes} held-out scenes of synthetic shapes, {options.scene_size} pixels, with exact maps of their "
            f"objects. Boundary recall is within {TOLERANCE} pixels. Intervals are of 95 %: the wider of that over scenes and "
            "that over seeds.",
            "Baselines have as many segments as super tokens occur in the image (cells: as many as the layer has). Super tokens "
            "need not be connected; the baselines are. Cells and SLIC on tokens are made of whole tokens, as super tokens are; "
            f"the regular grid and SLIC of pixels. SLIC: compactness {COMPACTNESS}, chosen on training scenes.",
        ]
        if not self.with_slic:
            notes.append("SLIC and connected parts are left out: pip install 'stvit[superpixels]'.")
        return [*notes, *(self._verdict(setting.name, layer) for setting in self.settings for layer in self.layers(setting.name))]

    def _verdict(self, setting: str, layer: str) -> str:
        parts, better, worse = [], 0, 0
        of = {minus: values for name, where, _, minus, values in self._differences() if (name, where) == (setting, layer)}
        if f"{UNTRAINED} {SUPER_TOKENS}" not in of:
            return f"{setting}, {layer}: not compared with random weights."
        for name in METRICS:
            change = of[f"{UNTRAINED} {SUPER_TOKENS}"][name]
            parts.append(f"{NAMES[name]} {change.mean:+.3f} [{change.interval.low:+.3f}, {change.interval.high:+.3f}]")
            gain = -change.mean if name in LOWER_IS_BETTER else change.mean
            better += change.interval.excludes_zero and gain > 0
            worse += change.interval.excludes_zero and gain < 0
        verdict = {(3, 0): "follow objects better", (0, 3): "follow objects worse"}.get((better, worse))
        verdict = verdict or f"are better in {better} and worse in {worse} of 3 metrics"
        return f"{setting}, {layer}: after training super tokens {verdict}: {', '.join(parts)}."

    def _differences(self) -> Iterator[tuple[str, str, str, str, dict[str, Estimate]]]:
        for row in self._ordered():
            if row.kind != SUPER_TOKENS:
                continue
            own = f"{TRAINED if row.trained else UNTRAINED} {SUPER_TOKENS}"
            for other in self._ordered():
                if (other.setting, other.layer) != (row.setting, row.layer):
                    continue
                if other.kind == SUPER_TOKENS and row.trained and not other.trained:
                    values = {name: difference(row.of(name), other.of(name)) for name in METRICS}
                    yield row.setting, row.layer.name, own, f"{UNTRAINED} {SUPER_TOKENS}", values
                elif other.kind != SUPER_TOKENS and other.trained == row.trained:
                    values = {name: estimate(row.of(name) - other.of(name)) for name in METRICS}
                    yield row.setting, row.layer.name, own, other.kind, values

    def _ordered(self) -> list[Row]:
        """Return the rows by setting and layer: super tokens first, trained before untrained."""
        settings = [setting.name for setting in self.settings]
        layers = {(row.setting, row.layer.name): index for index, row in reversed(list(enumerate(self.rows)))}
        return sorted(
            self.rows,
            key=lambda row: (
                settings.index(row.setting),
                layers[row.setting, row.layer.name],
                row.kind != SUPER_TOKENS,
                not row.trained,
                KINDS.index(row.kind),
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``superpixels.json``."""
        return {
            "version": __version__,
            "machine": machine("cpu"),
            "scenes": {"kind": "shapes", "split": SPLIT, **asdict(self.options)},
            "tolerance": TOLERANCE,
            "compactness": COMPACTNESS,
            "settings": [
                {
                    "name": setting.name,
                    "model": setting.info.model,
                    "task": setting.info.task,
                    "recipe_hash": setting.recipe_hash,
                    "weights": list(map(str, setting.weights)),
                    "seeds": list(setting.seeds),
                }
                for setting in self.settings
            ],
            "rows": [row.to_dict() for row in self._ordered()],
            "differences": self.differences(),
            "notes": self.notes(),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``superpixels.json``, ``table.md``, ``plot.svg`` and ``scenes.png``; return their paths.

        Raises:
            UserError: a file cannot be written.
        """
        contents = {
            "superpixels.json": strict_json.dumps(self.to_dict(), indent=2).encode() + b"\n",
            "table.md": as_markdown(self).encode(),
            "plot.svg": plot(self),
            "scenes.png": scenes(self),
        }
        with writing(folder, advice=""):
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with writing(folder / name, advice=""):
                replace_file(folder / name, content)
        return [folder / name for name in contents]


def _as_json(found: Estimate) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "low": found.scenes.low,
        "high": found.scenes.high,
        "by_seed": list(found.by_seed),
        "seeds_low": found.seeds.low,
        "seeds_high": found.seeds.high,
    }


def _with_interval(found: Estimate) -> str:
    half = (found.interval.high - found.interval.low) / 2
    return f"{found.mean:.3f}" if np.isnan(half) else f"{found.mean:.3f} ± {half:.3f}"


def _number(value: float, text: str) -> str:
    return "-" if np.isnan(value) else text.format(value)
