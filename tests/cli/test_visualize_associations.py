"""``stvit visualize-associations`` on images of every kind, and on files that are no images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stvit_cli
from stvit_cli.models.weights.file import WeightsInfo, save_weights

PHOTOGRAPH = Path(__file__).parents[1] / "images" / "coffee.jpg"
QUICK = ("--model", "stvit-nano", "--image-size", "64", "--layers", "stage1")


def images_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_photograph_with_every_output(stvit, tmp_path: Path) -> None:
    labels = np.zeros((320, 480), dtype=np.uint8)
    labels[100:, 200:] = 5
    Image.fromarray(labels).save(tmp_path / "labels.png")
    ended = stvit(
        *("visualize-associations", PHOTOGRAPH, "--model", "stvit-nano", "--image-size", "96", "--output", tmp_path / "out"),
        *("--point", "240,160", "--point", "0,319", "--html", "--arrays", tmp_path / "out.npz"),
        *("--labels", tmp_path / "labels.png", "--json", "-"),
    )
    assert ended.code == 0, ended.err
    assert "stvit-nano is UNTRAINED" in ended.err
    points = {f"point{number}-stage{stage}.png" for number in (1, 2) for stage in (1, 2, 3, 4)}
    single = {"stage1.block1.png", "stage2.block1.png", "stage2.block2.png"}
    assert images_of(tmp_path / "out" / "coffee") == {"overview.png", "comparison.png", "index.html"} | single | points
    written = json.loads(ended.out)
    assert {Path(item["file"]).name for item in written} == images_of(tmp_path / "out" / "coffee") | {"out.npz"}
    assert all(Path(item["file"]).is_file() and item["image"] == str(PHOTOGRAPH) for item in written)
    for name in images_of(tmp_path / "out" / "coffee") - {"index.html"}:
        with Image.open(tmp_path / "out" / "coffee" / name) as image:
            assert min(image.size) > 400, name
    (cuts,) = (item["cuts"] for item in written if "cuts" in item)
    assert [cut["name"] for cut in cuts if cut["name"] not in ("regular grid", "SLIC")] == [name[:-4] for name in sorted(single)]
    assert "regular grid" in {cut["name"] for cut in cuts}
    assert all(0 <= cut[key] <= 1 for cut in cuts for key in ("boundary_share", "boundary_recall", "accuracy"))
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["stage2.block1.label_map"].shape == (320, 480)
        assert arrays["points"].tolist() == [[240, 160], [0, 319]]


def test_model_and_size_come_from_the_weights_file(stvit, tmp_path: Path) -> None:
    model = stvit_cli.create_model("stvit-nano", num_classes=3)
    save_weights(tmp_path / "best.safetensors", model, WeightsInfo("stvit-nano", num_classes=3, image_size=48))
    command = ("visualize-associations", PHOTOGRAPH, "--layers", "stage2.block2", "--output", tmp_path / "out")
    ended = stvit(*command, "--weights", tmp_path, "--arrays", tmp_path / "out.npz")
    assert ended.code == 0, ended.err
    assert "UNTRAINED" not in ended.out + ended.err
    assert images_of(tmp_path / "out" / "coffee") == {"overview.png", "stage2.block2.png"}
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["input_size"].tolist() == [48, 72]
    ended = stvit(*command, "--weights", tmp_path / "best.safetensors", "--model", "stvit-s")
    assert ended.code == 2
    assert "stvit-nano" in ended.err


def test_images_of_every_mode_and_shape(stvit, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    images = {
        "turned.jpg": (Image.fromarray(noise[..., :3]), {"exif": exif}, (90, 60)),
        "transparent.png": (Image.fromarray(noise), {}, (60, 90)),
        "grey.png": (Image.fromarray(noise[..., 0]), {}, (60, 90)),
        "moving.gif": (Image.fromarray(noise[..., 0]), {"save_all": True, "append_images": [Image.new("L", (90, 60))]}, (60, 90)),
        "narrow.png": (Image.fromarray(noise[:2].repeat(150, 1)[..., :3]), {}, (2, 13500)),
        "tiny.png": (Image.fromarray(noise[:1, :1, :3]), {}, (1, 1)),
    }
    for name, (image, options, size) in images.items():
        image.save(tmp_path / name, **options)
        ended = stvit("visualize-associations", tmp_path / name, *QUICK, "--output", tmp_path, "--arrays", tmp_path / "out.npz")
        assert ended.code == 0, f"{name}: {ended.err}"
        with np.load(tmp_path / "out.npz") as arrays:
            assert arrays["stage1.block1.label_map"].shape == size, name


def test_large_photograph_with_exif_orientation(stvit, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    with Image.open(PHOTOGRAPH) as image:
        image.resize((4000, 3000)).save(tmp_path / "camera.jpg", exif=exif)
    ended = stvit("visualize-associations", tmp_path / "camera.jpg", *QUICK, "--point", "2999,3999", "--output", tmp_path)
    assert ended.code == 0, ended.err
    assert "overview.png" in images_of(tmp_path / "camera")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--point", "480,10"), "X goes from 0 to 479, Y from 0 to 319"),
        (("--point", "10"), "expected two whole numbers"),
        (("--layers", "stage9"), "no layer 'stage9'"),
        (("--keep-size", "--image-size", "64"), "exclude each other"),
        (("--weights", "no-such-file.safetensors"), "no-such-file.safetensors"),
        (("--model", "stvit-x"), "stvit-x"),
        (("--labels", "no-such-map.png"), "there is no such file"),
        (("--labels", str(PHOTOGRAPH)), "not an image in a lossless format"),
        (("--layers", "stage3", "--labels", "MAP"), "no super tokens to compare"),
        ((str(PHOTOGRAPH), "--arrays", "out.npz"), "is for one image, 2 were given"),
        (("--arrays", str(PHOTOGRAPH / "out.npz")), "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused(stvit, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    Image.new("L", (480, 320)).save(tmp_path / "map.png")
    given = [str(tmp_path / "map.png") if argument == "MAP" else argument for argument in arguments]
    model = () if {"--model", "--weights"} & set(arguments) else ("--model", "stvit-nano")
    ended = stvit("visualize-associations", PHOTOGRAPH, *model, *given, "--output", tmp_path / "out")
    assert ended.code == 2
    assert expected in ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert not (tmp_path / "out").exists()


def test_unreadable_images_are_named_and_the_others_visualized(stvit, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "truncated.jpg").write_bytes(PHOTOGRAPH.read_bytes()[:9000])
    names = ("text.jpg", "empty.png", "truncated.jpg", "missing.jpg")
    ended = stvit(
        "visualize-associations", *(tmp_path / name for name in names), PHOTOGRAPH, *QUICK, "--output", tmp_path / "out"
    )
    assert ended.code == 2
    assert "4 of 5 images could not be shown" in ended.err
    assert all(name in ended.err for name in names)
    assert images_of(tmp_path / "out") == {"coffee"}


def test_images_of_the_same_name_get_separate_folders(stvit, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 40), folder and "teal").save(tmp_path / folder / "same.png")
    ended = stvit(
        "visualize-associations", tmp_path / "a/same.png", tmp_path / "b/same.png", *QUICK, "--output", tmp_path / "out"
    )
    assert ended.code == 0, ended.err
    assert images_of(tmp_path / "out") == {"same", "same-2"}


def test_unwritable_folder_is_refused(stvit, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = stvit("visualize-associations", PHOTOGRAPH, *QUICK, "--output", tmp_path / "file")
    assert ended.code == 2
    assert "cannot be written" in ended.err


def test_comparison_without_scikit_image_skips_slic(stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    Image.fromarray(np.eye(320, 480, dtype=np.uint8)).save(tmp_path / "map.png")
    ended = stvit(
        "visualize-associations", PHOTOGRAPH, *QUICK, "--labels", tmp_path / "map.png", "--output", tmp_path, "--json", "-"
    )
    assert ended.code == 0, ended.err
    assert "SLIC is left out" in ended.err
    (cuts,) = (item["cuts"] for item in json.loads(ended.out) if "cuts" in item)
    assert {cut["name"] for cut in cuts} == {"stage1.block1", "regular grid"}


def test_random_weights_are_reproducible(stvit, tmp_path: Path) -> None:
    found = []
    for number in range(2):
        stvit("visualize-associations", PHOTOGRAPH, *QUICK, "--output", tmp_path, "--arrays", tmp_path / f"{number}.npz")
        with np.load(tmp_path / f"{number}.npz") as arrays:
            found.append(arrays["stage1.block1.association"])
    np.testing.assert_array_equal(*found)
