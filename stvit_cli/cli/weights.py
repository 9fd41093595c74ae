"""``stvit weights list/show``."""

from __future__ import annotations

from typing import Annotated

import typer

from stvit_cli.cli import app, completion
from stvit_cli.cli.help import App
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import command, echo, print_table, reporting
from stvit_cli.utils.metric_names import metric_name, metric_value

weights = App()
app.add_typer(weights, name="weights")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name of `stvit weights list`.", autocompletion=completion.packaged_weights)
]


@weights.callback(invoke_without_command=True)
def about(context: typer.Context) -> None:
    """List and describe the trained weights that come with the package. Every --weights option takes their names.

    \b
    stvit weights list
    stvit weights show stvit-nano.fashion-mnist
    stvit predict IMAGE --weights stvit-nano.fashion-mnist
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@weights.command("list")
def list_(json_file: Json = None) -> None:
    """List the weights that come with the package, with what they reach, on which data, and the licence of those.

    \b
    stvit weights list
    stvit weights list --json -
    """
    from stvit_cli.utils.packaged_weights import list_weights

    with reporting(json_file) as report:
        found = list_weights()
        rows = []
        for item in found:
            metric = metric_name(item.metric)
            value = metric_value(item.metric, item.value, item.num_images)
            views = f", with {item.views}" if str(item.views) else ""
            reached = f"{metric.label} {value} {metric.unit}".rstrip() + f" ({item.num_images} {item.images} images{views})"
            data = f"{item.data} ({item.data_licence})"
            size = f"{item.image_size} px, {item.in_chans} channel{'s' * (item.in_chans > 1)}"
            rows.append([item.name, item.task, data, size, reached, f"{item.size_bytes / 1e6:.1f} MB"])
        print_table(["weights", "task", "trained on (licence)", "images", "reaches", "file"], rows)
        report([item.to_dict() for item in found])
        if found:
            echo("Next:", err=True)
            echo(command("stvit", "predict", "IMAGE", "--weights", found[0].name), err=True)


@weights.command()
def show(name: Name) -> None:
    """Print the model card of weights that come with the package: metrics, data, limits, recipe, licences.

    \b
    stvit weights show stvit-nano.fashion-mnist
    """
    from stvit_cli.utils.packaged_weights import find_weights

    echo(*find_weights(name).card.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
