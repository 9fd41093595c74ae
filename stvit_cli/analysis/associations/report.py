"""Everything `visualize-associations` writes for one image: plots, a superpixel comparison, arrays and an HTML page."""

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
from stvit_cli.analysis.associations.panels import PlotContext, Point, plot_context
from stvit_cli.analysis.associations.plots import head_sheet, layer_sheet, overview
from stvit_cli.analysis.associations.superpixels import Labels, Segmentation, read_labels
from stvit_cli.data import derive_seed
from stvit_cli.data.images import open_image
from stvit_cli.data.loader import seeded
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.tasks.loading import open_trained
from stvit_cli.utils.files import replace_file, writing

DEFAULT_MODEL = "stvit-s"


@dataclass(frozen=True)
class ShownModel:
    """The model whose super tokens are visualized.

    Attributes:
        model: in eval mode.
        info: image size, mean, std and channels of its input.
        trained: False for random weights.
        description: for the titles of the plots.
    """

    model: nn.Module
    info: WeightsInfo
    trained: bool
    description: str


@dataclass(frozen=True)
class VisualizationOptions:
    """What to visualize.

    Attributes:
        layers: names of layers or stages; all if empty.
        points: (x, y) in pixels of the image; the attention of each is plotted.
        image_size: short side of the model's input in pixels, see `associations`.
        keep_size: run the model at the image's own size, see `associations`.
        html: also write the interactive page.
        arrays: also save the arrays to this .npz file.
        labels: label map of the image; the super tokens are compared with it as superpixels.
    """

    layers: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    image_size: int | None = None
    keep_size: bool = False
    html: bool = False
    arrays: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written.

    Attributes:
        file: its path.
        image: the image it belongs to.
        kind: overview, layer, heads, comparison, page or arrays.
        segmentations: the metrics of a comparison.
        notice: a message for the user, or an empty string.
    """

    file: Path
    image: Path
    kind: str
    segmentations: tuple[Segmentation, ...] = ()
    notice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of this file in a ``--json`` report."""
        entry: dict[str, Any] = {"file": str(self.file), "image": str(self.image), "kind": self.kind}
        if self.segmentations:
            segmentations = map(asdict, self.segmentations)
            entry["cuts"] = [{key: value for key, value in item.items() if key != "labels"} for item in segmentations]
        return entry


def open_model(weights: Path | None, model: str | None) -> ShownModel:
    """Open a weights file or run directory; without one, create a model with random weights from a fixed seed.

    Args:
        weights: weights file or run directory.
        model: the model that ``weights`` holds; without weights, the model to create (stvit-s by default).

    Raises:
        UserError: the model or the file does not exist, or the file does not fit the model.
    """
    if weights is not None:
        trained = open_trained(weights, model)
        return ShownModel(trained.model, trained.info, True, f"{trained.info.model}, weights {weights.name or weights}")
    name = model or DEFAULT_MODEL
    with seeded(derive_seed(0, "model")):
        net = create_model(name)
    return ShownModel(net.eval(), WeightsInfo(name), False, f"{name}, UNTRAINED: random weights")


def visualize(shown: ShownModel, path: Path, folder: Path, options: VisualizationOptions) -> Iterator[WrittenFile]:
    """Visualize the super tokens of the image at ``path``; write into ``folder`` and yield each file once it is written.

    Raises:
        UserError: the image or label map cannot be used, a layer or point does not exist, or a file cannot be written.
    """
    image = open_image(path)
    _require_inside(options.points, image.size)
    truth = None if options.labels is None else read_labels(options.labels, (image.height, image.width))
    maps = associations(shown.model, image, shown.info, image_size=options.image_size, keep_size=options.keep_size)
    if options.layers:
        maps = maps.select(options.layers)
    if truth is not None and not maps.super_token_layers:
        raise UserError("A label map is given, but the selected layers have no super tokens to compare with it.")
    context = plot_context(maps, path.name, shown.description)
    centre = (image.width // 2, image.height // 2)
    # The page comes first: it is the only output that can be too large.
    page = association_page(context, (*options.points, centre)[0], trained=shown.trained) if options.html else None
    if options.arrays is not None:
        yield _save_arrays(options.arrays, path, maps, options.points)
    for name, kind, figure in _figures(context, options.points):
        yield WrittenFile(_save(folder / f"{name}.png", _png(figure)), path, kind)
    if truth is not None:
        segmentations, notice = _compare(maps, truth)
        file = _save(folder / "comparison.png", _png(comparison_sheet(context, truth, segmentations)))
        yield WrittenFile(file, path, "comparison", tuple(segmentations), notice)
    if page is not None:
        yield WrittenFile(_save(folder / "index.html", page.encode()), path, "page")


def _require_inside(points: Sequence[Point], size: tuple[int, int]) -> None:
    for x, y in points:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise UserError(f"point {x},{y}: outside the image; X goes from 0 to {size[0] - 1}, Y from 0 to {size[1] - 1}.")


def _figures(context: PlotContext, points: Sequence[Point]) -> Iterator[tuple[str, str, Figure]]:
    """Yield file name, kind and figure of every plot."""
    yield "overview", "overview", overview(context, points)
    for layer in context.maps.super_token_layers:
        yield layer.name, "layer", layer_sheet(context, layer, points)
    for number, point in enumerate(points, 1):
        for stage, layers in groupby(context.maps.layers.values(), lambda layer: layer.name.split(".")[0]):
            yield f"point{number}-{stage}", "heads", head_sheet(context, list(layers), number, point)


def _compare(maps: Associations, truth: Labels) -> tuple[list[Segmentation], str]:
    """Return the measured segmentations, and a notice if SLIC is not installed."""
    try:
        return compare(maps, truth), ""
    except UserError as error:
        return compare(maps, truth, with_slic=False), f"SLIC is left out of the comparison. {error}"


def _save_arrays(file: Path, path: Path, maps: Associations, points: Sequence[Point]) -> WrittenFile:
    content, too_large = arrays(maps, points)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)  # type: ignore[arg-type]
    notice = f"{file}: the attention of {', '.join(too_large)} is too large and was not saved." if too_large else ""
    return WrittenFile(_save(file, buffer.getvalue()), path, "arrays", notice=notice)


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
