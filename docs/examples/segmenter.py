"""Photos with masks -> a segmenter, its mistakes, and masks of new photos.

python docs/examples/segmenter.py                       # on scenes that it makes itself
python docs/examples/segmenter.py --data FOLDER         # on yours: images/ and masks/ with the same names
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import stvit_cli
from stvit_cli.data.shapes import LABEL_NAMES, draw_image


# --8<-- [start:data]
def make_masks(folder: Path, count: int = 32) -> Path:
    """Write ``images/`` and ``masks/``: the number of a class in each pixel, as the lines of ``classes.txt`` count from 0."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = draw_image(seed=7, split="train", index=index, image_size=128)
        Image.fromarray(scene.image).save(folder / "images" / f"{index:03}.jpg", quality=95)
        Image.fromarray(scene.label_map() - 1).save(folder / "masks" / f"{index:03}.png")
    (folder / "classes.txt").write_text("\n".join(LABEL_NAMES), encoding="utf-8")
    return folder
    # --8<-- [end:data]


def main() -> None:
    """Look at the data, train, look at the mistakes, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe")
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", default="stvit-nano.shapes-upernet", help="a file or a name of `stvit weights list`")
    parser.add_argument("--output", type=Path, default=Path("segmenter"))
    given = parser.parse_args()
    output, weights, overrides = given.output, given.weights, given.overrides
    data = given.data or make_masks(output / "masks")

    # --8<-- [start:check]
    summary = stvit_cli.data_show(data)
    print(summary.description, *summary.notes, sep="\n")
    for split in summary.splits:
        shares = (
            f"{name} {count / sum(split.counts):.1%}" for name, count in zip(summary.class_names, split.counts, strict=True)
        )
        print(f"{split.name}:", ", ".join(shares))
    # --8<-- [end:check]

    # --8<-- [start:train]
    trained = stvit_cli.train(None, overrides, data=data, weights=weights, output=output / "run")
    print(f"mIoU {trained.metrics['miou']:.1f} % on {trained.metrics['num_images']:.0f} held-out images")
    # --8<-- [end:train]

    # --8<-- [start:mistakes]
    found = stvit_cli.evaluate(trained.run_dir, output=output / "mistakes").predictions  # draws the worst images first
    wrong = found.target != found.predicted
    for entry in found.pixels.argsort()[::-1]:
        if wrong[entry] and found.pixels[entry] > 100:
            true, said = found.class_names[found.target[entry]], found.class_names[found.predicted[entry]]
            print(f"{found.images[found.image[entry]]}: {found.pixels[entry]} pixels of {true} taken for {said}")
    # --8<-- [end:mistakes]

    # --8<-- [start:predict]
    photo = Image.fromarray(draw_image(seed=8, split="val", index=0, image_size=150).image)  # or the path of one of yours
    prediction = stvit_cli.load(trained.run_dir).predict(photo)
    print(prediction.summary())
    Image.fromarray(prediction.numbers.astype("uint8")).save(output / "mask.png")  # numbers of the classes, as in masks/
    prediction.draw(output / "prediction.png")  # to look at, and prediction-labels.png in colors
    # --8<-- [end:predict]


if __name__ == "__main__":
    main()
