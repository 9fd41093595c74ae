"""Properties of run-length codes: masks are read back equal, and what the check passes pycocotools decodes to the same runs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stvit_cli.data.coco import decode_mask, encode_mask
from stvit_cli.data.coco_annotation import InvalidAnnotationError, normalized

MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return the runs of a mask as COCO defines them: column by column, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def checked(segmentation: dict[str, object], height: int, width: int) -> dict[str, object]:
    annotation = {"bbox": [0, 0, width, height], "iscrowd": 1, "segmentation": segmentation}
    return normalized(annotation, height, width)["segmentation"]


@given(MASKS)
def test_mask_round_trip(mask: NDArray[np.bool_]) -> None:
    encoded = encode_mask(mask)
    assert encoded["counts"].encode() == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    assert coco_mask.area(encoded) == mask.sum()
    np.testing.assert_array_equal(decode_mask(encoded, *mask.shape), mask)


@given(MASKS)
def test_counts_in_a_list_and_in_text_are_the_same_mask(mask: NDArray[np.bool_]) -> None:
    as_list = {"size": list(mask.shape), "counts": run_lengths(mask)}
    for segmentation in (as_list, encode_mask(mask)):
        np.testing.assert_array_equal(decode_mask(checked(segmentation, *mask.shape), *mask.shape), mask)


@given(MASKS, st.data())
def test_damaged_counts_are_refused_or_fill_the_image(mask: NDArray[np.bool_], data: st.DataObject) -> None:
    """pycocotools leaves memory as it was where runs are missing, and writes past the end where there are too many."""
    counts = data.draw(st.text(st.characters(min_codepoint=40, max_codepoint=130), max_size=12) | shortened(encode_mask(mask)))
    try:
        segmentation = checked({"size": list(mask.shape), "counts": counts}, *mask.shape)
    except InvalidAnnotationError:
        return
    decoded = decode_mask(segmentation, *mask.shape)
    assert set(np.unique(decoded)) <= {0, 1}
    assert coco_mask.encode(np.asfortranarray(decoded))["size"] == list(mask.shape)
    assert int(coco_mask.area(segmentation)) == decoded.sum()


def shortened(encoded: dict[str, str]) -> st.SearchStrategy[str]:
    counts = encoded["counts"]
    return st.integers(0, len(counts)).map(lambda length: counts[:length])
