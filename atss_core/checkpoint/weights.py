"""Load weights into a detector: those of a trained detector, or an ImageNet backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atss_core.checkpoint.backbones import (
    BackboneWeights,
    adapt,
    check_backbone,
    from_torch_format,
    has_torch_format,
    is_imagenet_backbone,
    read_backbone,
)
from atss_core.checkpoint.download import locate, without_secrets
from atss_core.checkpoint.formats import read_checkpoint
from atss_core.config.catalog import COCO_CLASSES
from atss_core.structures.pixel_format import PixelFormat
from atss_core.utils.text import printable, shorten

logger = logging.getLogger(__name__)

_CLASSIFIER = ("rpn.head.cls_logits.weight", "rpn.head.cls_logits.bias")
_TABLE_WIDTH = 98  # columns
# Caffe2 convolutions can carry a bias that the following batch norm cancels; it is zero up to rounding.
_NO_BIAS = 1e-3


def load_initial_weights(
    detector: nn.Module,
    source: str,
    *,
    partial: bool = False,
    pixels: PixelFormat | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Load the weights to start training from and log what was loaded.

    Args:
        detector: receives the weights.
        source: empty keeps the random weights. ``catalog://NAME``, ``torchvision://NAME``, ``timm://NAME.TAG``,
            a ``.pkl`` file and a ``.pth`` or ``.safetensors`` file of torchvision or timm load an ImageNet
            backbone. Anything else is a checkpoint of a detector. Files may be paths or http(s) URLs.
        partial: load what fits of a detector and leave the rest as it is; else all must fit.
        pixels: input format of the network, which must suit an ImageNet backbone; None is not checked.
        class_names: classes of the data; the classifier is matched to them by name. None is not checked.

    Raises:
        ValueError: if the weights cannot be downloaded or read, or do not fit; the detector stays unchanged.
        FileNotFoundError: if there is no such file.
    """
    if not source:
        logger.info("Starting from random weights (MODEL.WEIGHT is empty)")
        return
    if is_imagenet_backbone(source):
        _load_backbone(detector, read_backbone(source), pixels)
        return
    name, checkpoint = without_secrets(source), read_checkpoint(locate(source))
    weights = weights_of(checkpoint)
    if has_torch_format(weights):
        _load_backbone(detector, from_torch_format(name, weights), pixels)
        return
    if class_names:
        names = checkpoint.get("class_names")
        weights = _match_classes(detector, weights, names, class_names, name, partial=partial)
    fit = compare(detector, weights, name)
    anchors = [*fit.other_anchors, *filter(_is_anchors, fit.other_shape)]
    if anchors:
        logger.warning("%s has other anchors; those of the configuration stay: %s", name, "; ".join(anchors))
    if not partial:
        remedy = "or set MODEL.WEIGHT_PARTIAL True to load what fits of it"
        replace(fit, other_anchors=[]).refuse_misfit(remedy=remedy)
    elif all(map(_is_anchors, fit.loaded)):
        raise ValueError(
            f"none of the {len(weights)} tensors of {name} fits this configuration; set MODEL.WEIGHT to the "
            f"weights of a detector like it"
        )
    fit.load(detector, weights)
    logger.info("Loaded %s\n%s", name, fit.table())


def read_detector(source: str | Path) -> tuple[str, dict[str, Any]]:
    """Read the checkpoint of a trained detector from a path or an http(s) URL.

    Returns:
        The source for messages, and what ``read_checkpoint`` returns.

    Raises:
        ValueError: if it is an ImageNet backbone, or cannot be downloaded or read.
        FileNotFoundError: if there is no such file.
    """
    name = without_secrets(source)
    checkpoint = {} if is_imagenet_backbone(source) else read_checkpoint(locate(source))
    if not checkpoint or has_torch_format(weights_of(checkpoint)):
        raise ValueError(
            f"{name} names an ImageNet backbone, not a detector; give the .pth or .safetensors file of a "
            f"trained detector, or train one from it with MODEL.WEIGHT"
        )
    return name, checkpoint


def load_trained(
    detector: nn.Module, checkpoint: Mapping[str, Any], source: str, class_names: Sequence[str] | None = None
) -> None:
    """Load the checkpoint of a trained detector, which must fit exactly.

    Args:
        detector: receives the weights.
        checkpoint: from ``read_detector``.
        source: its name, for messages.
        class_names: classes of the data in the order of their labels, to which the classifier is matched by
            name; None keeps the order of the checkpoint.

    Raises:
        ValueError: if weights, anchors or classes do not fit; the detector is then unchanged.
    """
    names = checkpoint.get("class_names")
    weights = _match_classes(detector, weights_of(checkpoint), names, class_names, source)
    load_weights_strictly(detector, weights, source)


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the EMA weights of a checkpoint if it has them, else those of its last iteration."""
    ema = checkpoint.get("ema")
    return ema["model"] if isinstance(ema, dict) and "model" in ema else checkpoint["model"]


def load_weights_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose keys, shapes and anchors must be exactly the module's.

    Raises:
        ValueError: listing what is missing, unexpected, of another shape or other anchors, or naming a weight
            that is not finite or of another type; the module is then unchanged.
    """
    fit = compare(module, weights, source)
    fit.refuse_misfit()
    fit.load(module, weights)


