"""Measure the models of the 83-84 % class beside stvit-s, and show their published top-1 against their images per second:

python tests/benchmarks/accuracy_speed.py --output docs/images/accuracy-speed.svg [--rounds 3] [--batch-sizes 8,1]
python tests/benchmarks/accuracy_speed.py --output docs/images/accuracy-speed.svg --from docs/images/accuracy-speed.json

Inference in fp32 with random weights, in interleaved rounds: more than four minutes on two cores. Beside the plot it writes
the table (.md) and the figures (.json), from which --from draws again. Every model has its best form for inference:
re-parameterized where timm can (RepViT), batch norms folded into convolutions where the outputs stay the same, the faster of two
memory layouts. stvit-s is as `stvit profile --throughput` times it.

Top-1 is that of `published_top1.csv`: weights trained on ImageNet-1K alone, evaluated at this size by timm
(results/results-imagenet.csv in its repository) or torchvision; of stvit-s, the paper's. "distilled" is with a teacher, "MAE"
with self-supervised pre-training on the same images.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stvit_cli.analysis.cost.profile import build
from stvit_cli.analysis.cost.throughput import Setting, prepare, time_in_turn
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.models import list_models

PUBLISHED = Path(__file__).with_name("published_top1.csv")
COLORS = {"ImageNet-1K": "#4c566a", "distilled": "#b5651d", "MAE": "#2e7d5b"}
OURS = "#c62828"
PLACES = [(7, -4, "left"), (-7, -4, "right"), (0, 8, "center"), (0, -16, "center"), (9, 9, "left"), (-9, 9, "right")]
PLACES += [(9, -18, "left"), (-9, -18, "right"), (0, 22, "center"), (0, -30, "center"), (12, 22, "left"), (-12, -30, "right")]


def published() -> list[dict[str, Any]]:
    """Return the rows of the table of published accuracies; ``top1`` is None where none was published at this size."""
    with PUBLISHED.open(encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [row | {"image_size": int(row["image_size"]), "top1": float(row["top1"]) if row["top1"] else None} for row in rows]


def best_form(name: str) -> nn.Module:
    """Build a model in its best form for inference; built-in models are fused when they are timed."""
    model = build(name).eval()
    return model if name in list_models() else fold_batch_norms(reparameterize_model(model))


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold batch norms into the convolutions before them, if the model computes the same; otherwise return it as it was."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    images = torch.randn(1, 3, 224, 224)
    folded = fold_pairs(copy.deepcopy(model))
    with torch.inference_mode():
        same = torch.allclose(folded(images), model(images), rtol=1e-3, atol=1e-3)
    return folded if same else model


def fold_pairs(model: nn.Module) -> nn.Module:
    """Fold every batch norm that is registered right after a convolution into it, in place."""
    for parent in list(model.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and conv.out_channels == norm.num_features:
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))  # timm's BatchNormAct2d has the activation
    return model


def measure(setting: Setting, batch_sizes: list[int]) -> list[dict[str, Any]]:
    """Return the published rows with ``flops``, ``params``, ``device`` and, for each batch size, images per second."""
    rows = published()
    for batch_size in batch_sizes:
        candidates = []
        for row in rows:
            sized = replace(setting, batch_size=batch_size, image_size=(row["image_size"],) * 2)
            model = best_form(row["model"])
            row["params"] = sum(parameter.numel() for parameter in model.parameters())
            candidates.append(prepare(f"{row['model']} {row['image_size']}", model, sized))
        results = time_in_turn(candidates, replace(setting, batch_size=batch_size))
        for row, candidate in zip(rows, candidates, strict=True):
            speed = results[candidate.name]
            row |= {"flops": candidate.flops, "device": speed["device"]}
            row.setdefault("images_per_second", {})[str(batch_size)] = speed["images_per_second"]
            row.setdefault("spread", {})[str(batch_size)] = speed["spread"]
    return rows


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table, the fastest first."""
    batches = list(rows[0]["images_per_second"])
    has_flops = all(row["flops"] is not None for row in rows)  # figures that were not measured here may lack them
    heads = [
        "model",
        "top-1, %",
        "training",
        *["G multiply-adds"] * has_flops,
        *(f"images/s, batch {batch}" for batch in batches),
    ]
    lines = [heads, ["---"] * len(heads)]
    for row in sorted(rows, key=lambda row: -row["images_per_second"][batches[0]]):
        name = f"{row['model']} at {row['image_size']}" if row["model"].startswith("mobilenetv4") else row["model"]
        top1 = "not published" if row["top1"] is None else f"{row['top1']:.1f}"
        speeds = [f"{row['images_per_second'][batch]:.1f}" for batch in batches]
        flops = [f"{row['flops'] / 1e9:.1f}"] if has_flops else []
        cells = [name, top1, row["training"], *flops, *speeds]
        lines.append([f"**{cell}**" for cell in cells] if row["model"] == "stvit-s" else cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot top-1 against images per second at the first batch size, legible on a telephone."""
    batch = next(iter(rows[0]["images_per_second"]))
    mpl.rcParams["svg.hashsalt"] = "stvit"
    figure = Figure(figsize=(5.4, 5.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    shown = [row for row in rows if row["top1"] is not None]
    points = [(row["images_per_second"][batch], row["top1"]) for row in shown]
    for row, (speed, top1) in zip(shown, points, strict=True):
        ours = row["model"] == "stvit-s"
        color = OURS if ours else COLORS[row["training"]]
        face = "white" if row["training"] == "distilled" else color
        axes.scatter(
            speed, top1, s=90 if ours else 42, color=face, edgecolors=color, marker="*D"[not ours] if ours else "o", zorder=3
        )
    for training, color in COLORS.items():
        face = "white" if training == "distilled" else color
        axes.scatter([], [], s=42, color=face, edgecolors=color, label=training if training != "MAE" else "MAE on ImageNet-1K")
    speeds, tops = zip(*points, strict=True)
    axes.set_xlim(0, max(speeds) * 1.18)
    axes.set_ylim(min(tops) - 0.5, max(tops) + 0.6)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"images per second, batch {batch}, fp32", fontsize=11)
    axes.set_ylabel("published top-1 on ImageNet, %", fontsize=11)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", fontsize=9.5, frameon=False, title="trained on", title_fontsize=9.5)
    axes.set_title(rows[0]["device"], fontsize=10)
    place_labels(figure, axes, shown, points)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def place_labels(figure: Figure, axes: Any, shown: list[dict[str, Any]], points: list[tuple[float, float]]) -> None:
    """Label each point at the first place where the text meets no point, no other text and no border."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    inside = axes.get_window_extent(renderer)
    dots = [axes.transData.transform(point) for point in points]
    taken = [axes.get_legend().get_window_extent(renderer)]
    order = sorted(range(len(shown)), key=lambda index: shown[index]["model"] != "stvit-s")
    for index in order:
        name = shown[index]["model"].removesuffix("_patch16_224").removesuffix("_224")
        name += f" at {shown[index]['image_size']}" if shown[index]["image_size"] != 224 else ""
        ours = name == "stvit-s"
        for dx, dy, side in PLACES:
            text = axes.annotate(
                name, points[index], (dx, dy), textcoords="offset points", ha=side, fontsize=11 if ours else 9.5,
                fontweight="bold" if ours else "normal", color=OURS if ours else "0.15",
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            free = not any(box.overlaps(other) for other in taken)
            free &= inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            free &= not any(box.x0 - 3 < x < box.x1 + 3 and box.y0 - 3 < y < box.y1 + 3 for x, y in dots)
            if free or (dx, dy, side) == PLACES[-1]:
                taken.append(box)
                break
            text.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the plot: .svg or .png; .md and .json are written beside it")
    parser.add_argument("--from", dest="source", type=Path, help="figures of an earlier run; nothing is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", default="8,1")
    options = parser.parse_args()
    if options.source is not None:
        rows = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        keep_freed_memory()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        batch_sizes = [int(word) for word in options.batch_sizes.split(",")]
        rows = measure(Setting(rounds=options.rounds, device=device), batch_sizes)
        options.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(to_markdown(rows), encoding="utf-8")
    draw(rows, options.output)
    print(to_markdown(rows), end="")


if __name__ == "__main__":
    main()
