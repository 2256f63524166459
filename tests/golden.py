"""Read the golden numbers of ``tests/reference``, and fill networks with the weights behind them."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from atss_core.config import load_cfg
from atss_core.modeling import build_detector
from atss_core.structures import BoxList, ImageList

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests" / "reference"
SHARED = ROOT.parent / "shared"
SEED = 20206

needs_coco_tiny = pytest.mark.skipif(
    not (SHARED / "coco_tiny").is_dir(), reason="needs the COCO images in ../shared/coco_tiny"
)

# The gain of a convolution's weights, by the first of these that its key contains; 1 for the others.
GAINS = {
    ".stem.conv1.": 1 / 64,
    ".offset.": 0.5,
    ".downsample.0.": math.sqrt(0.5),
    ".fpn.": math.sqrt(0.5),
    ".cls_logits.": 1.3,
    ".bbox_pred.": 1.5,
}


def arrays(name):
    return np.load(REFERENCE / f"{name}.npz")


def numbers(name):
    return json.loads((REFERENCE / f"{name}.json").read_text())


def weight(key, shape, regresses_points):
    """The value of a state-dict entry: a function of its key, shape and the seed alone."""
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + SEED)).standard_normal(
        tuple(shape)
    )
    kind = key.rsplit(".", 1)[1]
    if len(shape) == 4:
        gain = next((value for part, value in GAINS.items() if part in key), 1.0)
        value = gain * math.sqrt(2 / math.prod(shape[1:])) * noise
    elif kind == "running_var":
        value = 1 + 0.1 * np.abs(noise)
    elif kind in ("scale", "weight"):
        value = (1 + 0.1 * noise) * (0.3 if ".bn3." in key else 1)
    else:
        value = 0.1 * noise
        value -= 5.5 if key.endswith("cls_logits.bias") else 0
        value += 4 if regresses_points and key.endswith("bbox_pred.bias") else 0
    return torch.from_numpy(value.astype(np.float32))


def detector(config, **atss):
    """A published model with golden weights; keyword arguments override keys of MODEL.ATSS."""
    opts = [word for key, value in atss.items() for word in (f"MODEL.ATSS.{key}", str(value))]
    model = build_detector(load_cfg(ROOT / "configs" / "atss" / f"{config}.yaml", opts))
    points = atss.get("REGRESSION_TYPE") == "POINT"
    model.load_state_dict(
        {k: v if ".cell_anchors." in k else weight(k, v.shape, points) for k, v in model.state_dict().items()}
    )
    return model


def images():
    """Both golden images, normalised in BGR and padded, as the published code does it."""
    mean = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    pixels = arrays("images")
    planes = [torch.from_numpy(pixels[k]).permute(2, 0, 1).flip(0) for k in ("img0", "img1")]
    return ImageList.from_tensors([plane.float() - mean for plane in planes], size_divisibility=32)


def targets(golden, image_sizes):
    return [
        BoxList(torch.from_numpy(golden[f"boxes{i}"]), size, labels=torch.from_numpy(golden[f"labels{i}"]))
        for i, size in enumerate(image_sizes)
    ]
