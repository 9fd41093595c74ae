"""ImageNet-21K: folders -> shards -> a dry run -> pre-training -> fine-tuning on ImageNet-1k.

python docs/examples/imagenet21k.py                     # a miniature of four classes that it makes itself, on a CPU
python docs/examples/imagenet21k.py --data /data/imagenet21k --imagenet /data/imagenet --model stvit-s --dry-run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import stvit_cli
from stvit_cli.data.shapes import draw_image

MINIATURE = ["data.image_size=32", "train.global_batch_size=8", "train.precision=fp32", "schedule.epochs=2"]
MINIATURE += ["schedule.warmup_epochs=0", "train.device=cpu", "data.num_workers=0"]


# --8<-- [start:data]
def make_miniature(folder: Path, *synsets: str) -> Path:
    """Write ten images for each class into a folder of its WordNet ID, as ImageNet has them."""
    for number, synset in enumerate(synsets):
        (folder / synset).mkdir(parents=True, exist_ok=True)
        for index in range(10):
            scene = draw_image(seed=number, split="train", index=index, image_size=48)
            Image.fromarray(scene.image).save(folder / synset / f"{synset}_{index}.JPEG")
    return folder
    # --8<-- [end:data]


def main() -> None:
    """Write shards, check them, dry run, train, fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of both recipes")
    parser.add_argument("--data", type=Path, metavar="IMAGENET21K", help="folders by WordNet ID")
    parser.add_argument("--imagenet", type=Path, metavar="IMAGENET", help="ImageNet-1k: train/ and val/")
    parser.add_argument("--model", default="stvit-nano")
    parser.add_argument("--output", type=Path, default=Path("imagenet21k"))
    parser.add_argument("--dry-run", action="store_true", help="stop before the training")
    given = parser.parse_args()
    output, model, overrides = given.output, given.model, given.overrides or ([] if given.data else MINIATURE)
    folder = given.data or make_miniature(output / "images", "n01440764", "n02084071", "n02121808", "n03001627")
    imagenet = given.imagenet or make_miniature(output / "imagenet", "n01440764", "n02123045")

    # --8<-- [start:shards]
    sharded = stvit_cli.data_shard(folder, output / "shards", size="256MB")
    words = ["data.kind=shards", *overrides]
    problems = stvit_cli.data_check(output / "shards").errors
    files = [file for split in sharded.splits for file in split.files]
    print(f"{sharded.num_images} images in {len(files)} shards; problems: {problems or 'none'}")
    # --8<-- [end:shards]

    # --8<-- [start:dry]
    tried = stvit_cli.dry_run("imagenet21k90", words, model=model, data=output / "shards")
    print(*tried.summary, sep="\n")
    # --8<-- [end:dry]
    if given.dry_run:
        return

    # --8<-- [start:train]
    trained = stvit_cli.train("imagenet21k90", words, model=model, data=output / "shards", output=output / "run")
    tuned = stvit_cli.train(
        "finetune-21k-to-1k", overrides, model=model, data=imagenet, weights=trained.run_dir, output=output / "run-1k"
    )
    print(f"{tuned.metrics['top1']:.1f} % top-1 on {tuned.metrics['num_images']:.0f} images")
    # --8<-- [end:train]


if __name__ == "__main__":
    main()
