"""ImageNet weights for the body: where they are, how they name things, and which pixels they want.

Caffe2 weights want BGR in 0..255 with a mean subtracted; torchvision's and timm's want RGB in 0..1,
normalised with their own mean and standard deviation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor
from torchvision.models import get_model_weights

from atss_core.checkpoint.caffe2 import backbone_key, read_caffe2
from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.checkpoint.download import fetch, how_to_get_again, is_url, locate, without_secrets
from atss_core.config.catalog import TIMM_URL, TORCHVISION_BACKBONES, find_weights
from atss_core.utils.pixels import CAFFE2_PIXELS, PixelFormat

# torchvision's and timm's batch norms add this to the variance. Ours, where they are fixed, add nothing.
BATCH_NORM_EPS = 1e-5

# timm has backbones with the same keys that compute something else (resnetaa50, resnetblur50), so this lists
# the plain ones.
_PLAIN_TIMM = re.compile(r"(wide_)?(resnet|resnext)(18|34|50|101|152)(_\d+x\d+d|_2|_gn)?")


@dataclass(frozen=True)
class BackboneWeights:
    """ImageNet weights.

    Attributes:
        source: where they come from, for messages.
        weights: by the keys of a backbone without deformable convolutions; there may be others.
        pixels: what they were trained with, None if unknown.
        is_caffe2: batch norms are folded into scale and shift, and the stride of a stage may be in the 1x1 or
            3x3 convolution; else they have statistics and ``BATCH_NORM_EPS``, and the stride is in the 3x3.
        has_group_norm: the norms are group norms.
    """

    source: str
    weights: dict[str, Tensor]
    pixels: PixelFormat | None
    is_caffe2: bool
    has_group_norm: bool


def is_imagenet_backbone(source: str | Path) -> bool:
    """Tell whether a name stands for an ImageNet backbone, which is no detector."""
    source = str(source)
    path = urlsplit(source).path if is_url(source) else source
    return source.startswith(("catalog://", "torchvision://", "timm://")) or path.endswith(".pkl")


def read_imagenet_backbone(source: str) -> BackboneWeights:
    """Read the ImageNet weights that ``is_imagenet_backbone`` recognised, downloading them if need be.

    Raises:
        ValueError: if there is no such name, or the weights cannot be had or read.
        FileNotFoundError: if there is no such file.
    """
    scheme, _, name = source.partition("://")
    if scheme == "torchvision":
        return read_torchvision(name)
    if scheme == "timm":
        return read_timm(name)
    path = fetch(find_weights(name)) if scheme == "catalog" else locate(source)
    blobs = read_caffe2(path)
    return BackboneWeights(
        source=without_secrets(source),
        weights={backbone_key(blob): value for blob, value in blobs.items()},
        pixels=CAFFE2_PIXELS,
        is_caffe2=True,
        has_group_norm=any("_gn_" in blob for blob in blobs),
    )


def read_torchvision(name: str) -> BackboneWeights:
    """Read torchvision's weights ``resnet50`` or ``resnet50.IMAGENET1K_V2``.

    Raises:
        ValueError: if there are none of that name, or they cannot be had or read.
    """
    # V1 by default: those are what published detectors, torchvision's among them, were first trained from, so
    # numbers compare. V2 is another recipe of training and wants settings of its own.
    model, _, version = name.partition(".")
    if model not in TORCHVISION_BACKBONES:
        raise ValueError(
            f"expected torchvision://NAME with one of {', '.join(TORCHVISION_BACKBONES)}, got torchvision://{name}"
        )
    versions = get_model_weights(model).__members__
    if (version or "IMAGENET1K_V1") not in versions:
        raise ValueError(
            f"torchvision has no {version} of {model}; use torchvision://{model}.{' or .'.join(versions)}"
        )
    entry = versions[version or "IMAGENET1K_V1"]
    # torchvision's file names end in the first digits of the sum, see torch.hub.load_state_dict_from_url.
    found = re.search(r"-([0-9a-f]{8,})\.", entry.url)
    path = fetch(entry.url, sha256=found[1] if found else "")
    expected = entry.transforms()
    pixels = PixelFormat(tuple(expected.mean), tuple(expected.std), is_bgr255=False)
    return from_torch_layout(f"torchvision://{name}", read_checkpoint(path)["model"], pixels)


def read_timm(name: str) -> BackboneWeights:
    """Read timm's weights, such as ``resnet50.a1_in1k``, from its pages on Hugging Face.

    Raises:
        ValueError: if the name does not fit or the weights cannot be had or read.
    """
    model, _, tag = name.partition(".")
    if not tag or not _PLAIN_TIMM.fullmatch(model):
        raise ValueError(
            f"expected timm://NAME.TAG with a plain ResNet or ResNeXt, such as timm://resnet50.a1_in1k, got "
            f"timm://{name}"
        )
    description = fetch(TIMM_URL.format(name=name, file="config.json"))
    path = fetch(TIMM_URL.format(name=name, file="model.safetensors"))
    try:
        expected = json.loads(description.read_text(encoding="utf-8"))["pretrained_cfg"]
        pixels = PixelFormat(tuple(expected["mean"]), tuple(expected["std"]), is_bgr255=False)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected mean and std under pretrained_cfg in {description}; {how_to_get_again(description)}"
        ) from error
    return from_torch_layout(f"timm://{name}", read_checkpoint(path)["model"], pixels)


def has_torch_layout(weights: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is a classifier of torchvision or timm."""
    return "conv1.weight" in weights and "layer1.0.conv1.weight" in weights


def from_torch_layout(
    source: str, weights: Mapping[str, Tensor], pixels: PixelFormat | None = None
) -> BackboneWeights:
    """Rename torchvision's or timm's weights: the names are those of our backbone without ``stem``."""
    return BackboneWeights(
        source=source,
        weights={re.sub(r"^(conv1|bn1)\.", r"stem.\1.", key): value for key, value in weights.items()},
        pixels=pixels,
        is_caffe2=False,
        has_group_norm=not any(key.endswith(".running_var") for key in weights),
    )
