"""``stvit models``: what there is to choose from, with the numbers that `stvit profile` counts."""

from __future__ import annotations

import json

import pytest

from stvit_cli.api.catalog import describe_models, list_timm_models
from stvit_cli.errors import UserError
from stvit_cli.utils.model_catalog import MODELS, ROWS, entry


def test_it_lists_models_and_weights(stvit) -> None:
    ended = stvit("models")
    assert ended.code == 0
    lines = ended.out.splitlines()
    small = next(line for line in lines if line.startswith("stvit-s "))
    assert all(
        part in small for part in ("25.50 M", "4.36 G", "83.6 (224 px), 85.0 (384 px)", "timm/stvit_small", "the authors'")
    )
    nano = next(line for line in lines if line.startswith("stvit-nano "))
    assert "4 packaged" in nano
    assert any(line.startswith("stvit-nano.digits ") and "10: 0, 1, 2, 3, ..." in line for line in lines)
    assert "https://github.com/hhb072/STViT" in ended.err
    assert "isotropic" not in ended.out


def test_the_json_has_all_of_it(stvit) -> None:
    found = json.loads(stvit("models", "nano", "--json", "-").out)
    (model,) = found["models"]
    assert model["aliases"] == ["timm/stvit_nano"]
    assert sorted(model["weights"]) == sorted(weights["name"] for weights in found["weights"])
    digits = next(weights for weights in found["weights"] if weights["name"] == "stvit-nano.digits")
    assert digits["class_names"] == list("0123456789")


@pytest.mark.parametrize(
    ("word", "models", "weights"),
    [
        ("DETECTION", ["stvit-nano"], ["stvit-nano.shapes-mask-rcnn"]),
        ("upernet", ["stvit-nano"], ["stvit-nano.shapes-upernet"]),
        ("stvit_base", ["stvit-b"], []),
        ("timm/stvit_l", ["stvit-l"], []),
        ("isotropic-swin", [row.name for row in ROWS if "swin" in row.name], []),
    ],
)
def test_a_word_selects(word: str, models: list[str], weights: list[str]) -> None:
    found = describe_models(word)
    assert ([model.name for model in found.models], [item.name for item in found.weights]) == (models, weights)


def test_a_word_that_selects_nothing_is_answered_with_the_nearest(stvit) -> None:
    ended = stvit("models", "stvit-nan0")
    assert ended.code == 2
    assert "stvit-nano" in ended.err
    assert len(ended.err.splitlines()) <= 6
    with pytest.raises(UserError, match="resnet50"):
        list_timm_models("resnet500")


def test_timms_models_are_listed_with_their_weights(stvit) -> None:
    ended = stvit("models", "timm/resnet50d")
    assert ended.code == 0
    (line,) = [line for line in ended.out.splitlines() if line.startswith("timm/resnet50d ")]
    assert "ra2_in1k" in line
    assert stvit("models", "timm/no-such-model").code == 2


def test_the_catalog_is_that_of_the_registries() -> None:
    import timm

    from stvit_cli.analysis.cost.profile import PAPER
    from stvit_cli.models import create_model, list_models

    assert [model.name for model in (*MODELS, *ROWS)] == [name for name in list_models() if "mini" not in name]
    assert {model.timm for model in MODELS} == set(timm.list_models("stvit_*"))
    published = {(model.name, size): top1 for model in MODELS for size, top1 in model.top1}
    assert published == {key: paper.top1 for key, paper in PAPER.items()}
    nano, counted = entry("stvit-nano"), create_model("stvit-nano")
    assert nano is not None
    assert nano.params == sum(parameter.numel() for parameter in counted.parameters() if parameter.requires_grad)