@dataclass(frozen=True)
class Fit:
    """Comparison of the weights of a file with those of a module.

    Attributes:
        source: name of the file, for messages.
        loaded: keys that both have, with one shape.
        other_shape: keys that both have, with the shapes of file and module: ``key 80x256x3x3 -> 6x256x3x3``.
        missing: keys that the file lacks.
        unexpected: keys that the module lacks.
        other_anchors: keys of anchors of one shape that differ by more than rounding, with those of file and
            module. Anchors are configuration, so they count as neither loaded nor of another shape.
    """

    source: str
    loaded: list[str]
    other_shape: list[str]
    missing: list[str]
    unexpected: list[str]
    other_anchors: list[str]

    def refuse_misfit(self, component: str = "model", remedy: str = "") -> None:
        """Raise ValueError unless the file holds all of the module and nothing else."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.other_shape,
            "other anchors": self.other_anchors,
        }
        problems = [
            f"{kind} {printable(first_names(keys, 300))} ({len(keys)})"
            for kind, keys in kinds.items()
            if keys
        ]
        if problems:
            raise ValueError(
                f"{self.source} does not fit the {component} of this configuration: {'; '.join(problems)}. "
                f"Use the configuration that it was trained with{remedy and f', {remedy}'}"
            )

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load all that fits but anchors, which a file in half precision holds rounded."""
        module.load_state_dict({k: weights[k] for k in self.loaded if not _is_anchors(k)}, strict=False)

    def table(self) -> str:
        """Return for each kind the number of tensors and the first names."""
        rows = {
            "loaded": self.loaded,
            "left fresh: other shape": self.other_shape,
            "left fresh: not in the file": self.missing,
            "not used": self.unexpected,
        }
        lines = [(f"  {label:<27} {len(keys):>5}  ", keys) for label, keys in rows.items() if keys]
        return "\n".join(line + first_names(keys, _TABLE_WIDTH - len(line)) for line, keys in lines)


