"""Everything that `stvit visualize-associations` writes of one image."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from stvit_cli.analysis.associations.arrays import arrays
from stvit_cli.analysis.associations.comparison import compare, comparison_sheet
from stvit_cli.analysis.associations.maps import Associations, associations
from stvit_cli.analysis.associations.page import association_page
from stvit_cli.analysis.associations.panels import Look, Point, look
from stvit_cli.analysis.associations.plots import head_sheet, layer_sheet, overview
from stvit_cli.analysis.associations.superpixels import Cut, read_labels
from stvit_cli.data import derive_seed
from stvit_cli.data.images import open_image
from stvit_cli.data.loader import seeded
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.tasks.loading import open_trained
from stvit_cli.utils.files import replace_file, writing

UNTRAINED = "stvit-s"  # the model that is shown where no other is asked for


@dataclass(frozen=True)
class Viewed:
    """The model whose super tokens are shown, and how the images speak of it."""

    model: nn.Module
    info: WeightsInfo
    trained: bool
    words: str


@dataclass(frozen=True)
class Wishes:
    """What is shown, and how.

    Attributes:
        layers: names of layers and stages; all of them where empty.
        points: in the image's own pixels.
        image_size, keep_size: see `associations`.
        page: also write the HTML page.
        arrays: where the arrays go.
        labels: a label map to measure the super tokens by.
    """

    layers: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    image_size: int | None = None
    keep_size: bool = False
    page: bool = False
    arrays: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        image: what it is of.
        kind: overview, layer, heads, comparison, page or arrays.
        cuts: what a comparison measured.
        notice: what the user should know of it.
    """

    file: Path
    image: Path
    kind: str
    cuts: tuple[Cut, ...] = ()
    notice: str = ""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"file": str(self.file), "image": str(self.image), "kind": self.kind}
        if self.cuts:
            found["cuts"] = [{key: value for key, value in asdict(cut).items() if key != "labels"} for cut in self.cuts]
        return found


def open_viewed(weights: Path | None, model: str | None) -> Viewed:
    """Open the weights; without any, build the model with random weights, the same each time.

    Raises:
        UserError: no such model or weights, or the two do not go together.
    """
    if weights is not None:
        trained = open_trained(weights, model)
        return Viewed(trained.model, trained.info, True, f"{trained.info.model}, weights {weights.name or weights}")
    name = model or UNTRAINED
    with seeded(derive_seed(0, "model")):
        net = create_model(name)
    return Viewed(net.eval(), WeightsInfo(name), False, f"{name}, UNTRAINED: random weights")


def visualize(viewed: Viewed, path: Path, folder: Path, wishes: Wishes) -> Iterator[Written]:
    """Write what was wished for into ``folder`` and yield each file as it is written.

    Raises:
        UserError: the image or the label map cannot be used, a layer or point does not exist, a file cannot be written.
    """
    image = open_image(path)
    _check_points(wishes.points, image.size)
    truth = None if wishes.labels is None else read_labels(wishes.labels, (image.height, image.width))
    maps = associations(viewed.model, image, viewed.info, image_size=wishes.image_size, keep_size=wishes.keep_size)
    if wishes.layers:
        maps = maps.chosen(wishes.layers)
    if truth is not None and not maps.super_token_layers:
        raise UserError("--labels: the layers that are shown have no super tokens to measure.")
    shown = look(maps, path.name, viewed.words)
    middle = (image.width // 2, image.height // 2)
    # The page first: it alone can turn out to be too large.
    page = association_page(shown, (*wishes.points, middle)[0], trained=viewed.trained) if wishes.page else None
    if wishes.arrays is not None:
        yield _save_arrays(wishes.arrays, path, maps, wishes.points)
    for name, kind, figure in _figures(shown, wishes.points):
        yield Written(_save(folder / f"{name}.png", _png(figure)), path, kind)
    if truth is not None:
        cuts, notice = _compared(maps, truth)
        file = _save(folder / "comparison.png", _png(comparison_sheet(shown, truth, cuts)))
        yield Written(file, path, "comparison", tuple(cuts), notice)
    if page is not None:
        yield Written(_save(folder / "index.html", page.encode()), path, "page")


def _check_points(points: Sequence[Point], size: tuple[int, int]) -> None:
    for x, y in points:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise UserError(f"--point {x},{y}: outside the image; X goes from 0 to {size[0] - 1}, Y from 0 to {size[1] - 1}.")


def _figures(shown: Look, points: Sequence[Point]) -> Iterator[tuple[str, str, Figure]]:
    """Yield the name, kind and figure of every image."""
    yield "overview", "overview", overview(shown, points)
    for layer in shown.maps.super_token_layers:
        yield layer.name, "layer", layer_sheet(shown, layer, points)
    for number, point in enumerate(points, 1):
        for stage, layers in groupby(shown.maps.layers.values(), lambda layer: layer.name.split(".")[0]):
            yield f"point{number}-{stage}", "heads", head_sheet(shown, list(layers), number, point)


def _compared(maps: Associations, truth: np.ndarray) -> tuple[list[Cut], str]:
    """Return the measured cuts, and what is to be said where SLIC is not installed."""
    try:
        return compare(maps, truth), ""
    except UserError as error:
        return compare(maps, truth, with_slic=False), f"SLIC is left out of the comparison. {error}"


def _save_arrays(file: Path, path: Path, maps: Associations, points: Sequence[Point]) -> Written:
    found, left_out = arrays(maps, points)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **found)  # type: ignore[arg-type]
    notice = f"{file} has no attention of {', '.join(left_out)}: too large." if left_out else ""
    return Written(_save(file, buffer.getvalue()), path, "arrays", notice=notice)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # an image's name may be in any script
        figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def _save(file: Path, content: bytes) -> Path:
    with writing(file, advice=""):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)
    return file
