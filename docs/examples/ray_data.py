"""Predict a folder of images with Ray Data, on a cluster or on this machine: a row for each image, as Parquet files.

pip install 'ray[data]' stvit
python docs/examples/ray_data.py IMAGES OUTPUT --weights RUN --actors 8 --gpus 1
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import ray

import stvit_cli
from stvit_cli.data.images import decode_image


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """Decode an image where there are CPUs; of a damaged one, keep the reason."""
    content = row.pop("bytes")
    try:
        return row | {"image": np.asarray(decode_image(content, row["path"])), "error": ""}
    except stvit_cli.UserError as error:
        return row | {"image": np.zeros((1, 1, 3), np.uint8), "error": str(error)}


class Predictor:
    """A model in a process of its own, which Ray keeps for many batches."""

    def __init__(self, weights: str) -> None:
        self.model = stvit_cli.load(weights)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return path, class, score and features of each image; ``model.embed`` alone where only features are wanted."""
        images = list(batch["image"])
        classes = [prediction.classes[0] for prediction in self.model.predict(images)]
        is_damaged = batch["error"] != ""
        return {
            "path": batch["path"],
            "class": np.where(is_damaged, "", [found.name for found in classes]),
            "score": np.where(is_damaged, 0.0, [found.probability for found in classes]),
            "embedding": self.model.embed(images),
            "error": batch["error"],
        }


def main() -> None:
    """Read, decode, predict, write: Ray Data runs the stages side by side."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("images", help="a folder, or an address such as s3://bucket/images")
    parser.add_argument("output", help="a folder or an address for the Parquet files")
    parser.add_argument("--weights", required=True, help="a weights file, a run's directory, or a name of `stvit weights list`")
    parser.add_argument("--actors", type=int, default=1, help="processes with a model")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each of them")
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    rows = ray.data.read_binary_files(given.images, include_paths=True).map(decode)
    predicted = rows.map_batches(
        Predictor,
        fn_constructor_args=(given.weights,),
        compute=ray.data.ActorPoolStrategy(size=given.actors),
        batch_size=given.batch_size,
        num_gpus=given.gpus,
    )
    predicted.write_parquet(given.output)


if __name__ == "__main__":
    main()
