"""Photos in a folder for each class -> a classifier, its mistakes, and an ONNX file.

python docs/examples/classifier.py                      # on photos that it makes itself
python docs/examples/classifier.py --data PHOTOS        # on yours; key=value sets any key of the recipe
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import stvit_cli
from stvit_cli.data.shapes import SHAPE_NAMES, box_of, draw_image


# --8<-- [start:data]
def make_photos(folder: Path, scenes: int = 40) -> Path:
    """Cut the objects out of synthetic scenes: photos of many sizes, in a folder for each class."""
    for index in range(scenes):
        scene = draw_image(seed=7, split="train", index=index, image_size=160)
        for number, (mask, label) in enumerate(zip(scene.masks, scene.labels, strict=True)):
            left, top, width, height = box_of(mask)
            box = (left - width // 4, top - height // 4, left + width + width // 4, top + height + height // 4)
            target = folder / SHAPE_NAMES[label] / f"{index:03}-{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).crop(box).save(target, quality=95)
    return folder
    # --8<-- [end:data]


def main() -> None:
    """Train, look at the mistakes, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", type=Path, metavar="PHOTOS")
    parser.add_argument("--weights", default="stvit-nano.shapes-upernet", help="a weights file or a name of `stvit weights list`")
    parser.add_argument("--output", type=Path, default=Path("classifier"))
    parser.add_argument("--skip-export", action="store_true", help="write no ONNX file")
    given = parser.parse_args()
    output, weights = given.output, given.weights
    photos = given.data or make_photos(output / "photos")

    # --8<-- [start:train]
    trained = stvit_cli.train(None, given.overrides, data=photos, weights=weights, output=output / "run")
    print(f"{trained.metrics['top1']:.1f} % of {trained.metrics['num_images']:.0f} held-out photos are right")
    # --8<-- [end:train]

    # --8<-- [start:mistakes]
    found = stvit_cli.evaluate(trained.run_dir, output=output / "mistakes").predictions  # draws the worst photos
    wrong = [row for row in found.loss.argsort()[::-1] if found.target_rank[row] > 0]
    for row in wrong[:10]:
        said, true = found.class_names[found.labels[row, 0]], found.class_names[found.target[row]]
        print(f"{found.images[row]}: {said} ({found.scores[row, 0]:.0%}), in the folder of {true}")
    # --8<-- [end:mistakes]

    if given.skip_export:
        return
    # --8<-- [start:export]
    model = stvit_cli.load(trained.run_dir)
    exported = model.export(output / "model.onnx")
    print(f"{exported.file}: {exported.size_bytes / 1e6:.1f} MB")
    # --8<-- [end:export]


if __name__ == "__main__":
    main()
