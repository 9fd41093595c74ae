"""The tables of docs/scaling.md, counted by its formulas; nothing is measured. Prints them as Markdown.

python tests/benchmarks/scaling.py
"""

from __future__ import annotations

from dataclasses import dataclass

PEAK = 989.4e12
"""FLOP/s of an H100 SXM in bf16, dense (`analysis.cost.roofline.GPUS`)."""
SHARE = 0.17
"""Of that peak in training: what docs/performance.md counts as possible for stvit-s with the custom kernels."""
NODE, NVLINK, NETWORK = 8, 450e9, 50e9
"""GPUs of a node; bytes a second and direction of a GPU within a node (NVLink 4), and between nodes (400 Gbit/s a GPU)."""
BUCKET = 25 * 2**20
"""Bytes of a bucket of DistributedDataParallel, its default: the last one is reduced after the backward pass."""


@dataclass(frozen=True)
class Model:
    """Parameters and multiply-adds of an image at 224 x 224."""

    name: str
    params: int
    macs: float


HEAD_1K, HEAD_21K = 1025 * 1000, 1025 * 21_841
MODELS = [
    Model(name, params - HEAD_1K + head, macs)
    for name, params, macs in (
        ("stvit-s", 25_495_624, 4.357e9),
        ("stvit-b", 51_691_288, 9.854e9),
        ("stvit-l", 94_971_096, 15.576e9),
    )
    for head in (HEAD_1K, HEAD_21K)
]


def sent(model: Model, gpus: int) -> float:
    """Return the bytes that a GPU sends in a step: a ring all-reduce of float32 gradients."""
    return 2 * (gpus - 1) / gpus * 4 * model.params


def reduction(model: Model, gpus: int) -> float:
    """Return the seconds of the all-reduce."""
    return sent(model, gpus) / (NVLINK if gpus <= NODE else NETWORK)


def compute(model: Model, images: float) -> float:
    """Return the seconds of forward and backward passes: 2 FLOPs a multiply-add, the backward pass twice the forward pass."""
    return images * 6 * model.macs / (PEAK * SHARE)


def exposed(model: Model, gpus: int, images: float) -> float:
    """Return the seconds of the all-reduce that the backward pass does not hide."""
    last = reduction(model, gpus) * min(1, BUCKET / (4 * model.params))
    return max(reduction(model, gpus) - 2 / 3 * compute(model, images), last)


def efficiency(model: Model, gpus: int, batch: int) -> float:
    """Return the share of a step that is computing."""
    work = compute(model, batch / gpus)
    return work / (work + exposed(model, gpus, batch / gpus))


def memory_table() -> list[str]:
    """Return what a device holds beside activations."""
    rows = ["| model, classes | parameters | weights, gradients, moments | with DDP's buckets | sent in a step, 8 and 512 GPUs |"]
    rows.append("|---|---|---|---|---|")
    for number, model in enumerate(MODELS):
        classes, state = ("1000", "21 841")[number % 2], 16 * model.params
        held = f"{state / 1e9:.2f} GB | {(state + 4 * model.params) / 1e9:.2f} GB"
        moved = f"{sent(model, 8) / 1e9:.2f}, {sent(model, 512) / 1e9:.2f} GB"
        rows.append(f"| {model.name}, {classes} | {model.params / 1e6:.1f} M | {held} | {moved} |")
    return rows


def scaling_table() -> list[str]:
    """Return steps of stvit-l with 21 841 classes on 8, 64 and 512 GPUs."""
    model = MODELS[-1]
    rows = ["| GPUs | global batch | images a GPU | compute, ms | all-reduce, ms | not hidden, ms | share computing |"]
    rows.append("|---|---|---|---|---|---|---|")
    for gpus in (8, 64, 512):
        for batch in (1024, 4096, 16384):
            each = batch // gpus
            times = compute(model, each), reduction(model, gpus), exposed(model, gpus, each)
            shown = " | ".join(f"{1e3 * seconds:.1f}" for seconds in times)
            rows.append(f"| {gpus} | {batch} | {each} | {shown} | {efficiency(model, gpus, batch):.0%} |")
    return rows


if __name__ == "__main__":
    print("\n".join([*memory_table(), "", *scaling_table()]))
