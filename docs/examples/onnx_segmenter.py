"""Write the label map of a photo by an exported file: python docs/examples/onnx_segmenter.py MODEL.onnx PHOTO LABELS.png.

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
mean, std, prepare = (json.loads(meta[key]) for key in ("mean", "std", "preparation"))
image, sides = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB"), prepare["resize"]
scale = min(sides["max_long_side"] / max(image.size), sides["max_short_side"] / min(image.size))
w, h = (max(1, int(side * scale + 0.5)) for side in image.size)
pixels = np.asarray(image.resize((w, h), Image.Resampling[meta["interpolation"].upper()])) / 255
pixels = np.pad((pixels - mean) / std, ((0, -h % prepare["size_divisor"]), (0, -w % prepare["size_divisor"]), (0, 0)), "edge")
logits = session.run(None, {"images": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0][0, :, :h, :w]
# To the size of the photo, two by two pixels:
affine = (Image.Transform.AFFINE, (w / image.width, 0, 0, 0, h / image.height, 0), Image.Resampling.BILINEAR)
labels = np.stack([Image.fromarray(each).transform(image.size, *affine) for each in logits]).argmax(0)
Image.fromarray(labels.astype(np.uint8)).save(sys.argv[3])
# --8<-- [end:lines]
