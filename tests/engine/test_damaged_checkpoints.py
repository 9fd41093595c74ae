"""A checkpoint whose checksums are right but whose content is not what a run needs is quarantined, and the older one is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import toy
from torch import Tensor

from stvit_cli import engine
from stvit_cli.engine import checkpoint
from stvit_cli.engine.branch import Branch
from stvit_cli.errors import UserError

Content = dict[str, Any]
Change = Callable[[Content, Path], None]


def rewrite(folder: Path, change: Change) -> None:
    """Change the content of a checkpoint's ``state.json``, or its files, and make all checksums right again."""
    content = json.loads((folder / "state.json").read_text())
    content.pop("sha256")
    change(content, folder)
    for name, entry in content["files"].items() if isinstance(content.get("files"), dict) else ():
        path = folder / name if "\0" not in name else folder
        if isinstance(entry, dict) and "sha256" in entry and path.is_file():
            entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(content | {"sha256": digest}))


def put(*keys: str, value: Any) -> Change:
    def change(content: Content, folder: Path) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def drop(*keys: str) -> Change:
    def change(content: Content, folder: Path) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def tensors(group: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    def rewritten(content: Content, folder: Path) -> None:
        path = folder / f"{group}.safetensors"
        path.write_bytes(safetensors.torch.save(change(safetensors.torch.load(path.read_bytes()))))
        content["tensors"][group] = len(safetensors.torch.load(path.read_bytes()))

    return rewritten


def uncounted(change: Change) -> Change:
    """As version 0.1.0 wrote it: without the numbers of tensors."""

    def changed(content: Content, folder: Path) -> None:
        change(content, folder)
        del content["tensors"]

    return changed


def lose_a_parameter(content: Content, folder: Path) -> None:
    """Take all of one parameter out of the optimizer's file: what is left is complete by itself."""
    path = folder / "optimizer.safetensors"
    loaded = safetensors.torch.load(path.read_bytes())
    path.write_bytes(safetensors.torch.save({k: v for k, v in loaded.items() if not k.startswith("0.weight/")}))


def named_outside(name: str) -> Change:
    """List a file that is there, with the right checksum, but not in the folder."""

    def change(content: Content, folder: Path) -> None:
        outside = folder.parent.parent / "outside.safetensors"
        shutil.copy(folder / "ema.safetensors", outside)
        data = outside.read_bytes()
        content["files"][name.format(outside=outside)] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    return change


def link_outside(content: Content, folder: Path) -> None:
    outside = folder.parent.parent / "outside.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside)


def link_within(content: Content, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors").symlink_to("other.safetensors")


def pipe(content: Content, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


TAMPERED: dict[str, Change] = {
    "no format": drop("format"),
    "a format that is text": put("format", value="1"),
    "no step": drop("step"),
    "a step that is text": put("step", value="20"),
    "another step than the folder's": put("step", value=19),
    "a step below zero": put("step", value=-20),
    "no files": drop("files"),
    "files as a list": put("files", value=["model.safetensors"]),
    "a file without checksum": drop("files", "model.safetensors", "sha256"),
    "a file described by text": put("files", "model.safetensors", value="whole"),
    "no model among the files": drop("files", "model.safetensors"),
    "no optimizer among the files": drop("files", "optimizer.safetensors"),
    "no moving average among the files": drop("files", "ema.safetensors"),
    "a file in the folder above": named_outside("../../outside.safetensors"),
    "a file with an absolute name": named_outside("{outside}"),
    "a file whose name holds a NUL": named_outside("outside\0.safetensors"),
    "a file that is a link to elsewhere": link_outside,
    "a file that is a link within its folder": link_within,
    "a file that is a pipe": pipe,
    "no state": drop("state"),
    "a state that is a list": put("state", value=[]),
    "no run": drop("state", "run"),
    "a run that is null": put("state", "run", value=None),
    "a run without its step": drop("state", "run", "step"),
    "a run of another step": put("state", "run", "step", value=4),
    "a run whose step is text": put("state", "run", "step", value="20"),
    "a run whose step is a fraction": put("state", "run", "step", value=20.0),
    "metrics that are null": put("state", "run", "metrics", value=None),
    "metrics that are text": put("state", "run", "metrics", "top1", value="high"),
    "a best evaluation that is a list": put("state", "run", "best", value=[1]),
    "a best evaluation without metrics": drop("state", "run", "best", "metrics"),
    "a best evaluation without its main metric": drop("state", "run", "best", "metrics", "top1"),
    "losses that are text": put("state", "run", "window", value={"loss": "low"}),
    "seconds below zero": put("state", "run", "seconds", value=-1.0),
    "no length of the metrics": drop("state", "metrics_bytes"),
    "a length of the metrics that is text": put("state", "metrics_bytes", value="all"),
    "a length of the metrics below zero": put("state", "metrics_bytes", value=-5),
    "no micro-batch size": drop("state", "micro_batch_size"),
    "a micro-batch size that is text": put("state", "micro_batch_size", value="2"),
    "kernels that are text": put("state", "kernels", value="yes"),
    "no scaler": drop("state", "scaler"),
    "a scaler that is a list": put("state", "scaler", value=[]),
    "no fingerprint": drop("state", "fingerprint"),
    "a fingerprint that is text": put("state", "fingerprint", value="same"),
    "a fingerprint without the number of samples": drop("state", "fingerprint", "num_samples"),
    "a number of samples that is text": put("state", "fingerprint", "num_samples", value="many"),
    "a model without a tensor": tensors("model", lambda found: {k: v for k, v in found.items() if k != "0.bias"}),
    "a model with a tensor too many": tensors("model", lambda found: found | {"9.bias": torch.zeros(2)}),
    "a model of another shape": tensors("model", lambda found: found | {"0.bias": torch.zeros(17)}),
    "a model of whole numbers": tensors("model", lambda found: found | {"0.bias": torch.zeros(16, dtype=torch.int64)}),
    "a model that is empty": tensors("model", lambda found: {}),
    "a moving average without a tensor": tensors("ema", lambda found: {k: v for k, v in found.items() if k != "0.bias"}),
    "an optimizer without a moment": tensors("optimizer", lambda f: {k: v for k, v in f.items() if k != "0.weight/exp_avg"}),
    "an optimizer without a count": uncounted(
        tensors("optimizer", lambda f: {k: v for k, v in f.items() if k != "0.weight/step"})
    ),
    "an optimizer without a parameter": lose_a_parameter,
    "an optimizer of another shape": tensors("optimizer", lambda f: f | {"0.weight/exp_avg": torch.zeros(3)}),
    "an optimizer of another model": tensors("optimizer", lambda f: f | {"9.weight/exp_avg": torch.zeros(3)}),
    "numbers of tensors that are text": put("tensors", "model", value="all"),
}


@pytest.fixture(scope="module")
def last_two(unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run: 20 steps, with checkpoints of steps 18 and 20."""
    assert [path.name for path in checkpoint.checkpoints(unbroken / "checkpoints")] == ["step_00000018", "step_00000020"]
    return unbroken


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_checkpoint_is_quarantined_and_the_older_one_used(last_two: Path, tmp_path: Path, change: Change) -> None:
    run_dir = shutil.copytree(last_two, tmp_path / "run")
    newest = run_dir / "checkpoints" / "step_00000020"
    rewrite(newest, change)

    def resume() -> None:
        engine.fit(toy.ToyTask(norm=True), toy.recipe(), run_dir, resume=True)

    (ended,) = toy.start(resume, tmp_path)()
    assert ended.code == 0, ended.message
    assert newest.with_name("step_00000020.damaged").is_dir()
    toy.assert_same_outcome(run_dir, last_two)


def test_changes_of_the_test_are_what_makes_them_damaged(last_two: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(last_two, tmp_path / "run")
    rewrite(run_dir / "checkpoints" / "step_00000020", uncounted(lambda content, folder: None))
    (ended,) = toy.start(lambda: engine.fit(toy.ToyTask(norm=True), toy.recipe(), run_dir, resume=True), tmp_path)()
    assert ended.code == 0
    assert not (run_dir / "checkpoints" / "step_00000020.damaged").exists()


def test_keys_of_a_newer_version_do_no_harm(last_two: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(last_two, tmp_path / "run")

    def add(content: Content, folder: Path) -> None:
        for part in (content, content["state"], content["state"]["run"], content["state"]["fingerprint"]):
            part["new"] = {"a": [1]}

    rewrite(run_dir / "checkpoints" / "step_00000020", add)
    (ended,) = toy.start(lambda: engine.fit(toy.ToyTask(norm=True), toy.recipe(), run_dir, resume=True), tmp_path)()
    assert ended.code == 0
    assert not (run_dir / "checkpoints" / "step_00000020.damaged").exists()


def test_other_data_are_not_taken_for_damage(last_two: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(last_two, tmp_path / "run")
    for path in checkpoint.checkpoints(run_dir / "checkpoints"):
        rewrite(path, put("state", "fingerprint", "num_classes", value=9))
        rewrite(path, tensors("model", lambda found: found | {"4.weight": torch.zeros(9, 16)}))
    (ended,) = toy.start(lambda: engine.fit(toy.ToyTask(norm=True), toy.recipe(), run_dir, resume=True), tmp_path)()
    assert ended.code == 2
    assert "other data: num_classes was 9, now it is 7" in ended.message
    assert len(checkpoint.checkpoints(run_dir / "checkpoints")) == 2


def test_all_tampered_is_said_in_a_few_lines(last_two: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(last_two, tmp_path / "run")
    for path in checkpoint.checkpoints(run_dir / "checkpoints"):
        rewrite(path, drop("state", "run", "best", "metrics"))
    (ended,) = toy.start(lambda: engine.fit(toy.ToyTask(norm=True), toy.recipe(), run_dir, resume=True), tmp_path)()
    assert ended.code == 2
    assert len(ended.message.splitlines()) == 3
    assert "step_00000018: run.best.metrics is missing" in ended.message


@pytest.mark.parametrize(
    "kind",
    ["no run", "a run whose step is text", "no model among the files", "an optimizer without a moment", "no fingerprint"],
)
def test_a_branch_from_a_tampered_checkpoint_is_refused(last_two: Path, tmp_path: Path, kind: str) -> None:
    run_dir = shutil.copytree(last_two, tmp_path / "run")
    assert Branch(run_dir, 20).read().step == 20
    rewrite(run_dir / "checkpoints" / "step_00000020", TAMPERED[kind])
    with pytest.raises(UserError, match="step_00000020 is damaged"):
        Branch(run_dir, 20).read()


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "null", '{"sha256": null}', "\xff", '{"sha256": "' + "9" * 10**5])
def test_a_state_that_is_no_json_of_ours_is_damaged(tmp_path: Path, text: str) -> None:
    folder = checkpoint.save(tmp_path, 1, {"model": {"a": torch.zeros(1)}}, {}, keep=2)
    (folder / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.read(folder)


def test_files_that_are_called_like_checkpoints_are_left_alone(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"model": {}}, {}, keep=2)
    (tmp_path / ("step_" + "9" * 200)).mkdir()
    (tmp_path / "step_00000009").write_text("notes")
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000001"]
