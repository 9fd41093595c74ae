"""Super tokens of an image in a notebook: open this file in VS Code or Jupyter (jupytext), or run it as a script.

IMAGE=photo.jpg WEIGHTS=runs/RUN python docs/examples/super_tokens.py
"""

# %% [markdown]
# Which tokens belong to which super token, and what a pixel attends to.

# %%
# --8<-- [start:arrays]
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import stvit_cli
from stvit_cli.data.shapes import draw_image

output = Path(os.environ.get("OUTPUT", "super-tokens"))
output.mkdir(parents=True, exist_ok=True)
image_file = Path(os.environ.get("IMAGE", output / "scene.png"))  # or "photo.jpg"
if "IMAGE" not in os.environ:
    Image.fromarray(draw_image(seed=8, split="val", index=0, image_size=160).image).save(image_file)

model = stvit_cli.load(os.environ.get("WEIGHTS", "stvit-nano.shapes-upernet"))
model.visualize_associations(image_file, output, points=[(80, 60)], arrays=output / "arrays.npz")
with np.load(output / "arrays.npz") as file:
    arrays = dict(file)
layers = [key.removesuffix(".association") for key in arrays if key.endswith(".association")]
print("layers with super tokens:", *layers)
# --8<-- [end:arrays]

# %% [markdown]
# Each token shares itself among the nine super tokens around it, and these weights sum to one.

# %%
# --8<-- [start:association]
layer = layers[0]
association, neighbours = arrays[f"{layer}.association"], arrays[f"{layer}.neighbours"]
print(f"{layer}: {association.shape[:2]} tokens, {arrays[f'{layer}.super_tokens']} super tokens")
inside = np.where(neighbours < 0, 0, association)  # a neighbour outside the image has index -1
size = np.bincount(neighbours[neighbours >= 0], weights=inside[neighbours >= 0])
print(f"a super token has {size.min():.1f} to {size.max():.1f} tokens")
print(f"the strongest of nine weights is {association.max(axis=2).mean():.2f} on average, 1/9 where they are equal")
# --8<-- [end:association]

# %% [markdown]
# The strongest super token of each pixel is a superpixel: outlines on the image, mean colours, attention of the point.

# %%
# --8<-- [start:plot]
image = np.asarray(stvit_cli.data.images.open_image(image_file))
labels = arrays[f"{layer}.label_map"]
edges = np.pad(labels[1:] != labels[:-1], ((0, 1), (0, 0))) | np.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (0, 1)))
counts = np.maximum(np.bincount(labels.ravel()), 1)
means = np.stack([np.bincount(labels.ravel(), weights=image[..., channel].ravel()) / counts for channel in range(3)], axis=1)

plot = Figure(figsize=(12, 4), layout="constrained")
shown = {"outlines": np.where(edges[..., None], 255, image), "mean colours": means[labels].astype(np.uint8)}
shown[f"attention of {arrays['points'][0]}"] = arrays[f"{layer}.point_attention"][0].mean(axis=0)
for axes, (title, panel) in zip(plot.subplots(1, 3), shown.items(), strict=True):
    axes.imshow(panel)
    axes.set_title(title)
    axes.axis("off")
plot.savefig(output / "super-tokens.png")
Image.open(output / "super-tokens.png").convert("RGB")  # shown by a notebook
# --8<-- [end:plot]
