"""A run's model card, and the way to the Hugging Face Hub and back, against a Hub of this machine."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from conftest import Stvit
from helpers.hub_stub import TOKEN, Hub, hub
from huggingface_hub import ModelCard, constants

import stvit_cli
from stvit_cli import WeightsInfo, create_model, save_weights
from stvit_cli.analysis.hub_folder import write_hub_folder
from stvit_cli.analysis.model_card import card_text, write_card
from stvit_cli.models.weights.hub import require_repo_name
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import create_from


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of this machine, with a token for it and an empty cache."""
    with hub() as server:
        point_at(server.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As HF_ENDPOINT does, which is read when the library is imported.
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def photo(image_folder: Path) -> Path:
    return image_folder / "val" / "red" / "0.png"


def test_a_run_ends_with_a_card_that_the_hub_reads(short_run: Path, image_folder: Path, the_hub: Hub) -> None:
    card = ModelCard.load(short_run / "README.md")
    card.validate()  # by the stub, which looks at the licence alone
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "stvit"
    assert {"timm", "stvit"} <= set(card.data.tags)
    assert card.data.license is None
    report = json.loads((short_run.parent / "run.json").read_text())
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["top-1 (%)"] == pytest.approx(report["top1"], abs=1e-4)
    assert card.data.eval_results[0].dataset_name == "own images, validation"
    for expected in (
        'stvit_cli.load("hf-hub:OWNER/NAME")',
        'timm.create_model("hf-hub:OWNER/NAME", pretrained=True)',
        "Classes: blue, red.",
        "16 training images, 6 validation images",
        "Not stated. Whoever publishes these weights states it",
        "global_batch_size: 8",
    ):
        assert expected in card.text, expected
    for private in (str(image_folder), str(short_run), str(Path.home()), image_folder.name, socket.gethostname()):
        assert private not in (short_run / "README.md").read_text()


def test_push_and_back(short_run: Path, image_folder: Path, the_hub: Hub, stvit: Stvit, tmp_path: Path) -> None:
    ended = stvit("push", short_run, "someone/flowers", "--private", "--json", tmp_path / "push.json")
    assert ended.code == 0, ended.err
    assert "No licence is stated: add --license NAME" in ended.err
    assert "stvit predict IMAGE --weights hf-hub:someone/flowers" in ended.err
    assert json.loads((tmp_path / "push.json").read_text())["target"] == "hf-hub:someone/flowers"
    files = the_hub.repos["someone/flowers"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "recipe.yaml"}
    assert the_hub.private == {"someone/flowers": True}
    for name, content in files.items():
        assert str(image_folder).encode() not in content, name
    assert b'stvit_cli.load("hf-hub:someone/flowers")' in files["README.md"]
    assert recipe_io.from_text(files["recipe.yaml"].decode()).data.dir is None

    ended = stvit("push", short_run, "flowers", "--license", "apache-2.0")  # again, to one's own account
    assert (ended.code, "licence" in ended.err) == (0, False), ended.err
    assert b"license: apache-2.0" in the_hub.repos["someone/flowers"]["README.md"]

    here, there = stvit_cli.load(short_run), stvit_cli.load("hf-hub:someone/flowers")
    image = photo(image_folder)
    assert there.predict(image).to_dict() == here.predict(image).to_dict()
    model = timm.create_model("hf-hub:someone/flowers", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(pixels), here.model(pixels))
    assert model.pretrained_cfg["label_names"] == ["blue", "red"]
    config = timm.data.resolve_data_config(model=model)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert tuple(config["mean"]) == here.info.mean

    assert stvit("predict", image, "--weights", "hf-hub:someone/flowers@v1").code == 0
    assert stvit("eval", "--weights", "hf-hub:someone/flowers", "--data", image_folder).code == 0
    words = ["train", "--data", image_folder, "--weights", "hf-hub:someone/flowers", "--dry-run", "data.num_workers=0"]
    ended = stvit(*words, "train.device=cpu")
    assert ended.code == 0, ended.err
    ended = stvit("predict", image, "--weights", "hf-hub:someone/flowers@v2")
    assert (ended.code, "has no such revision" in ended.err) == (2, True)
    ended = stvit("predict", image, "--weights", "hf-hub:someone/nothing")
    assert (ended.code, "there is no such repository, or it is private" in ended.err) == (2, True)


def test_what_was_downloaded_is_there_without_a_network(
    short_run: Path, the_hub: Hub, monkeypatch: pytest.MonkeyPatch, stvit: Stvit
) -> None:
    stvit_cli.push(short_run, "someone/flowers")
    stvit_cli.load("hf-hub:someone/flowers")
    the_hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert stvit_cli.load("hf-hub:someone/flowers").class_names == ("blue", "red")
    assert the_hub.requests == []
    with pytest.raises(stvit_cli.UserError, match=r"hf-hub:someone/other cannot be read: no network here, or HF_HUB_OFFLINE"):
        stvit_cli.load("hf-hub:someone/other")
    ended = stvit("push", short_run, "someone/flowers")
    assert (ended.code, "local-dir:FOLDER" in ended.err) == (2, True), ended.err


def test_a_folder_is_the_same_as_a_repository(short_run: Path, image_folder: Path, tmp_path: Path, stvit: Stvit) -> None:
    folder = tmp_path / "published"
    ended = stvit("push", short_run, f"local-dir:{folder}", "--license", "mit")
    assert ended.code == 0, ended.err
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    image = photo(image_folder)
    expected = stvit_cli.load(short_run).predict(image).to_dict()
    for name in (folder, f"local-dir:{folder}", folder / "model.safetensors"):
        assert stvit_cli.load(name).predict(image).to_dict() == expected
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.randn(1, 3, 48, 64)
    torch.testing.assert_close(model(pixels), stvit_cli.load(short_run).model(pixels))
    ended = stvit("push", short_run, f"local-dir:{short_run}")
    assert (ended.code, "is the run directory itself" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing", "someone/flowers"], "nothing is not the directory of a run: there is no such directory."),
        (["RUN", "a/b/c"], "'a/b/c' is no name of a repository of the Hugging Face Hub; expected OWNER/NAME"),
        (["RUN", "https://huggingface.co/someone/flowers"], "is no name of a repository"),
        (["RUN", "other/flowers"], "other/flowers cannot be written: the Hub answers: You don't have the rights"),
        (["RUN", "someone/flowers", "--license", "mine"], 'cannot be written: Error: "license" must be one of'),
    ],
)
def test_what_is_wrong_is_said(words: list[str], expected: str, short_run: Path, the_hub: Hub, stvit: Stvit) -> None:
    ended = stvit("push", *(short_run if word == "RUN" else word for word in words))
    assert ended.code == 2
    assert expected in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert not the_hub.repos  # nothing is made there


