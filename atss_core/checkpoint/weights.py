"""Weights to start training from: checkpoints of detectors, and ImageNet bodies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atss_core.checkpoint.checkpointer import load_weights_strictly, read_checkpoint
from atss_core.checkpoint.classifier import match_classes
from atss_core.checkpoint.download import locate, without_secrets
from atss_core.checkpoint.fit import Fit, compare, is_anchors
from atss_core.checkpoint.imagenet import (
    BATCH_NORM_EPS,
    BackboneWeights,
    from_torch_layout,
    has_torch_layout,
    is_imagenet_backbone,
    read_imagenet_backbone,
)
from atss_core.utils.pixels import TORCHVISION_PIXELS, PixelFormat

logger = logging.getLogger(__name__)

# Caffe2 convolutions can carry a bias that the following batch norm cancels; it is zero up to rounding.
NO_BIAS = 1e-3


def load_initial_weights(
    detector: nn.Module,
    source: str,
    *,
    partial: bool = False,
    pixels: PixelFormat | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Load what MODEL.WEIGHT names and log what was and was not loaded.

    Args:
        detector: receives the weights.
        source: empty keeps the fresh weights. ``catalog://NAME``, ``torchvision://NAME``, ``timm://NAME.TAG``,
            a ``.pkl`` file and a ``.pth`` or ``.safetensors`` file of torchvision or timm load an ImageNet
            body. Anything else is a checkpoint of a detector. Files may be paths or http(s) URLs.
        partial: load what fits of a detector and leave the rest fresh; else it must fit exactly.
        pixels: what the data gives the network, compared with the format of the ImageNet backbone. None
            is not checked.
        class_names: classes of the data; the classifier of a detector is matched to them by name. None is
            not checked.

    Raises:
        ValueError: if the weights cannot be had, cannot be read or do not fit.
        FileNotFoundError: if there is no such file.
    """
    if not source:
        logger.info("Starting from random weights (MODEL.WEIGHT is empty)")
        return
    if is_imagenet_backbone(source):
        load_backbone(detector, read_imagenet_backbone(source), pixels)
        return
    checkpoint = read_checkpoint(locate(source))
    weights = weights_of(checkpoint)
    name = without_secrets(source)
    if has_torch_layout(weights):
        load_backbone(detector, from_torch_layout(name, weights), pixels)
        return
    if class_names:
        weights = match_classes(
            detector, weights, checkpoint.get("class_names"), class_names, name, partial=partial
        )
    load_detector(detector, weights, name, partial=partial)


def read_detector(source: str | Path) -> tuple[str, dict[str, Any]]:
    """Read the checkpoint of a trained detector.

    Args:
        source: path or http(s) URL.

    Returns:
        The source for messages, and what ``read_checkpoint`` returns.

    Raises:
        ValueError: if it is an ImageNet backbone, or cannot be had or read.
        FileNotFoundError: if there is no such file.
    """
    name = without_secrets(source)
    checkpoint = {} if is_imagenet_backbone(source) else read_checkpoint(locate(source))
    if not checkpoint or has_torch_layout(weights_of(checkpoint)):
        raise ValueError(
            f"{name} names an ImageNet backbone, not a detector; give the .pth or .safetensors file of a "
            f"trained detector, or train one from it with MODEL.WEIGHT"
        )
    return name, checkpoint


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint if it has them, else those of its last iteration."""
    averaged = checkpoint.get("ema")
    return averaged["model"] if isinstance(averaged, dict) and "model" in averaged else checkpoint["model"]


def load_trained(
    detector: nn.Module, checkpoint: Mapping[str, Any], source: str, class_names: Sequence[str] | None = None
) -> None:
    """Load the checkpoint of a trained detector, which must fit exactly.

    Args:
        detector: receives the weights.
        checkpoint: as ``read_detector`` returns.
        source: where it comes from, for messages.
        class_names: classes of the data in the order of their labels, to which the classifier is matched by
            name; None keeps the order of the checkpoint.

    Raises:
        ValueError: as ``match_classes`` and ``load_weights_strictly``; the detector is then unchanged.
    """
    weights = weights_of(checkpoint)
    learned = checkpoint.get("class_names")
    load_weights_strictly(detector, match_classes(detector, weights, learned, class_names, source), source)


def load_detector(detector: nn.Module, weights: dict[str, Tensor], source: str, *, partial: bool) -> None:
    """Load the weights of a whole detector, or what fits of them, to start training from.

    Anchors are configuration: those of the detector stay, with a warning if the checkpoint has others.

    Args:
        detector: receives the weights.
        weights: state dict.
        source: where it comes from, for messages.
        partial: leave what does not fit as it is.

    Raises:
        ValueError: if the weights do not fit or, with ``partial``, none does; the detector is then unchanged.
    """
    own = detector.state_dict()
    fit = compare(own, weights, source)
    others = [*fit.other_anchors, *filter(is_anchors, fit.other_shape)]
    if others:
        logger.warning("%s has other anchors; those of the configuration stay: %s", source, "; ".join(others))
    if not partial:
        anchors = {
            key: value
            for key, value in own.items()
            if is_anchors(key) and key in weights and weights[key].shape == value.shape
        }
        load_weights_strictly(
            detector,
            weights | anchors,
            source,
            remedy=", or MODEL.WEIGHT_PARTIAL True to load what fits of it",
        )
    else:
        fit = compare(without_anchors(own), without_anchors(weights), source)
        if not fit.loaded:
            raise ValueError(
                f"none of the {len(weights)} tensors of {source} fits this configuration; "
                f"set MODEL.WEIGHT to the weights of a detector like it"
            )
        detector.load_state_dict({key: weights[key] for key in fit.loaded}, strict=False)
    logger.info("Loaded %s\n%s", source, fit.table())


def without_anchors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the anchors, which a checkpoint holds but which are not learned."""
    return {key: value for key, value in weights.items() if not is_anchors(key)}


