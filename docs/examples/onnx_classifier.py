"""Classify a photo by an exported file: python docs/examples/onnx_classifier.py MODEL.onnx PHOTO.

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
size, crop_pct, mean, std, names = (json.loads(meta[key]) for key in ("image_size", "crop_pct", "mean", "std", "class_names"))
image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("L" if meta["in_chans"] == "1" else "RGB")
short = int(size / crop_pct)
image = image.resize([side * short // min(image.size) for side in image.size], Image.Resampling[meta["interpolation"].upper()])
left, top = (round((side - size) / 2) for side in image.size)
pixels = np.atleast_3d(np.asarray(image.crop((left, top, left + size, top + size)))) / 255
pixels = ((pixels - mean) / std).astype(np.float32).transpose(2, 0, 1)
logits = session.run(None, {"images": pixels[None]})[0][0]
scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
print(f"{names[scores.argmax()]} {scores.max():.6f}")
# --8<-- [end:lines]
