"""Photos with boxes -> a detector, its mistakes, and predictions.

python docs/examples/detector.py                        # on scenes that it makes itself
python docs/examples/detector.py --data FOLDER          # on yours: COCO's JSON, YOLO, Pascal VOC, LabelMe, CVAT, CreateML
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

import stvit_cli
from stvit_cli.data.shapes import draw_image, write_coco_tree


# --8<-- [start:data]
def make_boxes(folder: Path) -> Path:
    """Write 24 synthetic scenes to train on and 8 to validate on, with boxes in COCO's layout."""
    write_coco_tree(folder, (24, 8), image_size=160, seed=7)
    for path in (folder / "annotations").iterdir():
        content = json.loads(path.read_text(encoding="utf-8"))
        for annotation in content["annotations"]:
            del annotation["segmentation"]  # boxes alone; with masks, the same calls train Mask R-CNN
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder
    # --8<-- [end:data]


def main() -> None:
    """Look at the data, train, look at the mistakes, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe")
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", default="stvit-nano.shapes-mask-rcnn", help="a file or a name of `stvit weights list`")
    parser.add_argument("--output", type=Path, default=Path("detector"))
    given = parser.parse_args()
    output, weights, overrides = given.output, given.weights, given.overrides
    data = given.data or make_boxes(output / "boxes")

    # --8<-- [start:check]
    print(stvit_cli.data_show(data).description)
    for finding in stvit_cli.data_check(data).findings:
        print(f"{finding.level}: {finding.path}: {finding.message}")
    # --8<-- [end:check]

    # --8<-- [start:train]
    trained = stvit_cli.train(None, overrides, data=data, weights=weights, output=output / "run")
    print(f"box AP50 {trained.metrics['box_ap50']:.1f} % on {trained.metrics['num_images']:.0f} held-out images")
    # --8<-- [end:train]

    # --8<-- [start:mistakes]
    found = stvit_cli.evaluate(trained.run_dir, output=output / "mistakes").predictions  # draws the worst images first
    for kind, boxes in (("objects", found.objects), ("detections above 0.5", found.detections)):
        labels = boxes.label[boxes.score > 0.5]
        print(kind, {name: int((labels == index).sum()) for index, name in enumerate(found.class_names)})
    # --8<-- [end:mistakes]

    # --8<-- [start:predict]
    photo = Image.fromarray(draw_image(seed=8, split="val", index=0, image_size=200).image)  # or the path of one of yours
    prediction = stvit_cli.load(trained.run_dir).predict(photo, score_threshold=0.5)
    for detection in prediction.objects:
        left, top, right, bottom = detection.box
        print(f"{detection.name} {detection.score:.0%} at x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}")
    prediction.draw(output / "prediction.png")
    # --8<-- [end:predict]


if __name__ == "__main__":
    main()