def load_backbone(detector: nn.Module, source: BackboneWeights, pixels: PixelFormat | None = None) -> None:
    """Load ImageNet weights into ``detector.backbone.body``.

    Every weight of the backbone must be there, except deformable offsets, which ImageNet models do not have,
    and, from Caffe2, the statistics of batch norms, which are folded into weight and bias there.

    Args:
        detector: receives the weights.
        source: what to load.
        pixels: what the data gives the network; None is not checked.

    Raises:
        ValueError: if the weights do not fit the backbone or the pixels; the backbone is then unchanged.
    """
    body: nn.Module = detector.get_submodule("backbone.body")
    check_pixels(source, pixels)
    check_architecture(source, body)
    weights = adapt(source, body)
    fit = compare(body.state_dict(), weights, source.source)
    check_fit(source, body, fit, weights)
    body.load_state_dict({key: weights[key] for key in fit.loaded}, strict=False)
    logger.info("Loaded the backbone from %s\n%s", source.source, fit.table())


def check_fit(source: BackboneWeights, body: nn.Module, fit: Fit, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of another body.

    Args:
        source: what to load.
        body: would receive it.
        fit: of ``weights`` to the body.
        weights: those of the source by the names of the body.

    Raises:
        ValueError: listing what is missing, of another shape or of parts that the backbone lacks.
    """
    optional = [".offset.weight", ".offset.bias", ".num_batches_tracked"]
    if source.is_caffe2:
        optional += [".running_mean", ".running_var"]
    missing = [key for key in fit.absent if not key.endswith(tuple(optional))]
    modules = dict(body.named_modules())
    own = [key for key in fit.unused if key.startswith(("stem.", "layer"))]  # the rest is the classifier
    lacking = [
        key
        for key in own
        if key.rpartition(".")[0] not in modules
        or (key.endswith(".bias") and (weights[key].abs() > NO_BIAS).any())
    ]
    problems = {"missing": missing, "of another shape": fit.other_shape, "of parts it lacks": lacking}
    if any(problems.values()):
        found = ", ".join(
            f"{len(keys)} weights {kind} ({', '.join(keys[:3])})" for kind, keys in problems.items() if keys
        )
        raise ValueError(
            f"{source.source} does not fit the backbone of this configuration: {found}. Choose weights of "
            f"the depth, groups and width of MODEL.BACKBONE.CONV_BODY and MODEL.RESNETS"
        )


def check_pixels(source: BackboneWeights, pixels: PixelFormat | None) -> None:
    """Refuse pixels that do not suit the weights, as ``PixelFormat.suits`` says.

    Where the file does not say what it was trained with, warn if they do not suit torchvision's weights.

    Args:
        source: what to load.
        pixels: what the data gives the network; None is not checked.

    Raises:
        ValueError: with the overrides to paste.
    """
    if pixels is None:
        return
    if source.pixels is None:
        if not pixels.suits(TORCHVISION_PIXELS):
            logger.warning(
                "%s does not say which pixels it was trained with; weights of torchvision want %s",
                source.source,
                TORCHVISION_PIXELS.overrides(),
            )
    elif not pixels.suits(source.pixels):
        raise ValueError(
            f"{source.source} was trained with {source.pixels}, but the configuration has {pixels}; "
            f"add {source.pixels.overrides()}"
        )


def check_architecture(source: BackboneWeights, body: nn.Module) -> None:
    """Refuse backbones whose weights have the same names and shapes but compute something else.

    Raises:
        ValueError: with the override to paste, if the stride of a stage or the kind of norm is another.
    """
    has_group_norm = any(isinstance(module, nn.GroupNorm) for module in body.modules())
    if has_group_norm != source.has_group_norm:
        names = {True: "group norms", False: "batch norms"}
        kind = "GN" if source.has_group_norm else "FixedBatchNorm"
        raise ValueError(
            f"{source.source} has {names[source.has_group_norm]}, but the backbone of this configuration has "
            f"{names[has_group_norm]}; add MODEL.RESNETS.TRANS_FUNC BottleneckWith{kind} "
            f"MODEL.RESNETS.STEM_FUNC StemWith{kind}"
        )
    first: Any = body.get_submodule("layer2.0")
    if not source.is_caffe2 and hasattr(first, "conv3") and first.conv1.stride != (1, 1):
        raise ValueError(
            f"{source.source} has the stride of a stage in its 3x3 convolution, but this configuration has "
            f"it in the 1x1; add MODEL.RESNETS.STRIDE_IN_1X1 False"
        )


def adapt(source: BackboneWeights, body: nn.Module) -> dict[str, Tensor]:
    """Return weights as this backbone names and uses them.

    A deformable convolution is ``conv2.conv`` where the plain one was ``conv2``. A fixed batch norm, which
    has no ``eps``, gets that of the file added to its variance, so that it computes what the file's did.
    """
    modules = dict(body.named_modules())
    weights = {}
    for key, value in source.weights.items():
        module, _, kind = key.rpartition(".")
        name = f"{module}.conv" if f"{module}.conv" in modules else module
        if kind == "running_var" and not hasattr(modules.get(name), "eps"):
            value = value + BATCH_NORM_EPS
        weights[f"{name}.{kind}"] = value
    return weights
