"""Predictions and embeddings of many images: nothing missing or doubled, whatever ends a run and whoever resumes it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shards import write_tar
from helpers.toy import start
from PIL import Image
from pyarrow import Table, parquet

import stvit_cli
from stvit_cli import UserError, WeightsInfo, create_model, save_weights
from stvit_cli.analysis.prediction import BulkOptions, predict_all
from stvit_cli.analysis.prediction.parts import default_part_size
from stvit_cli.data.inputs import open_inputs
from stvit_cli.errors import Interrupted
from stvit_cli.tasks.bulk import RowsPredictor
from stvit_cli.tasks.detection.predict import Detection, DetectionPrediction
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.spec import Trained

NUM_IMAGES, DAMAGED = 30, 7
SMALL = BulkOptions(top=2, batch_size=3, part_size=4, num_workers=0)


@pytest.fixture(scope="module", autouse=True)
def _unprepared() -> Iterator[None]:
    """The model as it is: to prepare a copy takes longer than these few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stvit_cli.tasks.spec.for_inference", lambda model, *_, **__: model)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of noise in two folders; one is damaged."""
    root = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        path = root / ("a" if number < 12 else "b") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        if number == DAMAGED:
            path.write_bytes(path.read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    torch.manual_seed(0)
    save_weights(
        path, create_model("stvit-nano", 3), WeightsInfo("stvit-nano", num_classes=3, class_names=("x", "y", "z"), image_size=32)
    )
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The last bits depend on the number of threads, which processes side by side have fewer of."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def trained(weights: Path) -> Trained:
    return open_trained(weights)


@pytest.fixture(scope="module")
def whole(trained: Trained, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The rows of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    found = predict_all(trained, [str(folder)], output, SMALL, device="cpu")
    assert (found.num_images, found.num_errors, found.num_parts, found.num_resumed) == (NUM_IMAGES, 1, 8, 0)
    return parquet.read_table(output)


def test_rows_are_those_of_the_single_predictions(weights: Path, folder: Path, whole: Table) -> None:
    paths = [*sorted((folder / "a").iterdir()), *sorted((folder / "b").iterdir())]
    assert whole["index"].to_pylist() == list(range(NUM_IMAGES))
    assert whole["key"].to_pylist() == [str(path.relative_to(folder)) for path in paths]
    assert set(whole["source"].to_pylist()) == {str(folder)}
    alone = stvit_cli.load(weights, device="cpu").predict(paths, top=2)
    for row, single in zip(whole.to_pylist(), alone, strict=True):
        if row["index"] == DAMAGED:
            assert row["error"] is not None
            assert row["class"] is row["score"] is None
            continue
        assert row["error"] is None
        assert row["class"] == [score.name for score in single.classes]
        assert row["class_index"] == [score.index for score in single.classes]
        np.testing.assert_allclose(row["score"], [score.probability for score in single.classes], rtol=1e-4)


def _kill_after(files: int) -> Callable[[int, int], None]:
    return lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done >= 4 * files else None


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_killed_run_is_resumed_by_any_number_of_processes(
    trained: Trained, folder: Path, whole: Table, tmp_path: Path, processes: int
) -> None:
    output = tmp_path / "out"

    def killed() -> None:
        predict_all(trained, [str(folder)], output, SMALL, device="cpu", advance=_kill_after(3))

    assert start(killed, tmp_path / "first")()[0].code == -signal.SIGKILL
    before = {path.name: path.stat().st_ino for path in output.glob("*.parquet")}
    assert 2 <= len(before) <= 3
    assert not json.loads((output / "_manifest.json").read_text())["complete"]
    (output / ".part-000004.parquet.0a1b2c3d.part").write_bytes(b"half of a file")

    def resumed() -> None:
        found = predict_all(trained, [str(folder)], output, SMALL, device="cpu")
        assert found.num_resumed == len(before)

    assert [ended.code for ended in start(resumed, tmp_path / "second", processes)()] == [0] * processes
    assert {path.name: path.stat().st_ino for path in output.glob("*.parquet")}.items() >= before.items()
    assert parquet.read_table(output).equals(whole)
    assert {path.name[:5] for path in output.iterdir()} == {"part-", "_mani"}
    manifest = json.loads((output / "_manifest.json").read_text())
    assert (manifest["complete"], manifest["rows"], manifest["errors"]) == (True, NUM_IMAGES, 1)
    assert sum(part["rows"] for part in manifest["parts"]) == NUM_IMAGES


def test_a_signal_ends_the_run_and_it_is_resumed(trained: Trained, folder: Path, whole: Table, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        predict_all(trained, [str(folder)], tmp_path, SMALL, device="cpu", advance=stop)
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    predict_all(trained, [str(folder)], tmp_path, SMALL, device="cpu")
    assert parquet.read_table(tmp_path).equals(whole)


def test_a_killed_loader_process_loses_no_image(
    trained: Trained, folder: Path, whole: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stvit_cli.analysis.prediction import batches

    parent, decode = os.getpid(), batches.decode_image

    def killed(content: bytes, name: str) -> Image.Image:
        if os.getpid() != parent and name.endswith("13.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(content, name)

    monkeypatch.setattr(batches, "decode_image", killed)
    options = BulkOptions(top=2, batch_size=3, part_size=4, num_workers=1)
    predict_all(trained, [str(folder)], tmp_path, options, device="cpu")
    assert parquet.read_table(tmp_path).equals(whole)


def test_damaged_and_foreign_files_are_made_again(trained: Trained, folder: Path, whole: Table, tmp_path: Path) -> None:
    predict_all(trained, [str(folder)], tmp_path, SMALL, device="cpu")
    files = sorted(tmp_path.glob("*.parquet"))
    files[1].write_bytes(files[1].read_bytes()[:-20])
    files[3].write_bytes(files[2].read_bytes())  # the rows of other images
    (tmp_path / "part-000099.parquet").write_bytes(files[0].read_bytes())  # would double them
    (tmp_path / "merged.parquet").write_bytes(b"of the user")
    assert predict_all(trained, [str(folder)], tmp_path, SMALL, device="cpu").num_resumed == 6
    (tmp_path / "merged.parquet").unlink()  # it is still there
    assert parquet.read_table(tmp_path).equals(whole)


@pytest.mark.parametrize(
    ("options", "sources", "named"),
    [
        (BulkOptions(top=1, part_size=4), None, "top was 2, now 1"),
        (BulkOptions(top=2, part_size=5), None, "part_size was 4, now 5"),
        (BulkOptions(top=2, dtype="fp16"), None, "dtype was fp32, now fp16"),
        (BulkOptions("embeddings"), None, "content was predictions, now embeddings"),
        (BulkOptions(top=2), ["a"], "images was"),
    ],
    ids=["top", "part size", "dtype", "content", "images"],
)
def test_results_of_other_settings_are_not_mixed(
    trained: Trained, folder: Path, tmp_path: Path, options: BulkOptions, sources: list[str] | None, named: str
) -> None:
    predict_all(trained, [str(folder / "b")], tmp_path, SMALL, device="cpu")
    with pytest.raises(UserError, match=named):
        predict_all(trained, [str(folder / name) for name in sources or ["b"]], tmp_path, options, device="cpu")


def test_a_directory_with_other_files_is_refused(trained: Trained, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt; expected a new or empty directory"):
        predict_all(trained, [str(folder)], tmp_path, SMALL, device="cpu")
    with pytest.raises(UserError, match="no such file"):
        predict_all(trained, [str(folder / "c")], tmp_path / "new", SMALL, device="cpu")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_gone_ends_the_run_and_damaged_images_do_not(trained: Trained, tmp_path: Path) -> None:
    listed = tmp_path / "paths.txt"
    listed.write_text("".join(f"{number}.jpg\n" for number in range(8)))
    with pytest.raises(UserError, match=r"None of 4 images in a row could be used; the first: .*0\.jpg: there is no such file"):
        predict_all(trained, [str(listed)], tmp_path / "out", SMALL, device="cpu")
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_text("text")
    found = predict_all(trained, [str(listed)], tmp_path / "out", SMALL, device="cpu")
    assert (found.num_images, found.num_errors) == (8, 8)


def test_outputs_that_are_not_finite_end_the_run(weights: Path, folder: Path, tmp_path: Path) -> None:
    broken = open_trained(weights)
    broken.model.head.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="outputs for it are not finite"):
        predict_all(broken, [str(folder)], tmp_path, SMALL, device="cpu")


def test_embeddings_are_the_features_before_the_classifier(weights: Path, folder: Path, tmp_path: Path) -> None:
    model = stvit_cli.load(weights, device="cpu")
    for dtype in ("fp32", "fp16"):
        found = stvit_cli.embed(model, folder / "b", tmp_path / dtype, dtype=dtype, batch_size=5)
        assert (found.num_images, found.num_files, found.num_errors) == (18, 1, 0)
    full, half = (parquet.read_table(tmp_path / name)["embedding"] for name in ("fp32", "fp16"))
    assert str(half.type) == "list<element: halffloat>"
    features = np.array(full.to_pylist(), np.float32)
    np.testing.assert_allclose(np.array(half.to_pylist(), np.float32), features, atol=2e-3)
    paths = sorted((folder / "b").iterdir())
    np.testing.assert_allclose(model.embed(paths), features, rtol=1e-4, atol=1e-5)
    head = model.model.head
    scores = torch.softmax(torch.from_numpy(features) @ head.weight.T + head.bias, 1).max(1).values
    expected = [prediction.classes[0].probability for prediction in model.predict(paths)]
    np.testing.assert_allclose(scores.detach(), expected, rtol=1e-4)
    assert model.model.num_classes == 3, "the model itself keeps its classifier"


def test_features_beyond_half_precision_are_an_error_of_the_image(weights: Path, folder: Path, tmp_path: Path) -> None:
    model = stvit_cli.load(weights, device="cpu")
    model.model.norm.bias.data.fill_(1e5)
    with pytest.raises(UserError, match="features exceed the range of fp16; write fp32"):
        stvit_cli.embed(model, folder / "b", tmp_path / "half", dtype="fp16")
    assert stvit_cli.embed(model, folder / "b", tmp_path / "full").num_errors == 0


def test_a_backbone_has_embeddings_and_a_detector_has_none(folder: Path, tmp_path: Path, trained: Trained) -> None:
    path = tmp_path / "backbone.safetensors"
    save_weights(path, create_model("stvit-nano", 0), WeightsInfo("stvit-nano", num_classes=0, image_size=32))
    assert stvit_cli.embed(path, folder / "a" / "00.png", tmp_path / "out").num_images == 1
    with pytest.raises(UserError, match="without a classifier"):
        stvit_cli.predict(path, folder, tmp_path / "not")
    detector = Trained(trained.model, WeightsInfo("stvit-nano", task="detection"), trained.path)
    with pytest.raises(UserError, match="a model for detection; embeddings are of classifiers"):
        predict_all(detector, [str(folder)], tmp_path / "not", BulkOptions("embeddings"), device="cpu")


def test_a_list_a_file_and_a_folder_are_joined_in_order(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = tmp_path / "paths.txt"
    listed.write_bytes(b"\xef\xbb\xbf" + os.fsencode(f"{folder}/a/01.png\r\n\n{folder}/a/00.png\n{folder}/a/00.png"))
    alone = str(folder / "b" / "12.png")
    inputs = open_inputs([str(listed), alone, str(folder / "b")])
    assert len(inputs) == 3 + 1 + 18
    assert [inputs.key(i) for i in range(5)] == [*(f"{folder}/a/0{i}.png" for i in (1, 0, 0)), alone, "12.png"]
    assert [inputs.source(i) for i in (0, 2, 3, 4, 21)] == [0, 0, 1, 2, 2]
    assert list(inputs.sources) == [str(listed), "", str(folder / "b")]
    assert inputs.read(1) == (folder / "a" / "00.png").read_bytes()
    assert inputs.read(21) == (folder / "b" / "29.png").read_bytes()
    for outside in (-1, 22):
        with pytest.raises(IndexError):
            inputs.key(outside)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "the list is empty"), (b"a\0b", "not a text file"), (None, "no such file")], ids=str
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    listed = tmp_path / "paths.txt"
    if content is not None:
        listed.write_bytes(content)
    with pytest.raises(UserError, match=said):
        open_inputs([str(listed)])


def test_paths_of_a_list_are_below_its_folder_or_the_current_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (tmp_path / "paths.txt").write_text("a/00.png\n")
    assert open_inputs([str(tmp_path / "paths.txt")]).read(0)
    monkeypatch.chdir(tmp_path)
    (folder / "paths.lst").write_text("a/00.png\n")
    assert open_inputs([str(folder / "paths.lst")]).read(0)


def test_shards_without_images_and_those_of_another_machine_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tar(tmp_path / "a.tar", {"read.me": b""})
    with pytest.raises(UserError, match=r"a\.tar: there is no image in 1 shards"):
        open_inputs([str(tmp_path / "a.tar")])
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x"})
    sent = pickle.dumps(open_inputs([str(tmp_path / "a.tar")]))
    assert len(pickle.loads(sent)) == 1
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "1.jpg": b"y"})
    with pytest.raises(UserError, match="has other shards than the machine of rank 0"):
        pickle.loads(sent)


def test_a_directory_without_locks_is_said(
    trained: Trained, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stvit_cli.engine.run_lock.lock", lambda handle: False)
    said: list[str] = []
    predict_all(trained, [str(folder / "a")], tmp_path, SMALL, device="cpu", say=said.append)
    assert any("has no locks; start no other run in it" in line for line in said)


def test_objects_of_a_detector_are_lists_of_their_image() -> None:
    found = [
        DetectionPrediction(
            Image.new("RGB", (4, 4)), 4, 4, (Detection("cat", 1, 0.9, (0, 1, 2, 3)), Detection("dog", 2, 0.8, (0, 0, 1, 1)))
        ),
        DetectionPrediction(Image.new("RGB", (4, 4)), 4, 4),
        DetectionPrediction(
            Image.new("RGB", (4, 4)), error="image of 4 x 4: there is not enough memory for an image of its size."
        ),
    ]
    columns: Any = {"class": "text", "score": "score", "left": "float", "bottom": "float"}
    result = RowsPredictor(columns, lambda images: iter(found)).finish(found, "name-{}".format)
    assert result.lengths.tolist() == [2, 0, 0]
    assert result.columns == {"class": ["cat", "dog"], "score": [0.9, 0.8], "left": [0, 0], "bottom": [3, 1]}
    assert result.errors == [None, None, "name-2: there is not enough memory for an image of its size."]


def test_the_number_of_files_stays_near_a_thousand() -> None:
    for num_images in (1, 255, 257, 50_000, 1_281_167, 14_197_122, 10**9):
        size = default_part_size(num_images)
        assert 256 <= size <= 16384
        assert size % 256 == 0
        assert num_images / size <= 1000 or size == 16384


def test_the_commands_write_and_resume(stvit, weights: Path, folder: Path, tmp_path: Path) -> None:
    words = ["predict", folder, "--weights", weights, "--top", "2", "--parquet", tmp_path / "out", "--json", "-"]
    ended = stvit(*words)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["num_images"] == NUM_IMAGES
    assert f"{NUM_IMAGES} images in 1 Parquet files" in ended.err
    assert "1 images could not be read or answered" in ended.err
    assert json.loads(stvit(*words).out)["num_resumed"] == 1
    again = stvit("predict", folder, "--weights", weights, "--parquet", tmp_path / "out")
    assert again.code == 2
    assert "top was 2, now 1" in again.err
    assert "or another directory: --parquet DIR" in again.err
    alone = folder / "a" / "00.png"
    assert stvit("embed", alone, "--weights", weights, "--output", tmp_path / "features", "--dtype", "fp16").code == 0
    assert parquet.read_table(tmp_path / "features")["key"].to_pylist() == [str(alone)]
    for words in (["--csv", "x.csv"], ["--output", "drawn"]):
        assert (
            "--parquet writes neither" in stvit("predict", folder, "--weights", weights, "--parquet", tmp_path / "n", *words).err
        )
    assert "add --parquet DIR" in stvit("predict", "paths.txt", "--weights", weights).err
    assert "add --parquet DIR" in stvit("predict", folder, "--weights", weights, "--dtype", "fp16").err


def test_shards_have_the_rows_of_their_files(
    trained: Trained, folder: Path, whole: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    for number, name in enumerate("ab"):
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as tar:
            for path in sorted((folder / name).iterdir()):
                tar.add(path, path.name)

    def by_two() -> None:
        predict_all(trained, [str(tmp_path / "shards")], tmp_path / "out", SMALL, device="cpu")

    assert [ended.code for ended in start(by_two, tmp_path / "processes", 2)()] == [0, 0]
    rows = parquet.read_table(tmp_path / "out")
    assert rows["key"].to_pylist() == [f"{number:02}" for number in range(NUM_IMAGES)]
    assert [Path(source).name for source in rows["source"].to_pylist()] == ["0.tar"] * 12 + ["1.tar"] * 18
    assert rows.select(["class", "class_index", "score"]).equals(whole.select(["class", "class_index", "score"]))
    assert rows["error"].is_valid().to_pylist() == whole["error"].is_valid().to_pylist()
