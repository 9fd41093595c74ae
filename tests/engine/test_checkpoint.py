from __future__ import annotations

import errno
import json
import resource
from pathlib import Path

import pytest
import torch

from stvit_cli.engine import checkpoint
from stvit_cli.engine.checkpoint import DamagedError, load_newest, read, save
from stvit_cli.errors import UserError

STATE = {"loss": 0.1 + 0.2, "names": ["a", None]}


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    image = torch.full((2, 3, 4, 4), value).contiguous(memory_format=torch.channels_last)
    return {"model": {"image": image, "count": torch.tensor(7)}, "optimizer": {}}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    save(tmp_path, 12, groups(0.1), STATE, keep=2)
    found = load_newest(tmp_path)
    assert (found.step, found.state, found.skipped_damaged) == (12, STATE, {})
    assert torch.equal(found.tensors["model"]["image"], groups(0.1)["model"]["image"])
    assert found.tensors["model"]["count"].dtype == torch.int64
    assert found.tensors["optimizer"] == {}


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step, groups(step), STATE, keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000010", "step_00000100"]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda folder: flip_a_bit(folder / "model.safetensors"),
    "half a file": lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:200]),
    "a file lost": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "an empty state": lambda folder: (folder / "state.json").write_bytes(b""),
    "a state that is no mapping": lambda folder: (folder / "state.json").write_bytes(b"[]"),
    "another number in the state": lambda folder: (folder / "state.json").write_text(
        json.dumps(json.loads((folder / "state.json").read_text()) | {"step": 19})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, damage: object) -> None:
    save(tmp_path, 10, groups(1), STATE, keep=3)
    newest = save(tmp_path, 20, groups(2), STATE, keep=3)
    damage(newest)  # type: ignore[operator]
    with pytest.raises(DamagedError):
        read(newest)
    found = load_newest(tmp_path)
    assert found.step == 10
    assert list(found.skipped_damaged) == [newest]


def test_all_damaged_or_none_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_newest(tmp_path)
    flip_a_bit(save(tmp_path, 1, groups(1), STATE, keep=3) / "model.safetensors")
    with pytest.raises(UserError, match=r"(?s)is damaged:.step_00000001: model.safetensors is not as it was written"):
        load_newest(tmp_path)


def test_a_checkpoint_that_was_skipped_as_damaged_can_be_written_again(tmp_path: Path) -> None:
    flip_a_bit(save(tmp_path, 1, groups(1), STATE, keep=3) / "model.safetensors")
    save(tmp_path, 1, groups(2), STATE, keep=3)
    assert load_newest(tmp_path).tensors["model"]["image"].max() == 2
    assert (tmp_path / "step_00000001.damaged").is_dir()


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1, groups(1), STATE, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # bytes; a larger write fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"(?s)step_00000002 cannot be written: File too large.*saved before is intact"):
            save(tmp_path, 2, groups(2), STATE, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert load_newest(tmp_path).step == 1


def test_a_directory_that_turned_read_only_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, groups(1), STATE, keep=1)

    def refuse(path: Path, *args: object, **settings: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    # Taking the permission away would not do: the tests may run as root.
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        save(tmp_path, 2, groups(2), STATE, keep=1)
    assert load_newest(tmp_path).step == 1


def test_a_checkpoint_moved_to_another_disk_is_read_through_its_link_and_outlives_it(tmp_path: Path) -> None:
    folder, disk = tmp_path / "checkpoints", tmp_path / "disk"
    moved = save(folder, 10, groups(1), STATE, keep=2).rename(disk)
    (folder / "step_00000010").symlink_to(moved)
    assert load_newest(folder).step == 10
    for step in (20, 30):
        save(folder, step, groups(step), STATE, keep=2)
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step_00000020", "step_00000030"]
    assert not (folder / "step_00000010").is_symlink()
    assert (moved / "state.json").is_file()
