"""Read ImageNet backbones of torchvision, timm and Caffe2 under the names of our backbone.

Caffe2 weights expect BGR in 0..255 minus a mean. Those of torchvision and timm expect RGB in 0..1, normalised
with their own mean and standard deviation.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor, nn
from torchvision.models import get_model_weights

from atss_core.checkpoint.download import fetch, how_to_get_again, is_url, locate, without_secrets
from atss_core.checkpoint.formats import read_caffe2, read_checkpoint
from atss_core.config.catalog import TIMM_URL, TORCHVISION_BACKBONES, find_weights
from atss_core.structures.pixel_format import CAFFE2_PIXELS, TORCHVISION_PIXELS, PixelFormat

logger = logging.getLogger(__name__)

# The batch norms of torchvision and timm add this to the variance. Ours add nothing where they are fixed.
_BATCH_NORM_EPS = 1e-5
# timm has backbones of the same keys that compute something else (resnetaa50, resnetblur50).
_PLAIN_TIMM = re.compile(r"(wide_)?(resnet|resnext)(18|34|50|101|152)(_\d+x\d+d|_2|_gn)?")


@dataclass(frozen=True)
class BackboneWeights:
    """ImageNet weights.

    Attributes:
        source: name for messages.
        weights: by the keys of a backbone without deformable convolutions; a classifier may be among them.
        pixels: input format they were trained with, None if unknown.
        is_caffe2: batch norms are folded into scale and shift, and the stride of a stage may be in the 1x1 or
            3x3 convolution; else they have statistics and an epsilon, and the stride is in the 3x3.
        has_group_norm: the norms are group norms.
    """

    source: str
    weights: dict[str, Tensor]
    pixels: PixelFormat | None
    is_caffe2: bool
    has_group_norm: bool


def is_imagenet_backbone(source: str | Path) -> bool:
    """Tell whether a source names an ImageNet backbone, which is no detector."""
    source = str(source)
    path = urlsplit(source).path if is_url(source) else source
    return source.startswith(("catalog://", "torchvision://", "timm://")) or path.endswith(".pkl")


def read_backbone(source: str) -> BackboneWeights:
    """Read a source that ``is_imagenet_backbone`` recognised."""
    scheme, _, name = source.partition("://")
    if scheme == "torchvision":
        return _read_torchvision(name)
    if scheme == "timm":
        return _read_timm(name)
    blobs = read_caffe2(fetch(find_weights(name)) if scheme == "catalog" else locate(source))
    return BackboneWeights(
        without_secrets(source),
        {backbone_key(blob): value for blob, value in blobs.items()},
        CAFFE2_PIXELS,
        is_caffe2=True,
        has_group_norm=any("_gn_" in blob for blob in blobs),
    )


def _read_torchvision(name: str) -> BackboneWeights:
    """Read weights of torchvision, such as ``resnet50`` or ``resnet50.IMAGENET1K_V2``."""
    # V1 by default: published detectors were trained from those, so numbers compare. V2 comes from another
    # training recipe and needs settings of its own.
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
    digits = re.search(r"-([0-9a-f]{8,})\.", entry.url)
    weights = read_checkpoint(fetch(entry.url, sha256=digits[1] if digits else ""))["model"]
    inputs = entry.transforms()
    pixels = PixelFormat(tuple(inputs.mean), tuple(inputs.std), is_bgr255=False)
    return from_torch_format(f"torchvision://{name}", weights, pixels)


def _read_timm(name: str) -> BackboneWeights:
    """Read weights of timm, such as ``resnet50.a1_in1k``, from its pages on Hugging Face."""
    model, _, tag = name.partition(".")
    if not tag or not _PLAIN_TIMM.fullmatch(model):
        raise ValueError(
            f"expected timm://NAME.TAG with a plain ResNet or ResNeXt, such as timm://resnet50.a1_in1k, got "
            f"timm://{name}"
        )
    description = fetch(TIMM_URL.format(name=name, file="config.json"))
    weights = read_checkpoint(fetch(TIMM_URL.format(name=name, file="model.safetensors")))["model"]
    try:
        inputs = json.loads(description.read_text(encoding="utf-8"))["pretrained_cfg"]
        pixels = PixelFormat(tuple(inputs["mean"]), tuple(inputs["std"]), is_bgr255=False)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected mean and std under pretrained_cfg in {description}; {how_to_get_again(description)}"
        ) from error
    return from_torch_format(f"timm://{name}", weights, pixels)


def has_torch_format(weights: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is that of a classifier of torchvision or timm."""
    return "conv1.weight" in weights and "layer1.0.conv1.weight" in weights


