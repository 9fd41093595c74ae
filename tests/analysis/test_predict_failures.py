"""One image that cannot be used does not end the predictions of the others; a fault of the program does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stvit_cli.data.images import UnreadableImageError
from stvit_cli.tasks.detection import predict as predict_detection
from stvit_cli.tasks.segmentation import predict as predict_segmentation

CPU = torch.device("cpu")


def detect(paths: list[Path]) -> Iterator[Any]:
    trained: Any = SimpleNamespace(model=None)
    return predict_detection.predict(trained, paths, score_threshold=0.5, device=CPU)


def segment(paths: list[Path]) -> Iterator[Any]:
    trained: Any = SimpleNamespace(model=None, info=SimpleNamespace(interpolation="", mean=(), std=()))
    return predict_segmentation.predict(trained, paths, device=CPU)


@pytest.fixture(params=["detection", "segmentation"])
def predict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that predicts, each image failing with what it is given."""
    module = predict_detection if request.param == "detection" else predict_segmentation
    monkeypatch.setattr(module, "for_inference", lambda model, device: model)
    monkeypatch.setattr(predict_segmentation, "section_of", lambda info: None)

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


def test_bad_images_are_named_and_the_others_answered(predict: Callable[..., list[Any]]) -> None:
    no_memory = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
    found = predict(UnreadableImageError("0.png: damaged."), MemoryError(), no_memory, None)
    assert [str(result.path) for result in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert found[0].error == "0.png: damaged."
    assert found[3].error is None
    for number in (1, 2):
        assert found[number].error == f"{number}.png: there is not enough memory for an image of its size."


def test_a_fault_of_the_program_is_raised(predict: Callable[..., list[Any]]) -> None:
    with pytest.raises(RuntimeError, match="a fault"):
        predict(RuntimeError("a fault"), None)
