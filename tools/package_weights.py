"""Put the weights of a run into the package, with their model card.

    python tools/package_weights.py RUN NAME

RUN is the directory of a finished run, NAME what `load` will take: the model, a dot, the data, such as stvit-nano.fashion-mnist.
``stvit_cli/weights/NAME.safetensors`` are the run's best weights, ``NAME.md`` is the card: metrics on the validation images and,
where the recipe names a test set, on that; the recipe and its hash; the licences. Files of the same name are replaced. Weights of
more than 6 MB are stored in fp16: the wheel holds them all.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from stvit_cli.analysis.export import export_weights
from stvit_cli.analysis.hub_folder import public_info
from stvit_cli.analysis.model_card import card_text
from stvit_cli.analysis.packaged_card import PackagedAs
from stvit_cli.analysis.report.run_files import read_run
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.tasks.loading import open_trained
from stvit_cli.utils.files import replace_file
from stvit_cli.utils.shipped import weights_folder

LIMIT = 6_000_000
"""The largest size of a file in bytes."""
LICENCE = "mit"
DATA = {
    "fashion-mnist": (
        "Fashion-MNIST",
        "MIT",
        "Zalando SE; H. Xiao, K. Rasul, R. Vollgraf (2017), https://github.com/zalandoresearch/fashion-mnist.",
    ),
    "digits": (
        "scikit-learn's handwritten digits",
        "CC BY 4.0",
        "E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, DOI 10.24432/C50P49.",
    ),
    "shapes": ("synthetic shapes", "MIT", "Drawn by this package (`stvit_cli/data/shapes.py`)."),
}
"""Name, licence and source of the images by the beginning of what follows the model's name."""


def package(run: Path, name: str, folder: Path) -> Path:
    """Write the weights of a run and their card.

    Args:
        run: the run directory.
        name: of the weights, such as ``stvit-nano.digits``.
        folder: where they go.

    Returns:
        The weights file.

    Raises:
        UserError: no finished run is there, its model is another one, the data are unknown, or the file would be too large.
    """
    saved = RunDir(run)
    saved.require_run()
    trained = open_trained(saved.best)
    model, _, tag = name.partition(".")
    key = next((key for key in DATA if tag == key or tag.startswith(f"{key}-")), None)
    if key is None or model != trained.info.model:
        raise UserError(f"{name}: expected {trained.info.model}.DATA, where DATA begins with one of {', '.join(DATA)}.")
    size = saved.best.stat().st_size
    precision = "fp16" if size > LIMIT else "fp32"
    if size > 2 * LIMIT:
        raise UserError(f"{saved.best}: {size / 1e6:.1f} MB, but a file may have at most {LIMIT / 1e6:g}, in fp16.")
    best = read_run(run).best
    if best is None:
        raise UserError(f"{run} has no evaluation yet.")
    card = card_text(run, licence=LICENCE, packaged=PackagedAs(name, *DATA[key], best.metric, precision))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    export_weights(replace(trained, info=replace(public_info(trained.info), licence=LICENCE)), path, precision)
    replace_file(folder / f"{name}.md", card.encode())
    return path


def main() -> None:
    """Read the command line, and print the file that was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("name", metavar="NAME")
    given = parser.parse_args()
    try:
        path = package(given.run, given.name, weights_folder())
    except UserError as error:
        sys.exit(str(error))
    print(f"{path}, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
