"""A prediction of a few images imports only what it needs: timm, torchvision and PyTorch's compiler take seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from stvit_cli import WeightsInfo, create_model, save_weights

PREDICT = """
import sys
from stvit_cli.cli import main
assert main(["predict", sys.argv[1], sys.argv[2], "--weights", sys.argv[3]]) == 0
slow = {"timm", "torchvision", "torch._dynamo", "sympy", "matplotlib", "stvit_cli.engine.trainer"}
assert not slow & set(sys.modules), slow & set(sys.modules)
assert "torch" in sys.modules
"""


def test_predict_imports_nothing_slow(tmp_path: Path) -> None:
    weights, images = tmp_path / "nano.safetensors", [tmp_path / "a.png", tmp_path / "b.png"]
    save_weights(weights, create_model("stvit-nano", 1000), WeightsInfo("stvit-nano", num_classes=1000, image_size=32))
    for image in images:
        Image.new("RGB", (40, 40)).save(image)
    ended = subprocess.run([sys.executable, "-c", PREDICT, *map(str, [*images, weights])], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("%") == 2


def test_a_few_images_take_the_model_itself_and_many_a_prepared_copy(tmp_path: Path) -> None:
    from stvit_cli.tasks.loading import open_trained

    weights = tmp_path / "nano.safetensors"
    save_weights(weights, create_model("stvit-nano", 3), WeightsInfo("stvit-nano", num_classes=3, image_size=32))
    trained, cpu = open_trained(weights), torch.device("cpu")
    assert trained.prepared(cpu, 10) is trained.model
    assert trained.prepared(cpu, 6) is trained.model
    fast = trained.prepared(cpu, 1)
    assert fast is not trained.model
    assert trained.prepared(cpu) is fast
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(fast(images), trained.model(images), rtol=1e-4, atol=1e-5)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    from stvit_cli.tasks.loading import open_trained

    saved = create_model("stvit-nano", 3)
    save_weights(tmp_path / "nano.safetensors", saved, WeightsInfo("stvit-nano", num_classes=3))
    before = torch.get_rng_state()
    loaded = open_trained(tmp_path / "nano.safetensors").model
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())
