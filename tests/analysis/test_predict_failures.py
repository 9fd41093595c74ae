"""One image that cannot be used does not end the predictions of the others; a fault of the program does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from stvit_cli.data.images import UnreadableImageError
from stvit_cli.recipe import SegmentationSection
from stvit_cli.tasks.classification import predict as predict_classification
from stvit_cli.tasks.detection import predict as predict_detection
from stvit_cli.tasks.segmentation import predict as predict_segmentation

CPU = torch.device("cpu")
CLASSIFIER: dict[str, Any] = {"task": "classification", "num_classes": 2, "class_names": ("a", "b"), "image_size": 4}
CLASSIFIER |= {"mean": 0, "std": 1, "crop_pct": 1, "interpolation": "", "in_chans": 3}


def detect(paths: list[Path]) -> Iterator[Any]:
    trained: Any = SimpleNamespace(prepared=lambda *_: None)
    return predict_detection.predict(trained, paths, score_threshold=0.5, device=CPU)


def segment(paths: list[Path]) -> Iterator[Any]:
    info = SimpleNamespace(interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    trained: Any = SimpleNamespace(prepared=lambda *_: None, info=info)
    return predict_segmentation.predict(trained, paths, device=CPU)


@pytest.fixture(params=["detection", "segmentation"])
def predict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that predicts, each image failing with what it is given."""
    module = predict_detection if request.param == "detection" else predict_segmentation
    monkeypatch.setattr(predict_segmentation, "section_of", lambda info: SegmentationSection())

    def run(*errors: Exception | None) -> list[Any]:
        given = iter(errors)

        def predict_one(trained: Any, model: Any, path: Path, *_: Any) -> Any:
            error = next(given)
            if error is not None:
                raise error
            return SimpleNamespace(path=path, error=None)

        monkeypatch.setattr(module, "_predict_one", predict_one)
        paths = [Path(f"{number}.png") for number in range(len(errors))]
        return list(detect(paths) if module is predict_detection else segment(paths))

    return run


def test_bad_images_are_named_and_the_others_predicted(predict: Callable[..., list[Any]]) -> None:
    no_memory = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
    found = predict(UnreadableImageError("0.png: damaged."), MemoryError(), no_memory, None)
    assert [str(result.path) for result in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert found[0].error == "0.png: damaged."
    assert found[3].error is None
    for number in (1, 2):
        assert found[number].error == f"{number}.png: there is not enough memory for an image of its size."


def test_internal_error_is_raised(predict: Callable[..., list[Any]]) -> None:
    with pytest.raises(RuntimeError, match="a fault"):
        predict(RuntimeError("a fault"), None)


def test_a_killed_worker_does_not_end_the_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    parent = os.getpid()

    def transform(image: Image.Image) -> torch.Tensor:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 4, 4)

    monkeypatch.setattr(predict_classification, "eval_transform", lambda *_: transform)
    monkeypatch.setattr(predict_classification, "_WORKERS_FROM", 1)
    info = SimpleNamespace(
        multi_label=False,
        task="classification",
        num_classes=2,
        class_names=("a", "b"),
        image_size=4,
        mean=0,
        std=1,
        crop_pct=1,
        interpolation="",
        in_chans=3,
    )
    trained: Any = SimpleNamespace(info=info, prepared=lambda *_: lambda images: torch.zeros(len(images), 2))
    found = list(predict_classification.predict(trained, paths, top=1, device=CPU, batch_size=4, num_workers=2))
    assert [result.path for result in found] == paths
    assert all(result.error is None for result in found)


def test_a_prediction_says_itself_whether_the_image_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named_so, good = tmp_path / "not finite (NaN or infinite).png", tmp_path / "good.png"
    named_so.write_text("text")
    Image.new("RGB", (4, 4)).save(good)
    monkeypatch.setattr(predict_classification, "eval_transform", lambda *_: lambda image: torch.zeros(3, 4, 4))
    info = SimpleNamespace(
        multi_label=False,
        task="classification",
        num_classes=2,
        class_names=("a", "b"),
        image_size=4,
        mean=0,
        std=1,
        crop_pct=1,
        interpolation="",
        in_chans=3,
    )
    trained: Any = SimpleNamespace(info=info, prepared=lambda *_: lambda images: torch.full((len(images), 2), torch.nan))
    found = list(predict_classification.predict(trained, [named_so, good], top=1, device=CPU))
    assert [(result.error is not None, result.is_unanswered) for result in found] == [(True, False), (True, True)]
