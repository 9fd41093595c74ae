"""Files with one fault each, in the working directory: what the commands of the message snapshot read."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from stvit_cli import create_model
from stvit_cli.models.weights import WeightsInfo, save_weights

SAVED_RUN = Path(__file__).parents[1] / "golden" / "saved_by_0_1" / "run.tar.xz"

RECIPES = {
    "list": "- quickstart\n",
    "empty": "",
    "text": "quickstart\n",
    "typed": "schedule:\n  epochs: many\n  warmup_epochs: 1.5\noptim: {lr: fast}\n",
    "unknown": "schedule:\n  epoch: 3\noptm:\n  lr: 1\n",
    "doubled": "schedule:\n  epochs: 3\n  epochs: 4\n",
    "tab": "schedule:\n\tepochs: 3\n",
    "broken": "schedule: [1, 2\n",
    "curly": "description: \u201cmine\u201d\n",
    "spaced": "schedule:\n\u00a0 epochs: 3\n",
    "anchor": "schedule: &a {epochs: 3}\n",
    "tagged": "schedule: !!python/object {epochs: 3}\n",
    "circle": "base: circle.yaml\n",
    "baseless": "base: nowhere.yaml\n",
    "based-on-list": "base: [quickstart]\n",
}


def write_all() -> None:
    """Write every file that the commands name."""
    write_recipes()
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    _images()
    write_image_folders()
    _weights()
    _runs()
    _coco()
    _label_maps()


def write_recipes() -> None:
    for name, text in RECIPES.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    Path("latin.yaml").write_bytes(b"description: caf\xe9\n")
    Path("folder.yaml").mkdir()


def _noise(path: Path, height: int = 32, width: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def _images() -> None:
    _noise(Path("good.png"))
    content = Path("good.png").read_bytes()
    Path("text.jpg").write_text("this is text")
    Path("zero.png").write_bytes(b"")
    Path("truncated.png").write_bytes(content[:-40])
    Path("dangling.png").symlink_to("nowhere.png")
    Image.new("L", (1, 20_000)).save("thin.png")


def write_image_folders() -> None:
    Path("file").write_text("mine")
    Path("empty").mkdir()
    for name in ("train/cat", "train/dog", "val/cat", "val/dgo"):
        for number in range(2):
            _noise(Path("differing") / name / f"{number}.png")
    for name in ("train/cat", "val/cat"):
        _noise(Path("hollow") / name / "0.png")
    Path("hollow/train/dog").mkdir()
    Path("hollow/val/dog").mkdir()
    for number in range(2):
        _noise(Path("one-class/cat") / f"{number}.png")
        _noise(Path("flat") / f"{number}.png")
    for name in ("cat", "dog"):
        _noise(Path("single") / name / "0.png")
        _noise(Path("no-val/train") / name / "0.png")
        _noise(Path("no-train/val") / name / "0.png")
        for number in range(5):
            _noise(Path("two-classes") / name / f"{number}.png")
    _noise(Path("other-classes/cat/0.png"))
    _noise(Path("other-classes/horse/0.png"))


def _weights() -> None:
    torch.manual_seed(0)
    info = WeightsInfo("stvit-nano", num_classes=2, class_names=("cat", "dog"), image_size=32)
    save_weights("good.safetensors", create_model("stvit-nano", 2), info)
    content = Path("good.safetensors").read_bytes()
    Path("truncated.safetensors").write_bytes(content[: len(content) // 2])
    Path("damaged.safetensors").write_bytes(content[:-8] + bytes(8))
    Path("zero.safetensors").write_bytes(b"")
    Path("zero.pth").write_bytes(b"")
    Path("text.pth").write_text("not weights")
    torch.save({"model": create_model("stvit-nano", 2).state_dict()}, "nano.pth")
    torch.save({"model": {"a": torch.zeros(2)}, "model_ema": {"a": torch.zeros(2)}}, "foreign.pth")
    torch.save({"model": Path("code")}, "code.pth")
    state_dict = create_model("stvit-nano", 2).state_dict()
    save_file(state_dict, "undescribed.safetensors")
    described: dict[str, Any] = {"model": "stvit-nano", "num_classes": 2, "class_names": ["cat", "dog"], "image_size": 32}
    for name, change in (("3-names", {"num_classes": 3}), ("no-model", {"model": "stvit-x"}), ("huge", {"image_size": 10**9})):
        save_file(state_dict, f"{name}.safetensors", metadata={"stvit": json.dumps(described | change)})
    del state_dict["head.weight"]
    save_file(state_dict, "incomplete.safetensors", metadata={"stvit": json.dumps(described)})
    save_weights("backbone.safetensors", create_model("stvit-nano", 0), WeightsInfo("stvit-nano", num_classes=0, image_size=32))


def _runs() -> None:
    with tarfile.open(SAVED_RUN) as archive:
        archive.extractall("run", filter="data")
    shutil.copytree("run", "run-without-weights")
    for path in Path("run-without-weights").glob("*.safetensors"):
        path.unlink()
    shutil.copytree("run", "run-without-checkpoints")
    shutil.rmtree("run-without-checkpoints/checkpoints")
    shutil.copytree("run", "run-damaged")
    for path in Path("run-damaged/checkpoints").glob("*/*"):
        path.write_bytes(b"")


_BOX = {"bbox": [10, 5, 10, 10], "segmentation": [[10, 5, 20, 5, 20, 15, 10, 15]], "iscrowd": 0, "area": 100}
COCO: dict[str, dict[str, Any]] = {
    "no-bbox": {"bbox": None},
    "short-bbox": {"bbox": [1, 2, 3]},
    "text-in-bbox": {"bbox": [1, 2, "3", 4]},
    "outside": {"bbox": [400, 5, 10, 10]},
    "crowd-of-2": {"iscrowd": 2},
    "negative-area": {"area": -4},
    "no-polygon": {"segmentation": [[10, 5, 20, 5]]},
    "far-polygon": {"segmentation": [[10, 5, 20, 5, 1e9, 15]]},
    "mask-outside": {"segmentation": [[100, 50, 120, 50, 120, 60]]},
    "other-mask-size": {"segmentation": {"size": [3, 4], "counts": [12]}},
    "few-runs": {"segmentation": {"size": [30, 40], "counts": [100]}},
    "no-such-image": {"image_id": 99},
    "no-such-category": {"category_id": 99},
}
"""By folder, the fields of its one annotation that are wrong."""


def coco_content(**fields: Any) -> dict[str, Any]:
    return {
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "images": [{"id": 70, "file_name": "70.png", "height": 30, "width": 40}],
        "annotations": [{"id": 1, "image_id": 70, "category_id": 3} | _BOX | fields],
    }


def _coco() -> None:
    contents: dict[str, Any] = {name: coco_content(**fields) for name, fields in COCO.items()}
    contents["list"] = []
    contents["no-categories"] = coco_content() | {"categories": []}
    contents["no-images"] = coco_content() | {"images": []}
    contents["no-annotations"] = coco_content() | {"annotations": []}
    contents["same-name-twice"] = coco_content() | {"categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "cat"}]}
    contents["wide-image"] = coco_content()
    contents["wide-image"]["images"][0]["width"] = "40"
    contents["another-size"] = coco_content()
    contents["another-size"]["images"][0]["width"] = 41
    contents["escaping"] = coco_content()
    contents["escaping"]["images"][0]["file_name"] = "../../70.png"
    for name, content in contents.items():
        _coco_tree(Path("coco") / name, json.dumps(content))
    _coco_tree(Path("coco/no-json"), "not JSON")
    _coco_tree(Path("coco/no-files"), json.dumps(coco_content()))
    shutil.rmtree("coco/no-files/train2017")


def _coco_tree(root: Path, text: str) -> None:
    for split in ("train2017", "val2017"):
        _noise(root / split / "70.png", 30, 40)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(text)


def _label_maps() -> None:
    numbers = np.ones((30, 40), np.uint8)
    maps = {
        "too-large-number": np.where(np.arange(40) == 7, 200, numbers).astype(np.uint8),
        "other-size": numbers[:20],
        "colours": np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8),
        "missing": None,
    }
    for name, label_map in maps.items():
        for split in ("training", "validation"):
            _noise(Path("maps") / name / "images" / split / "a.jpg", 30, 40)
            folder = Path("maps") / name / "annotations" / split
            folder.mkdir(parents=True)
            if label_map is not None:
                Image.fromarray(label_map).save(folder / "a.png")
    _noise(Path("maps/unpaired/images/training/a.jpg"), 30, 40)
