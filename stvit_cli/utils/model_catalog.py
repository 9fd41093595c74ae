"""The built-in models as numbers: size, cost, published accuracy, names elsewhere. Imports no torch.

Parameters and multiply-adds are those that `stvit profile` and `stvit isotropic-ablation` count; their tests compare them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

AUTHORS_PAGE = "https://github.com/hhb072/STViT"
"""The authors' repository, which links to the folder of their weights."""


@dataclass(frozen=True)
class ModelEntry:
    """A built-in model.

    Attributes:
        name: what ``--model``, ``model.name`` and `create_model` take.
        params: number of trainable parameters, with 1000 classes.
        flops: multiply-adds of one RGB image of 224 x 224 pixels.
        top1: the published top-1 on ImageNet-1k in percent, by image size; empty where nothing is published.
        timm: its name in timm's registry, which is also an alias: ``timm/stvit_small``; None: it is not there.
        has_authors_weights: the authors publish weights of it.
        about: what it is.
    """

    name: str
    params: int
    flops: int
    top1: tuple[tuple[int, float], ...] = ()
    timm: str | None = None
    has_authors_weights: bool = False
    about: str = ""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that every command and recipe takes.

        >>> MODELS[0].aliases
        ('timm/stvit_small',)
        """
        return () if self.timm is None else (f"timm/{self.timm}",)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit models --json` writes them."""
        return {**asdict(self), "top1": {str(size): value for size, value in self.top1}, "aliases": list(self.aliases)}


MODELS = (
    ModelEntry("stvit-s", 25_495_624, 4_356_608_128, ((224, 83.6), (384, 85.0)), "stvit_small", True, "Table I"),
    ModelEntry("stvit-b", 51_691_288, 9_853_683_712, ((224, 84.8), (384, 86.0)), "stvit_base", True, "Table I"),
    ModelEntry("stvit-l", 94_971_096, 15_576_463_488, ((224, 85.3), (384, 86.4)), "stvit_large", True, "Table I"),
    ModelEntry("stvit-nano", 1_167_832, 324_944_896, (), "stvit_nano", False, "not in the paper: for small data and for tests"),
)
"""The models for use, in the order in which they are listed."""

ROWS = (
    ModelEntry("isotropic-swin-12", 28_288_354, 4_490_604_288, ((224, 81.3),), about="Table II, row 1"),
    ModelEntry("isotropic-stvit-12", 30_262_690, 4_335_315_840, ((224, 82.3),), about="Table II, row 2"),
    ModelEntry("isotropic-swin-20", 23_096_172, 4_134_111_232, ((224, 81.4),), about="Table II, row 3"),
    ModelEntry("isotropic-swin-20-global", 23_146_572, 4_300_068_352, ((224, 81.7),), about="Table II, row 4"),
    ModelEntry("isotropic-stvit-20", 24_171_258, 3_946_609_792, ((224, 82.6),), about="Table II, row 5"),
    ModelEntry("isotropic-swin-20-norpe", 23_068_456, 4_134_111_232, ((224, 80.2),), about="Table II, row 6"),
    ModelEntry("isotropic-stvit-20-norpe", 24_132_200, 3_946_609_792, ((224, 82.3),), about="Table II, row 7"),
)
"""The rows of Table II; `stvit isotropic-ablation` also has them at a quarter of the width."""


def entry(name: str) -> ModelEntry | None:
    """Return the entry of a built-in model; None for other names.

    >>> entry("stvit-b").timm
    'stvit_base'
    """
    return next((model for model in (*MODELS, *ROWS) if model.name == name), None)
