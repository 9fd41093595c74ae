"""A classifier as one graph, which it is already: images (B, in_chans, H, W) to logits (B, num_classes)."""

from __future__ import annotations

import math

from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.timm_models import is_timm_name
from stvit_cli.tasks.exported import ExportForm
from stvit_cli.tasks.spec import Trained


def export_form(trained: Trained) -> ExportForm:
    """Return a classifier as one graph. A model of timm takes images of its own size alone."""
    info = trained.info
    preparation = {
        "resize": {"short_side": math.floor(info.image_size / info.resolved_crop_pct), "antialias": True},
        "center_crop": info.image_size,
        "probabilities": "sigmoid of each logit" if info.multi_label else "softmax of the logits",
    }
    return ExportForm(
        fuse(trained.model),
        lambda images: (trained.model(images),),
        ("logits",),
        any_size=not is_timm_name(info.model),
        preparation=preparation,
    )
