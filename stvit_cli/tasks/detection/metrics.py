"""COCO's twelve metrics for boxes and twelve for masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stvit_cli.data.coco import ground_truth, ignore_without_masks, image_numbers
from stvit_cli.data.coco_index import CocoIndex
from stvit_cli.errors import UserError
from stvit_cli.utils.files import replace_file, require_writable_file, require_writable_folder

METRICS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar_1",
    "ar_10",
    "ar_100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""Names of the metrics (average precision, average recall), in the order of pycocotools."""

Results = list[dict[str, Any]]


def coco_metrics(index: CocoIndex, results: Results, *, masks: bool = True) -> Iterator[tuple[str, float]]:
    """Yield ``box_ap`` ... ``box_ar_large`` and ``mask_ap`` ... ``mask_ar_large``, in percent; -1 without objects of that size.

    The mask metrics ignore objects that have a box alone; see `ignore_without_masks`.

    Args:
        index: the annotation file; all of its images count.
        results: the detections in COCO's result format, see `as_result`.
        masks: whether the detections have masks; without, or without a mask in the file, there are the box metrics alone.
    """
    truth, results = ground_truth(index), _numbered(index, results)
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        if kind == "segm":
            if not (masks and index.has_masks):
                return
            ignore_without_masks(truth)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, _loaded(truth, only(kind, results)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        for name, value in zip(METRICS, evaluation.stats.tolist(), strict=True):
            yield f"{prefix}_{name}", 100 * value if value >= 0 else -1.0


def _numbered(index: CocoIndex, results: Results) -> Results:
    """Return the results with the ids of `ground_truth` instead of those of the file."""
    images = image_numbers(index)
    labels = {category.written_id: label for label, category in enumerate(index.categories, start=1)}
    return [entry | {"image_id": images[entry["image_id"]], "category_id": labels[entry["category_id"]]} for entry in results]


def only(kind: str, results: Results) -> Results:
    """Return the results for boxes (bbox) or masks (segm) only: with both, pycocotools uses the area of the box for the mask."""
    other = "segmentation" if kind == "bbox" else "bbox"
    return [{key: value for key, value in entry.items() if key != other} for entry in results]


def _loaded(truth: COCO, results: Results) -> COCO:
    if results:
        return truth.loadRes(results)
    empty = COCO()  # loadRes fails without results: it reads the format from the first one
    empty.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    empty.createIndex()
    return empty


def require_writable_results(path: Path, *, masks: bool = True) -> None:
    """Find out, by trying, whether `write_results` can write: before the work, not after it. Raises UserError."""
    try:
        require_writable_folder(path.parent)
        for target in results_files(path, masks=masks) if path.parent.is_dir() else ():
            require_writable_file(target)
    except UserError as error:
        raise UserError(f"detection.results_json: {error}") from None


def results_files(path: Path, *, masks: bool = True) -> dict[Path, str]:
    """Return the files of ``detection.results_json``, and the kind of results in each."""
    return {path.with_name(f"{path.stem}.{kind}.json"): kind for kind in ("bbox", "segm")[: 1 + masks]}


def write_results(path: Path, results: Results, *, masks: bool = True) -> list[Path]:
    """Write the results as files for pycocotools: ``x.bbox.json`` and, with masks, ``x.segm.json`` for ``x.json``.

    Raises:
        UserError: they cannot be written.
    """
    written = []
    for target, kind in results_files(path, masks=masks).items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, json.dumps(only(kind, results)).encode())
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {error.strerror} (detection.results_json).") from None
        written.append(target)
    return written


def as_result(
    image_id: Any, category_id: Any, score: float, box: Sequence[float], mask: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a detection in COCO's result format; ``box`` is left, top, right, bottom in pixels."""
    left, top, right, bottom = box
    result = {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": [left, top, right - left, bottom - top],
    }
    return result if mask is None else result | {"segmentation": mask}
