"""The validation images of an evaluation drawn with truth and prediction, as PNG files, the worst first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stvit_cli import tasks
from stvit_cli.data.drawing import drawn_name, save_png
from stvit_cli.errors import UserError
from stvit_cli.tasks.spec import ReportInput
from stvit_cli.utils.text import first_line


def write_drawings(given: ReportInput, folder: Path, say: Callable[[str], None]) -> int:
    """Write the drawings of at most ``given.max_images`` images; as many that cannot be opened are tried.

    Args:
        given: the evaluation, its predictions, and the model.
        folder: where to write; the names of the files begin with the rank of the image, the worst with 00000.
        say: called with each warning.

    Returns:
        The number of drawings.

    Raises:
        UserError: the task draws nothing, the images are no longer those of the predictions, or a file cannot be written.
    """
    draw = tasks.registry.get(given.evaluation.name).draw_evaluation
    if draw is None:
        raise UserError(f"The task {given.evaluation.name} draws no images of an evaluation; leave output out.")
    count, failures = 0, 0
    for drawing in draw(given):
        if count == given.max_images or failures == given.max_images:
            break
        try:
            image = drawing.draw()
        except (UserError, OSError) as error:
            failures += 1
            say(f"Not drawn: {drawing.name}: {first_line(error)}")
            continue
        save_png(image, folder / drawn_name(count, Path(drawing.name)))
        count += 1
    return count