def from_torch_format(
    source: str, weights: Mapping[str, Tensor], pixels: PixelFormat | None = None
) -> BackboneWeights:
    """Rename weights of torchvision or timm: their names are those of our backbone without ``stem``."""
    renamed = {re.sub(r"^(conv1|bn1)\.", r"stem.\1.", key): value for key, value in weights.items()}
    has_group_norm = not any(key.endswith(".running_var") for key in weights)
    return BackboneWeights(source, renamed, pixels, is_caffe2=False, has_group_norm=has_group_norm)


_CAFFE2_NAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^conv1_gn_", "stem.bn1_"),
        (r"^conv1_", "stem.conv1_"),
        (r"^res_conv1_bn_", "stem.bn1_"),
        (r"^res(\d)_(\d+)_", lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
        (r"branch1_[bg]n_", "downsample.1_"),
        (r"branch1_", "downsample.0_"),
        (r"branch2([abc])_[bg]n_", lambda m: f"bn{'abc'.index(m[1]) + 1}_"),
        (r"branch2([abc])_", lambda m: f"conv{'abc'.index(m[1]) + 1}_"),
        (r"_(w|s)$", ".weight"),
        (r"_b$", ".bias"),
    )
]


def backbone_key(blob: str) -> str:
    """Translate a Caffe2 blob name, such as ``res3_0_branch2b_bn_s``, to a key of the backbone."""
    for pattern, replacement in _CAFFE2_NAMES:
        blob = pattern.sub(replacement, blob)
    return blob


def check_backbone(source: BackboneWeights, backbone: nn.Module, pixels: PixelFormat | None) -> None:
    """Refuse weights that fit by names and shapes, but not by the input format or the architecture.

    Raises:
        ValueError: with the overrides to paste.
    """
    if pixels and source.pixels and not pixels.suits(source.pixels):
        raise ValueError(
            f"{source.source} was trained with {source.pixels}, but the configuration has {pixels}; "
            f"add {source.pixels.overrides()}"
        )
    if pixels and not source.pixels and not pixels.suits(TORCHVISION_PIXELS):
        logger.warning(
            "%s does not say which pixels it was trained with; weights of torchvision want %s",
            source.source,
            TORCHVISION_PIXELS.overrides(),
        )
    has_group_norm = any(isinstance(module, nn.GroupNorm) for module in backbone.modules())
    if has_group_norm != source.has_group_norm:
        norms = {True: "group norms", False: "batch norms"}
        kind = "GN" if source.has_group_norm else "FixedBatchNorm"
        raise ValueError(
            f"{source.source} has {norms[source.has_group_norm]}, but the backbone of this configuration has "
            f"{norms[has_group_norm]}; add MODEL.RESNETS.TRANS_FUNC BottleneckWith{kind} "
            f"MODEL.RESNETS.STEM_FUNC StemWith{kind}"
        )
    first: Any = backbone.get_submodule("layer2.0")
    if not source.is_caffe2 and hasattr(first, "conv3") and first.conv1.stride != (1, 1):
        raise ValueError(
            f"{source.source} has the stride of a stage in its 3x3 convolution, but this configuration has "
            f"it in the 1x1; add MODEL.RESNETS.STRIDE_IN_1X1 False"
        )


def adapt(source: BackboneWeights, backbone: nn.Module) -> dict[str, Tensor]:
    """Return the weights as a backbone names and uses them.

    The weights of a plain convolution ``conv2`` become those of ``conv2.conv`` in a deformable one. A fixed
    batch norm, which has no epsilon, gets that of the file added to its variance.
    """
    modules = dict(backbone.named_modules())
    weights = {}
    for key, value in source.weights.items():
        module, _, kind = key.rpartition(".")
        name = f"{module}.conv" if f"{module}.conv" in modules else module
        if kind == "running_var" and not hasattr(modules.get(name), "eps"):
            value = value + _BATCH_NORM_EPS
        weights[f"{name}.{kind}"] = value
    return weights
