"""timm's models under timm/NAME: built, refused, saved, read, and as backbones; against timm itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer

from stvit_cli import WeightsInfo, create_detector, create_model, create_segmenter, load_weights, save_weights
from stvit_cli.errors import UserError
from stvit_cli.models.stvit import STViT
from stvit_cli.models.timm_backbone import TimmBackbone
from stvit_cli.models.timm_models import fitted, require_image_size
from stvit_cli.tasks.base import freeze_drop_path
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.param_groups import without_decay_on_norms
from stvit_cli.tasks.registry import get


def test_a_classifier_is_timms() -> None:
    torch.manual_seed(0)
    ours = create_model("timm/test_convnext", 5, in_chans=1, drop_path_rate=0.1, checkpointing=True).eval()
    torch.manual_seed(0)
    theirs = timm.create_model("test_convnext", num_classes=5, in_chans=1, drop_path_rate=0.1).eval()
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_a_name_of_the_registry_is_the_built_in_model() -> None:
    model = create_model("timm/stvit_nano", 5)
    assert isinstance(model, STViT)
    assert model.state_dict().keys() == create_model("stvit-nano", 5).state_dict().keys()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_model("timm/test_convnex"), r"no model 'test_convnex'\. Did you mean 'test_convnext'\?"),
        (lambda: create_model("timm/resnet50.a1_in1"), r"has no weights 'a1_in1'\. Did you mean 'a1_in1k'\?"),
        (lambda: create_model("timm/test_vit", image_size=100), "found 100, which timm/test_vit does not take; expected 96, 112"),
        (lambda: require_image_size("timm/vit_tiny_patch16_224", 64, 96, 3, {}), "takes images of 64 pixels only"),
        (lambda: create_model("timm/vgg11", drop_path_rate=0.1), "vgg11 has no stochastic depth"),
        (lambda: create_model("timm/test_convnext", grid_sizes=(1, 1, 1, 1)), "no super tokens"),
        (lambda: create_segmenter("timm/test_vit", 2), "has features at strides 16; expected 4, 8, 16 and 32"),
        (lambda: create_segmenter("timm/coatnet_pico_rw_224", 2), "takes images of one size only"),
        (lambda: create_detector("timm/test_convnext", 2, grid_sizes=(1, 1, 1, 1)), "model.grid_sizes"),
    ],
)
def test_what_a_model_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name", ["timm/test_convnext", "timm/test_efficientnet", "timm/test_resnet"])
def test_features_at_four_strides_for_any_size(name: str) -> None:
    backbone = TimmBackbone(name).eval()
    maps = backbone.forward_intermediates(torch.randn(1, 3, 50, 77))
    assert [tuple(part.shape[-2:]) for part in maps] == [(13, 20), (7, 10), (4, 5), (2, 3)]
    assert [part.shape[1] for part in maps] == [info["num_chs"] for info in backbone.feature_info]


def test_features_of_whole_images_are_timms() -> None:
    backbone = TimmBackbone("timm/test_efficientnet").eval()  # no layer norm at its end, so none for its maps
    theirs = timm.create_model("test_efficientnet", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict(backbone.model.model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    for ours, other in zip(backbone(images), theirs(images), strict=True):
        torch.testing.assert_close(ours, other)


def test_swins_windows_are_shifted_in_every_stage_and_its_tables_do_not_decay() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("timm/swin_tiny_patch4_window7_224", drop_path_rate=0.1)
        groups = without_decay_on_norms(backbone, 0.05)
    assert [layer.blocks[1].shift_size for layer in backbone.model.model.layers] == [(3, 3)] * 4
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = {name: decays[id(parameter)] for name, parameter in backbone.named_parameters()}
    assert named["model.model.layers.0.blocks.0.attn.relative_position_bias_table"] == 0
    assert named["norms.0.weight"] == 0
    assert named["model.model.layers.0.blocks.0.attn.qkv.weight"] == 0.05


def test_parameters_are_the_published_ones() -> None:
    """Swin-Transformer-Object-Detection and -Semantic-Segmentation: 47.8 M and 60 M."""
    with torch.device("meta"):
        detector = create_detector("timm/swin_tiny_patch4_window7_224", 80)
        segmenter = create_segmenter("timm/swin_tiny_patch4_window7_224", 150)
    assert sum(parameter.numel() for parameter in detector.parameters()) == pytest.approx(47.8e6, rel=0.01)
    assert sum(parameter.numel() for parameter in segmenter.parameters()) == pytest.approx(60e6, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "flops"), [("coco-mask-rcnn-1x", 267e9), ("ade20k-upernet-160k", 945e9)])
def test_multiply_adds_are_the_published_ones(recipe: str, flops: float) -> None:
    from stvit_cli.analysis.cost.profile_recipe import profile_recipe
    from stvit_cli.recipe import io as recipe_io

    settings = recipe_io.load(recipe, ["model.name=timm/swin_tiny_patch4_window7_224"])
    found = profile_recipe(settings, None)
    assert found["flops"] == pytest.approx(flops, rel=0.01)
    assert found["uncounted"] == {}


def test_swins_operators_are_all_counted() -> None:
    from stvit_cli.analysis.cost.flops import count_flops

    model = SwinTransformer(img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), num_classes=3)
    count = count_flops(model, (64, 64))
    assert count.uncounted == {}
    pairs = 2 * (16 * 16 * 16 * 16 + 8 * 8 * 16 * 32)  # blocks x tokens x window x channels, of Q K^T; and as many of its V
    assert count.by_operator["matmul"] == 2 * pairs


def test_a_classifier_is_saved_and_opened(tmp_path: Path) -> None:
    model = create_model("timm/test_vit", 3, image_size=64).eval()
    save_weights(tmp_path / "w.safetensors", model, WeightsInfo("timm/test_vit", num_classes=3, image_size=64))
    opened = open_trained(tmp_path / "w.safetensors").model
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(opened(images), model(images))
    other = create_model("timm/test_vit", 5, image_size=96)  # another head and another table of positions
    report = load_weights(other, tmp_path / "w.safetensors", new_head=True)
    assert report.reset == ["head.weight", "head.bias"]
    assert report.missing == []


SMALL_SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}
SWIN = "timm/swin_tiny_patch4_window7_224"


def test_kwargs_are_those_of_timms_constructor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(SWIN, 3, 1, 0.1, image_size=32, kwargs=SMALL_SWIN).eval()
    torch.manual_seed(0)
    theirs = SwinTransformer(img_size=32, in_chans=1, num_classes=3, drop_path_rate=0.1, **SMALL_SWIN).eval()
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(model(images), theirs(images))
    info = WeightsInfo(SWIN, num_classes=3, in_chans=1, image_size=32, mean=(0.5,), std=(0.2,), kwargs=SMALL_SWIN)
    save_weights(tmp_path / "w.safetensors", model, info)
    opened = open_trained(tmp_path / "w.safetensors")
    assert opened.info == info
    assert torch.equal(opened.model(images), model(images))


def test_kwargs_make_a_backbone_of_another_size(tmp_path: Path) -> None:
    kwargs = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    settings = '{"class_names": ["a", "b"], "channels": 16, "aux_channels": 8}'
    names = {"num_classes": 2, "class_names": ("a", "b")}
    info = WeightsInfo(SWIN, task="segmentation", settings=settings, kwargs=kwargs, **names)
    model = get("segmentation").create_model(info).eval()
    save_weights(tmp_path / "w.safetensors", model, info)
    images = torch.rand(1, 3, 64, 48)
    assert torch.equal(open_trained(tmp_path / "w.safetensors").model.eval()(images), model(images))
    maps = TimmBackbone(SWIN, kwargs=kwargs)(images)
    assert [tuple(part.shape[1:]) for part in maps] == [(8, 16, 12), (16, 8, 6), (32, 4, 3), (64, 2, 2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_model(SWIN, kwargs={"embed_dims": 8}), r"has no argument 'embed_dims'\. Did you mean 'embed_dim'\?"),
        (lambda: create_model("timm/resnet18", kwargs={"in_chans": 1}), "found in_chans, which model.in_chans decides"),
        (lambda: create_model("timm/mobilenetv3_small_050", kwargs={"checkpoint_path": "x"}), "no argument 'checkpoint_path'"),
        (
            lambda: create_model("timm/test_byobnet", kwargs={"stem_width": 2}),
            "cannot be built with {stem_width: 2}: .*stem_width",
        ),
        (lambda: create_model("timm/test_vit", kwargs={"num_heads": 5}), "cannot be built with {num_heads: 5}: dim should be"),
        (lambda: create_model("timm/resnet18", kwargs={"act_layer": torch.nn.ReLU}), "expected numbers, text"),
        (
            lambda: create_model("timm/test_vit", image_size=30, kwargs={"patch_size": 4}),
            "does not take with .*; expected 32",
        ),
        (lambda: create_segmenter(SWIN, 2, kwargs={"patch_size": 2}), "has features at strides 2, 4, 8, 16"),
        (lambda: create_segmenter(SWIN, 2, kwargs={"depth": 2}), "has no argument 'depth'. Did you mean 'depths'"),
    ],
)
def test_kwargs_that_a_model_does_not_take_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_timms_own_files_are_loaded(tmp_path: Path) -> None:
    theirs = timm.create_model("test_convnext", num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "timm.pth.tar")
    for name in ("timm.safetensors", "timm.pth.tar"):
        model = create_model("timm/test_convnext", 7)
        assert not load_weights(model, tmp_path / name).missing
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in model.state_dict().items())
        backbone = TimmBackbone("timm/test_convnext")
        report = load_weights(backbone, tmp_path / name)
        assert (report.unexpected, report.missing) == ([], [f"norms.{i}.{leaf}" for i in range(4) for leaf in ("weight", "bias")])
        assert torch.equal(backbone.model.model.stem[0].weight, theirs.stem[0].weight)
    grey = create_model("timm/test_convnext", 2, in_chans=1)
    report = load_weights(grey, tmp_path / "timm.safetensors", new_head=True)
    assert report.adapted == ["stem.0.weight"]
    with pytest.raises(UserError, match="these are not the weights of this model"):
        load_weights(create_model("timm/test_resnet", 7), tmp_path / "timm.safetensors")


def test_swins_names_are_not_taken_for_those_of_the_authors_files(tmp_path: Path) -> None:
    model = SwinTransformer(img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), num_classes=3)
    model.timm_name = "timm/swin"
    save_file(model.state_dict(), tmp_path / "swin.safetensors")
    again = SwinTransformer(img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), num_classes=3)
    again.timm_name = "timm/swin"
    assert load_weights(again, tmp_path / "swin.safetensors").missing == []
    old = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): v
        for name, v in model.state_dict().items()
    }
    assert fitted(again, old).keys() == model.state_dict().keys(), "timm renames the keys of Swin's own files"


def test_a_detector_starts_from_timms_file(tmp_path: Path) -> None:
    from stvit_cli.tasks.weights import load_initial_weights

    theirs = timm.create_model("test_convnext", num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    model = create_detector("timm/test_convnext", 2, channels=16, fc_dim=16)
    names = {"task": "detection", "class_names": ("a", "b"), "class_layers": ()}
    notes = load_initial_weights(model, model.backbone.body, tmp_path / "timm.safetensors", **names)
    assert "tensors of the backbone from" in notes[0]
    assert notes[1] == "Warning: 8 tensors are not in the file and keep their initial values, such as norms.0.weight."
    assert torch.equal(model.backbone.body.model.model.stem[0].weight, theirs.stem[0].weight)


def test_stochastic_depth_is_frozen_as_that_of_the_built_in_models() -> None:
    model = create_model("timm/test_convnext", 2, drop_path_rate=0.5).train()
    layers = [module for module in model.modules() if isinstance(module, timm.layers.DropPath)]
    assert layers
    freeze_drop_path(model)
    assert not any(layer.training for layer in layers)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_dense_weights_describe_their_model(tmp_path: Path, task: str) -> None:
    settings = '{"short_sides": [64], "channels": 16, "fc_dim": 16}'
    if task == "segmentation":
        settings = '{"class_names": ["a", "b"], "channels": 16, "aux_channels": 8}'
    info = WeightsInfo("timm/test_convnext", task=task, num_classes=2, class_names=("a", "b"), settings=settings)
    model = get(task).create_model(info).eval()
    save_weights(tmp_path / "w.safetensors", model, info)
    opened = open_trained(tmp_path / "w.safetensors").model
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())