def test_no_token_and_no_network_are_said(
    short_run: Path, the_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stvit: Stvit
) -> None:
    with socket.socket() as taken:  # listens to nobody
        taken.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{taken.getsockname()[1]}", monkeypatch)
        ended = stvit("push", short_run, "someone/flowers")
        assert (ended.code, "cannot be written: no network here" in ended.err) == (2, True), ended.err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    ended = stvit("push", short_run, "someone/flowers")
    assert (ended.code, "log in by `hf auth login`, or set HF_TOKEN" in ended.err) == (2, True)


def test_a_card_that_a_person_changed_stays_and_is_the_one_that_is_pushed(short_run: Path, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "folder"
    shutil.copytree(short_run, run)
    folder.mkdir()
    assert write_card(run)
    text = (run / "README.md").read_text().replace("Add here what the model is meant for", "For my garden")
    (run / "README.md").write_text(text)
    assert not write_card(run)
    assert (run / "README.md").read_text() == text
    write_hub_folder(run, folder, repo="someone/garden", licence="mit")
    card = ModelCard.load(folder / "README.md")
    assert "For my garden" in card.text
    assert 'load("hf-hub:someone/garden")' in card.text
    assert card.data.license == "mit"
    (run / "best.safetensors").unlink()
    with pytest.raises(stvit_cli.UserError, match=r"has no best.safetensors yet"):
        write_hub_folder(run, folder)


def test_names_in_a_card_show_as_they_are(tmp_path: Path) -> None:
    name = "</script><img src=x onerror=alert(1)>|`*_[x](y)"
    (tmp_path / "recipe.yaml").write_text("name: 'a ``` b'\ndescription: <b>\n")
    options = {"num_iters": 0, "pos_enc": False, "layer_scale": 0.5}
    info = WeightsInfo(
        "stvit-nano", num_classes=2, class_names=(name, "b"), in_chans=4, mean=(0.5,) * 4, std=(0.2,) * 4, **options
    )
    save_weights(tmp_path / "best.safetensors", create_model("stvit-nano", 2, in_chans=4, **options), info)
    text = card_text(tmp_path)
    head, body = text.split("---\n", 2)[1:]
    assert "<img" not in body
    assert r"&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;\|\`\*\_\[x\](y)" in body
    assert "````yaml\nname: a ``` b" in body
    assert "model-index" not in head  # nothing was measured
    folder = tmp_path / "folder"
    folder.mkdir()
    write_hub_folder(tmp_path, folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.randn(1, 4, 32, 32)
    torch.testing.assert_close(model(pixels), stvit_cli.load(folder).model(pixels))


def test_names_of_repositories() -> None:
    for good in ("someone/flowers", "a/b", "some-one/flowers_2.0"):
        require_repo_name(good)
    for bad in ("flowers", "a/b/c", "/a", "a/", "a b/c", "a/b.git", "a/..", "-a/b", "a/b--c", "é/b", "a/" + "b" * 97):
        with pytest.raises(stvit_cli.UserError, match="is no name of a repository"):
            require_repo_name(bad)


def test_models_of_timm_are_read_by_timm_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nmodel:\n  name: timm/vit_tiny_patch16_224\n")
    kwargs = {"depth": 2, "embed_dim": 48}
    info = WeightsInfo("timm/vit_tiny_patch16_224", num_classes=2, class_names=("a", "b"), image_size=32, kwargs=kwargs)
    save_weights(tmp_path / "best.safetensors", create_from(info), info)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_hub_folder(tmp_path, folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert "import stvit_cli  #" not in card.text
    pixels = torch.randn(1, 3, 32, 32)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(model(pixels), stvit_cli.load(folder).model(pixels))
