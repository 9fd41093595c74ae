"""The images on which two runs differ: truth beside what each of them says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Protocol, runtime_checkable

from stvit_cli import tasks
from stvit_cli.analysis.comparison.runs import ComparedRun, differing
from stvit_cli.data.classification import Openable
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.engine.distributed import pick_device
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import read_info
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.report_parts import Column, GalleryPart, Part, ReportSection, ShownImage, TablePart, TextPart, Thumbnail
from stvit_cli.tasks.spec import ReportInput

MAX_SHOWN = 24
"""Images of a gallery."""
MAX_DRAWN = 12
"""Of a gallery whose images are drawn with what each run says of them: a model may have to say it again."""
MAX_LISTED = 200
"""Images of the table where none can be opened."""

Thumbnails = Callable[[int], Sequence[Thumbnail]]
"""The thumbnails of an image, by its index; empty where it cannot be opened."""


@runtime_checkable
class HasImages(Protocol):
    """A validation set that can open its images."""

    @property
    def images(self) -> Openable: ...


def image_sections(baseline: ComparedRun, paired: Sequence[ComparedRun]) -> Iterator[ReportSection]:
    """Yield for each run a section of the images that it or the baseline alone is right about, or better.

    Args:
        baseline: the first run.
        paired: those that were evaluated on the same images as it.
    """
    if not paired:
        return
    draws = _drawer(baseline)
    of_baseline = draws or _opener(baseline)
    for number, run in enumerate(paired, start=1):
        assert baseline.scores is not None
        assert run.scores is not None
        difference = run.scores.score - baseline.scores.score
        found = differing(baseline, run)
        better = [index for index in found if difference[index] > 0]
        worse = [index for index in found if difference[index] < 0]
        title = f"{run.name} and {baseline.name}: images"
        if not found:
            lines = [TextPart([f"Both are equally right about all {len(difference)} images."])]
            yield ReportSection(f"images-{number}", title, lines)
            continue
        opened = of_baseline if draws is None else beside(baseline, draws, run, _drawer(run))
        is_binary = not run.scores.what
        verb, other = ("right", "wrong") if is_binary else ("better", "worse")
        what = "" if is_binary else f" By {run.scores.what}, the largest difference first."
        parts: list[Part] = []
        for indices, first, second in ((better, run.name, baseline.name), (worse, baseline.name, run.name)):
            name = f"{first} {verb}, {second} {other}" if is_binary else f"{first} {verb} than {second}"
            most = MAX_SHOWN if draws is None else MAX_DRAWN
            parts.append(_gallery(f"{name}: {len(indices)}", indices, baseline, run, opened, what.strip(), most))
        equal = len(difference) - len(found)
        alone = " alone" if is_binary else ""
        intro = f"Of {len(difference)} images: {run.name}{alone} is {verb} about {len(better)}, "
        intro += f"{baseline.name}{alone} about {len(worse)}, "
        both = int((run.scores.is_right & baseline.scores.is_right).sum())
        intro += f"both are right about {both} and wrong about {equal - both}." if is_binary else f"{equal} are equal."
        yield ReportSection(f"images-{number}", title, parts, intro=intro)


def _gallery(
    title: str,
    indices: Sequence[int],
    baseline: ComparedRun,
    run: ComparedRun,
    opened: Thumbnails,
    note: str,
    most: int,
) -> Part:
    """Return a gallery of images; a table of their names where none of them can be opened."""
    assert baseline.found is not None
    assert baseline.scores is not None
    assert run.scores is not None
    names, ours, theirs = baseline.found.predictions.images, baseline.scores, run.scores
    shown: list[ShownImage] = []
    for index in indices[: 2 * most]:
        small = opened(index)
        if not small:
            continue
        truth = ours.describe_truth(index)
        lines = [f"truth: {truth}"] if truth else []
        lines += [f"{baseline.name}: {ours.describe(index)}", f"{run.name}: {theirs.describe(index)}"]
        shown.append(ShownImage(names[index], small, lines))
        if len(shown) == most:
            break
    if shown or not indices:
        return GalleryPart(title, shown, len(indices), note)
    columns = [Column("image"), Column("truth"), Column(baseline.name), Column(run.name)]
    rows = [
        [names[index], ours.describe_truth(index), ours.describe(index), theirs.describe(index)] for index in indices[:MAX_LISTED]
    ]
    remark = f"The images cannot be opened where the run had them. {min(len(indices), MAX_LISTED)} of {len(indices)} are listed."
    return TablePart(columns, rows, title, f"{note} {remark}".strip())


def _opener(run: ComparedRun) -> Thumbnails:
    """Return what opens an image of a run's validation set as a thumbnail."""
    assert run.found is not None
    try:
        info = read_info(run.found.run_dir.best)
        build = tasks.build_test if run.images == "test" else tasks.build_evaluation
        val_set = build(run.recipe, info).val_set
    except (UserError, OSError):
        return lambda index: ()
    if not isinstance(val_set, HasImages) or len(val_set.images) != len(run.found.predictions.images):
        return lambda index: ()
    images = val_set.images

    @cache
    def opened(index: int) -> Sequence[Thumbnail]:
        try:
            return [Thumbnail(thumbnail(images.open(index)))]
        except (UserError, OSError):
            return ()

    return opened


def _drawer(run: ComparedRun) -> Thumbnails | None:
    """Return what draws an image with its truth and what a run says of it, each with its label.

    None where the task draws nothing: what is said of an image is a line of text. Where the run's data or weights are gone, no
    image has a drawing.
    """
    make = tasks.registry.get(run.recipe.task).compared_image
    if make is None:
        return None
    assert run.found is not None
    try:
        trained = open_trained(run.path)
        evaluation = tasks.build_evaluation(run.recipe, trained.info)
        draw = make(ReportInput(run.recipe, evaluation, run.found.predictions, trained, pick_device("auto")))
    except (UserError, OSError):
        return lambda index: ()

    @cache
    def drawn(index: int) -> Sequence[Thumbnail]:
        shown = draw(index)
        return () if shown is None else shown.thumbnails

    return drawn


def beside(baseline: ComparedRun, ours: Thumbnails, run: ComparedRun, theirs: Thumbnails | None) -> Thumbnails:
    """Return what draws the truth of an image, what the baseline says of it, and what another run does."""

    def drawn(index: int) -> Sequence[Thumbnail]:
        of_run = {
            name: {shot.label: shot for shot in draw(index)} if draw is not None else {}
            for name, draw in ((baseline.name, ours), (run.name, theirs))
        }
        truth = [shots["truth"] for shots in of_run.values() if "truth" in shots][:1]
        said = [Thumbnail(shots["prediction"].data, name) for name, shots in of_run.items() if "prediction" in shots]
        return [*truth, *said]

    return drawn
