"""Predict a folder of images with Ray Data, on a cluster or on this machine: a row for each image, as Parquet files.

pip install 'ray[data]' stvit
python docs/examples/ray_data.py IMAGES OUTPUT --weights RUN --actors 8 --gpus 1
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pyarrow as pa
import ray

import stvit_cli
from stvit_cli.data.images import decode_image


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """Decode an image where there are CPUs; of a damaged one, keep the reason."""
    content = row.pop("bytes")
    try:
        return row | {"image": np.asarray(decode_image(content, row["path"])), "error": None}
    except stvit_cli.UserError as error:
        return row | {"image": np.zeros((0, 0, 3), np.uint8), "error": str(error)}


class Predictor:
    """A model in a process of its own, which Ray keeps for many batches."""

    def __init__(self, weights: str) -> None:
        self.model = stvit_cli.load(weights)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Return path, class, score and features of each image; ``model.embed`` alone where only features are wanted.

        A damaged image has an error, and null in place of the others.
        """
        images, errors = batch["image"], list(batch["error"])
        rows = [row for row, image in enumerate(images) if image.size]
        names, scores, features = ([None] * len(errors) for _ in range(3))
        if rows:
            readable = [images[row] for row in rows]
            found = zip(rows, self.model.predict(readable), self.model.embed(readable), strict=True)
            for row, prediction, embedding in found:
                names[row], scores[row] = prediction.classes[0].name, prediction.classes[0].probability
                features[row] = embedding
        columns = {
            "path": pa.array(batch["path"], pa.string()),
            "class": pa.array(names, pa.string()),
            "score": pa.array(scores, pa.float32()),
            "embedding": pa.array(features, pa.list_(pa.float32())),
            "error": pa.array([error if isinstance(error, str) else None for error in errors], pa.string()),
        }
        return pa.table(columns)


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
