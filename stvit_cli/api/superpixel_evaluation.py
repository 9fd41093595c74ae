"""Super tokens as superpixels: `superpixels`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stvit_cli.errors import UserError
from stvit_cli.utils.cpus import limit_threads
from stvit_cli.utils.files import require_writable_folder

if TYPE_CHECKING:
    from stvit_cli.analysis.superpixels import SuperpixelResult

AnyPath = str | os.PathLike[str]


def superpixels(
    weights: AnyPath | Sequence[AnyPath],
    *,
    num_scenes: int = 100,
    scene_size: int = 96,
    scene_seed: int = 0,
    untrained: int = 3,
    image_size: int | None = None,
    output: AnyPath | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SuperpixelResult:
    """Measure whether super tokens follow objects, on held-out scenes of synthetic shapes with exact maps of their objects.

    Boundary recall, undersegmentation error and achievable segmentation accuracy of the super tokens of each layer, trained and
    untrained, beside the layer's cells, the regular grid, and SLIC on pixels and on tokens, with as many segments.

    Args:
        weights: run directories or weights files; ``NAME=RUN`` names a row of the table. Runs of the same name, or without names
            runs whose recipes differ in ``train.seed`` alone, are seeds of one setting.
        num_scenes: number of scenes.
        scene_size: their longer side in pixels.
        scene_seed: seed of the set.
        untrained: number of random initializations of each model to compare with; 0: none.
        image_size: short side of the models' input in pixels; by default that of the evaluation of their task.
        output: folder for ``superpixels.json``, ``table.md``, ``plot.svg`` and ``scenes.png``; None: nothing is written.
        progress: called with the number of scenes that are done, and of all.

    Returns:
        ``table()``, ``differences()``, ``notes()``, ``to_dict()``, and ``write(folder)``.

    Raises:
        UserError: weights that cannot be opened, a model without super tokens, a number out of range, or ``output`` cannot be
            written.
    """
    for name, value, least in (
        ("num_scenes", num_scenes, 1),
        ("scene_size", scene_size, 32),
        ("untrained", untrained, 0),
        ("image_size", image_size, 32),
    ):
        if value is not None and value < least:
            raise UserError(f"{name}: found {value}, expected {least} or more.")
    limit_threads()
    if output is not None:
        require_writable_folder(Path(output))
    from stvit_cli.analysis.superpixels import SuperpixelOptions, evaluate_superpixels

    given = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights)
    options = SuperpixelOptions(num_scenes, scene_size, scene_seed, untrained, image_size)
    result = evaluate_superpixels([os.fspath(item) for item in given], options, progress=progress)
    if output is not None:
        result.write(Path(output))
    return result
