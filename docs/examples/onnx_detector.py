"""Find the objects in a photo by an exported file: python docs/examples/onnx_detector.py MODEL.onnx PHOTO.

It needs onnxruntime, numpy and Pillow, and neither stvit nor PyTorch.
"""

# --8<-- [start:lines]
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
meta = session.get_modelmeta().custom_metadata_map
names, mean, std, prepare = (json.loads(meta[key]) for key in ("class_names", "mean", "std", "preparation"))
image, sides = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB"), prepare["resize"]
scale = min(sides["short_side"] / min(image.size), sides["max_long_side"] / max(image.size))
size = tuple(max(1, int(side * scale)) for side in image.size)
matrix = (image.width / size[0], 0, 0, 0, image.height / size[1], 0)  # Pillow's resize would average: "antialias" is false
bands = [band.convert("F").transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR) for band in image.split()]
pixels = ((np.stack(bands, 2) / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)
boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"images": pixels[None]})  # and "masks", if it has them
boxes = boxes * (2 * [matrix[0], matrix[4]])  # left, top, right, bottom in pixels of the photo
print(*(f"{names[labels[i]]} {scores[i]:.6f} {boxes[i].round(2)}" for i in range(len(boxes)) if scores[i] >= 0.5), sep="\n")
# --8<-- [end:lines]
