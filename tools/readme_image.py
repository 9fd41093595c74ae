"""Draw the README's image: a photograph, its super tokens in a trained model, their mean colours, and one super token.

    python tools/readme_image.py [docs/images/photograph.jpg]

The photograph is tests/images/coffee.jpg, the weights are the segmenter's that come with the package, the layer is its first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stvit_cli.analysis.associations import associations
from stvit_cli.analysis.associations.panels import (
    DPI,
    Sheet,
    draw_image,
    draw_mean_colours,
    draw_one_super_token,
    draw_outlines,
    plot_context,
)
from stvit_cli.data.images import open_image
from stvit_cli.tasks.loading import open_trained

ROOT = Path(__file__).parents[1]
PHOTO, WEIGHTS, LAYER, POINT = ROOT / "tests/images/coffee.jpg", "stvit-nano.shapes-upernet", "stage1.block1", (330, 150)
SIDE = 128
"""Short side of the model's input in pixels."""
WIDTH, GAP, TOP = 2.6, 0.1, 0.3
"""Of a panel, between panels, and of the titles, in inches."""


def main() -> None:
    """Draw and save the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", default=ROOT / "docs/images/photograph.jpg")
    output = parser.parse_args().output
    trained, photo = open_trained(WEIGHTS), open_image(PHOTO)
    maps = associations(trained.model, photo, trained.info, image_size=SIDE)
    context, layer = plot_context(maps, PHOTO.name, trained.info.model), maps.layers[LAYER]
    p, q = layer.num_super_tokens
    height = WIDTH * photo.height / photo.width
    sheet = Sheet(4 * WIDTH + 3 * GAP, height + TOP)
    panels = {
        "A photograph": lambda ax: draw_image(ax, context, context.canvas),
        f"its {p * q} super tokens": lambda ax: draw_outlines(ax, context, layer, [POINT]),
        "their mean colours": lambda ax: draw_mean_colours(ax, context, layer, [POINT]),
        "the tokens of one of them": lambda ax: draw_one_super_token(ax, context, layer, [POINT]),
    }
    for column, (title, draw) in enumerate(panels.items()):
        x = column * (WIDTH + GAP)
        sheet.text(x, 0.2, title, fontsize=10)
        draw(sheet.axes((x, TOP, WIDTH, height)))
    sheet.figure.savefig(output, dpi=DPI, pil_kwargs={"quality": 88, "optimize": True})


if __name__ == "__main__":
    main()
