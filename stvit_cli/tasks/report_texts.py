"""What the tasks' parts of a report say in the same words. N images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from stvit_cli.tasks.bootstrap import num_resamples
from stvit_cli.tasks.predictions import Statistics
from stvit_cli.tasks.report_parts import ReportSection, TextPart
from stvit_cli.utils.text import first_few, shortened


def defined(value: float) -> float | None:
    """Return a number; None for NaN, which is an empty cell."""
    return None if math.isnan(value) else value


def intervals_note(statistics: Statistics, num_images: int) -> str:
    """Return the note on the intervals of metrics.

    Args:
        statistics: the metrics.
        num_images: N.
    """
    return (
        f"{num_images} images. 95 % intervals by the bootstrap over images, {num_resamples(statistics, num_images)} resamples: "
        "what other images of the same kind would change, not what another training would."
    )


def failure_lines(names: Sequence[str], failures: Mapping[int, str], remark: str = "") -> list[str]:
    """Return lines on images that cannot be shown; none where all can be.

    Args:
        names: of all images, (N,).
        failures: why images cannot be shown, by index.
        remark: at the end of the first line.

    Example:
        >>> failure_lines(["a.png", "b.png"], {1: "b.png: not an image."})
        ['Not shown, as they cannot be opened now: b.png.', 'The first: b.png: not an image.']
    """
    if not failures:
        return []
    reason = next(iter(failures.values())).partition("\n")[0]
    of_which = first_few([names[index] for index in failures])
    return [f"Not shown, as they cannot be opened now: {of_which}{remark}.", shortened(f"The first: {reason}", 200)]


def not_shown_sections(lines: Sequence[str]) -> Iterator[ReportSection]:
    """Yield the section on images that are not shown, if there is anything to say.

    Args:
        lines: why they are not.
    """
    if lines:
        yield ReportSection("images-not-shown", "Images that are not shown", [TextPart(lines, kind="warning")])
