"""``stvit models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import command, echo, print_table, reporting

if TYPE_CHECKING:
    from stvit_cli.api.catalog import ModelCatalog

MOST_CLASSES = 4
"""Names of classes that are shown of weights."""

Word = Annotated[
    str,
    typer.Argument(
        metavar="WORD",
        help="Part of a name, alias or task, such as nano or detection; timm/WORD lists timm's.",
        show_default=False,
        autocompletion=completion.models,
    ),
]


@app.command("models")
def models_(word: Word = "", json_file: Json = None) -> None:
    """List the models: size, cost, aliases, where weights are; and the trained weights that come with the package.

    \b
    stvit models
    stvit models detection
    stvit models timm/convnext
    stvit models --json -
    """
    from stvit_cli.api.catalog import describe_models, list_timm_models
    from stvit_cli.utils.model_catalog import AUTHORS_PAGE

    with reporting(json_file) as report:
        if word.startswith("timm/") and not word.startswith("timm/stvit_"):
            found = list_timm_models(word.removeprefix("timm/"))
            print_table(["model", "pretrained weights"], [[name, ", ".join(tags) or "-"] for name, tags in found])
            report({"models": [{"name": name, "pretrained": tags} for name, tags in found], "weights": []})
            echo("Next:", err=True)
            echo(command("stvit", "profile", found[0][0]), err=True)
            return
        catalog = describe_models(word)
        _print_models(catalog)
        if catalog.weights:
            echo("")
            _print_weights(catalog)
        report(catalog.to_dict())
        if any(model.has_authors_weights for model in catalog.models):
            echo(f"The authors' weights, at 224 and 384 pixels: the folder that {AUTHORS_PAGE} links to. Then:", err=True)
            echo(command("stvit", "convert", "FILE.pth", "FILE.safetensors"), err=True)


def _print_models(catalog: ModelCatalog) -> None:
    own = {model.name: [item for item in catalog.weights if item.model == model.name] for model in catalog.models}
    rows = []
    for model in catalog.models:
        top1 = ", ".join(f"{value:.1f} ({size} px)" for size, value in model.top1) or "-"
        packaged = f"{len(own[model.name])} packaged" if own[model.name] else ""
        weights = "the authors'" if model.has_authors_weights else packaged or "-"
        alias = ", ".join(model.aliases) or "-"
        rows.append([model.name, f"{model.params / 1e6:.2f} M", f"{model.flops / 1e9:.2f} G", top1, alias, weights, model.about])
    columns = ["model", "parameters", "FLOPs", "published top-1, %", "alias", "weights", "about"]
    print_table(columns, rows, "With 1000 classes; FLOPs are multiply-adds of an image of 224 x 224", right=(1, 2))


def _print_weights(catalog: ModelCatalog) -> None:
    rows = []
    for item in catalog.weights:
        names = catalog.class_names[item.name]
        shown = ", ".join(names[:MOST_CLASSES]) + (", ..." if len(names) > MOST_CLASSES else "")
        images = f"{item.image_size} px, {item.in_chans} channel{'s' * (item.in_chans > 1)}"
        rows.append([item.name, item.task, images, f"{item.num_classes}: {shown}"])
    print_table(["packaged weights", "task", "images", "classes"], rows, "For every --weights option; stvit weights show NAME")