def compare(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> Fit:
    """Compare the weights of a module with those of a file.

    Raises:
        ValueError: naming the first weight that is NaN or infinite, or of another kind of number than the
            module's, which PyTorch would load silently.
    """
    own = module.state_dict()
    common = [key for key in own if key in weights]
    same_shape = [key for key in common if own[key].shape == weights[key].shape]
    faults = [f"{key} {fault}" for key in same_shape if (fault := _fault(own[key], weights[key]))]
    if faults:
        raise ValueError(
            f"{source}: expected finite weights of the model's types, got {len(faults)} that are not, first "
            f"{faults[0]}. Use an earlier checkpoint, or one that holds plain float weights"
        )
    moved = [key for key in same_shape if _is_anchors(key) and not _are_close(own[key], weights[key])]
    return Fit(
        source,
        loaded=[key for key in same_shape if key not in moved],
        other_shape=[
            f"{key} {_shape(weights[key])} -> {_shape(own[key])}"
            for key in common
            if own[key].shape != weights[key].shape
        ],
        missing=[key for key in own if key not in weights],
        unexpected=[key for key in weights if key not in own],
        other_anchors=[
            f"{key} {shorten(weights[key].tolist())} -> {shorten(own[key].tolist())}" for key in moved
        ],
    )


def _fault(own: Tensor, value: Tensor) -> str:
    """Return why a tensor of the right shape must not be loaded, else ""."""
    if value.is_complex() or value.is_floating_point() != own.is_floating_point():
        return f"of type {value.dtype} instead of {own.dtype}".replace("torch.", "")
    if value.is_floating_point() and not value.float().isfinite().all():
        return "with NaN or infinite values"
    return ""


def _is_anchors(key: str) -> bool:
    """Tell whether a key names the anchors of a level, which checkpoints hold but which are not learned."""
    return ".cell_anchors." in key


def _are_close(own: Tensor, other: Tensor) -> bool:
    """Tell whether boxes are equal up to the rounding of float32, or of the coarser type of the file."""
    own, precision = own.cpu().double(), max(4 * torch.finfo(torch.float32).eps, torch.finfo(other.dtype).eps)
    return bool((own - other.double()).abs().max() <= precision * own.abs().max())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def first_names(names: Sequence[str], width: int) -> str:
    """Join as many names as ``width`` columns hold, at least the start of one."""
    shown = names[0][:width]
    for name in names[1:]:
        if len(shown) + len(name) + len(", , ...") > width:
            return f"{shown}, ..."
        shown += f", {name}"
    return shown


def _match_classes(
    detector: nn.Module,
    weights: dict[str, Tensor],
    saved_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
    source: str,
    *,
    partial: bool = False,
) -> dict[str, Tensor]:
    """Return weights whose classifier has its rows in the order of ``class_names``.

    Args:
        detector: would receive the weights; its classifier is for ``class_names``.
        weights: state dict of the checkpoint.
        saved_names: classes of the checkpoint in the order of its labels; None if it does not name them.
        class_names: classes of the data in the order of their labels; None uses those of the checkpoint.
        source: name of the checkpoint, for messages.
        partial: if the classes differ, use the rows of those that both have and the detector's own for the
            others; else that is an error.

    Raises:
        ValueError: if the classes differ and this is not ``partial``, or if the names are not one per class.
    """
    names = list(class_names or saved_names or ())
    if not names:
        return weights
    num_classes: int = detector.get_submodule("rpn.head").num_classes  # type: ignore[assignment]
    if len(names) != num_classes:
        raise ValueError(
            f"{source}: expected {num_classes} class names, one fewer than MODEL.ATSS.NUM_CLASSES, got "
            f"{_listed(names)}. Correct that key or leave it out"
        )
    state = detector.state_dict()
    own = {key: state[key] for key in _CLASSIFIER if key in state and key in weights}
    if not saved_names:
        has_same_shape = any(key.endswith("bias") and own[key].shape == weights[key].shape for key in own)
        if has_same_shape and names != list(COCO_CLASSES):  # published checkpoints have the order of COCO
            coco = f" (COCO's order is {_listed(COCO_CLASSES)})" if len(names) == len(COCO_CLASSES) else ""
            logger.warning(
                "%s holds no class names%s; its classifier is taken to be for the classes of the data in "
                "their order: %s",
                *(source, coco, _listed(names)),
            )
        return weights
    if saved_names == names:
        return weights
    is_same_set = sorted(saved_names) == sorted(names)
    if not is_same_set and not partial:
        raise ValueError(
            f"{source}: expected the classes of the data, {_listed(names)}, got {_listed(saved_names)}. Use "
            f"data of the same classes, or train on these with MODEL.WEIGHT_PARTIAL True"
        )
    shared = [name for name in names if name in saved_names]
    groups = {
        "loaded for": shared,
        "fresh for": [name for name in names if name not in shared],
        "not used of": [name for name in saved_names if name not in shared],
    }
    summary = "; ".join(f"{verb} {_listed(group)}" for verb, group in groups.items() if group)
    logger.info(
        "%s has other classes or another order; the classifier is matched by name: %s", source, summary
    )
    matched = dict(weights)
    for key in own:
        value, rows = weights[key], own[key].cpu().unflatten(0, (-1, len(names))).clone()  # (A, C, ...)
        fits = value.is_floating_point() and value.shape == (
            len(rows) * len(saved_names),
            *own[key].shape[1:],
        )
        if fits and shared:
            saved = value.to(rows.dtype).unflatten(0, (-1, len(saved_names)))
            rows[:, [names.index(n) for n in shared]] = saved[:, [saved_names.index(n) for n in shared]]
            matched[key] = rows.flatten(0, 1)
        elif not is_same_set:
            del matched[key]  # the shape may agree by chance, but the rows are of other classes
    return matched


def _listed(class_names: Sequence[str]) -> str:
    return f"{len(class_names)} ({printable(first_names(class_names, width=600))})"


def _load_backbone(detector: nn.Module, source: BackboneWeights, pixels: PixelFormat | None) -> None:
    """Load ImageNet weights into ``detector.backbone.body``.

    Every weight of the backbone must be there, except deformable offsets, which ImageNet models lack, and the
    batch-norm statistics of Caffe2, which are folded into weight and bias.

    Raises:
        ValueError: if the weights do not fit the backbone or the pixels; the backbone is then unchanged.
    """
    backbone: nn.Module = detector.get_submodule("backbone.body")
    check_backbone(source, backbone, pixels)
    weights, modules = adapt(source, backbone), dict(backbone.named_modules())
    fit = compare(backbone, weights, source.source)
    statistics = (".running_mean", ".running_var") if source.is_caffe2 else ()
    optional = (".offset.weight", ".offset.bias", ".num_batches_tracked", *statistics)
    unexpected = [
        key
        for key in fit.unexpected
        if key.startswith(("stem.", "layer"))  # other keys belong to the ImageNet classifier
        and (
            key.rpartition(".")[0] not in modules
            or (key.endswith(".bias") and not (weights[key].abs() <= _NO_BIAS).all())
        )
    ]
    missing = [key for key in fit.missing if not key.endswith(optional)]
    replace(fit, missing=missing, unexpected=unexpected).refuse_misfit(
        "backbone", "or weights of the depth, groups and width of MODEL.BACKBONE.CONV_BODY and MODEL.RESNETS"
    )
    fit.load(backbone, weights)
    logger.info("Loaded the backbone from %s\n%s", source.source, fit.table())
