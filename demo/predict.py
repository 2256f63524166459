"""The Python API step by step; VS Code, PyCharm and Jupyter (with jupytext) run it cell by cell.

From the root of the repository, after the quick start:

    python demo/predict.py
"""

# %% A detector is a configuration and its weights
import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atss_core.engine import Predictor
from atss_core.utils.extras import has
from atss_core.utils.files import atomic_write, refuse_overwriting
from atss_core.visualization.boxes import save_image


def path(text: str) -> Path:
    """Read a path that may begin with ~."""
    return Path(os.path.expanduser(text))


parser = argparse.ArgumentParser(description="Go through the Python API.")
parser.add_argument("--config", default="atss_R_18_shapes")
parser.add_argument("--weights", default="training_dir/quickstart/model_final.pth")
parser.add_argument("--images", default="demo/images", type=path, help="a folder")
parser.add_argument("--output-dir", default="demo/output", type=path)
parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
arguments, _ = parser.parse_known_args()  # notebooks add their own

predictor = Predictor.from_config(arguments.config, weights=arguments.weights, opts=arguments.opts)
print("classes:", ", ".join(predictor.class_names))

# %% One image
files = sorted(arguments.images.glob("*.jpg"))
detections = predictor(files[0]).above(0.5)
print(repr(detections))
for name, score, (x1, y1, x2, y2) in detections.rows():
    print(f"{name:10} {score:.2f}  x {x1:.0f} to {x2:.0f}, y {y1:.0f} to {y2:.0f}")

# %% Boxes as tensors: inclusive (x1, y1, x2, y2) in pixels, labels from 1
print(detections.boxes.shape, detections.scores.shape, detections.labels.tolist())

# %% Drawn; small images are enlarged so that text is readable
drawn = detections.draw(scale=3)
outputs = [arguments.output_dir / name for name in ("predict.png", "predict.json")]
refuse_overwriting(outputs, Path(arguments.images).iterdir(), "Give another --output-dir.")
save_image(drawn, arguments.output_dir / "predict.png")
drawn  # noqa: B018, which a notebook shows

# %% Whatever holds an image
image = Image.open(files[0]).convert("RGB")
bgr = np.asarray(image)[:, :, ::-1]  # as cv2.imread returns it
tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), RGB
content = files[0].read_bytes()  # of an upload, say; encoded, as in the file
for same in (image, bgr, tensor, tensor / 255, content):
    print(type(same).__name__, predictor(same).above(0.5))

# %% Several images
for detections in predictor([files[0], image, bgr], batch_size=3):
    print(detections.path, detections.above(0.5))

# %% A folder, however large: one batch is in memory at a time
results = []
for image_id, (_, detections) in enumerate(predictor.stream(arguments.images, batch_size=4), start=1):
    print(f"{detections.path}: {detections.above(0.5)}")
    results += detections.to_coco(image_id)
print(len(predictor.skipped), "files cannot be read")

# %% COCO's format for results
with atomic_write(arguments.output_dir / "predict.json", "w") as file:
    json.dump(results, file)
print(len(results), "results, the first:", results[0] if results else None)

# %% The package supervision has zones and more ways to draw; the package trackers takes the same detections
if has("supervision"):
    converted = detections.above(0.5).to_supervision()
    print("supervision:", len(converted), "detections", converted.data["class_name"].tolist())
else:
    print("pip install supervision, to go on with it")
