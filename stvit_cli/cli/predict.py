"""``stvit predict``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from stvit_cli.cli import app
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.files import require_writable_folder

if TYPE_CHECKING:
    from stvit_cli.tasks.loading import Trained


class Prediction(Protocol):
    """What a model says of one image, or why that could not be read."""

    @property
    def path(self) -> Path: ...

    @property
    def error(self) -> str | None: ...

    @property
    def is_unanswered(self) -> bool: ...

    def summary(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...

    def draw(self, target: Path) -> None: ...


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, and folders of images.")],
    weights: Annotated[Path, typer.Option(metavar="FILE", help="A weights file, or the directory of a run.")],
    top: Annotated[int, typer.Option(metavar="K", min=1, help="A classifier: how many classes to name.")] = 1,
    score_threshold: Annotated[
        float, typer.Option(metavar="P", min=0, max=1, help="A detector: leave out objects that it is less sure of.")
    ] = 0.5,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write the images here, with what was found.")] = None,
    json_file: Json = None,
) -> None:
    """Say what images show: a class, objects with boxes and masks, or a class for every pixel, by what the weights are for.

    \b
    stvit predict some.png --weights runs/RUN
    stvit predict FOLDER --weights runs/RUN --top 5 --json result.json
    stvit predict some.jpg --weights stvit-s.pth --output drawn
    stvit predict some.jpg --weights runs/DETECTOR --score-threshold 0.7 --output drawn --json -
    stvit predict some.jpg --weights runs/SEGMENTER --output drawn     (the label map too)
    """
    from stvit_cli.data.drawing import drawn_name
    from stvit_cli.tasks.classification.predict import list_images
    from stvit_cli.tasks.loading import open_trained

    if output is not None:
        require_writable_folder(output)
    with reporting(json_file) as report:
        images = list_images(paths, lambda line: typer.echo(line, err=True))
        trained = open_trained(weights)
        results: list[Prediction] = []
        unread: list[str] = []
        unanswered: list[str] = []
        undrawn: list[str] = []
        for number, result in enumerate(_predictions(trained, images, top, score_threshold)):
            results.append(result)
            if result.error is not None:
                (unanswered if result.is_unanswered else unread).append(result.error)
                continue
            echo(f"{result.path}  {result.summary()}")
            if output is not None:
                undrawn += _draw(result, output / drawn_name(number, result.path))
        report([result.to_json() for result in results])
    if unread or unanswered or undrawn:
        counts = [(unread, "read"), (unanswered, "answered"), (undrawn, "drawn")]
        head = " and ".join(f"{len(some)} of {len(results)} images could not be {what}" for some, what in counts if some)
        failed = [*unread, *unanswered]
        shown = [*failed[: 4 - bool(undrawn)], *undrawn][:4]
        more = ["..."] if len(failed) + len(undrawn) > len(shown) else []
        raise UserError("\n".join([f"{head}:", *shown, *more]))


def _draw(result: Prediction, target: Path) -> list[str]:
    """Draw what was found; return what kept it from being drawn: the other images are answered nevertheless."""
    from stvit_cli.data.images import explain_failure

    try:
        result.draw(target)
    except Exception as error:
        return [explain_failure(result.path, error)]
    return []


def _predictions(trained: Trained, images: list[Path], top: int, score_threshold: float) -> Iterator[Prediction]:
    """Ask the model's own task; what all predictions have is `Prediction`."""
    from stvit_cli.engine.distributed import pick_device

    device = pick_device("auto")
    if trained.info.task == "detection":
        from stvit_cli.tasks.detection import predict as predict_detection

        return predict_detection.predict(trained, images, score_threshold=score_threshold, device=device)
    if trained.info.task == "segmentation":
        from stvit_cli.tasks.segmentation import predict as predict_segmentation

        return predict_segmentation.predict(trained, images, device=device)
    from stvit_cli.tasks.classification import predict as classification

    return classification.predict(trained, images, top=top, device=device)
