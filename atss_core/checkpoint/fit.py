"""Compare the weights of a file with those of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atss_core.utils.text import shorten

WIDTH = 98  # columns of the table


@dataclass(frozen=True)
class Fit:
    """What of a file fits a model.

    Attributes:
        loaded: keys that both have, with one shape.
        other_shape: keys that both have, with the shapes of file and model: ``key 80x256x3x3 -> 6x256x3x3``.
        absent: keys that the file lacks.
        unused: keys that the model lacks.
        other_anchors: keys of anchors of one shape that differ by more than rounding, with those of file and
            model. Anchors are configuration, so they count as neither loaded nor of another shape.
    """

    loaded: list[str]
    other_shape: list[str]
    absent: list[str]
    unused: list[str]
    other_anchors: list[str]

    def problems(self) -> list[str]:
        """Return what keeps the file from being all of the model and nothing else."""
        return [
            *(f"missing {key}" for key in self.absent),
            *(f"unexpected {key}" for key in self.unused),
            *(f"of another shape {key}" for key in self.other_shape),
            *(f"other anchors {key}" for key in self.other_anchors),
        ]

    def table(self) -> str:
        """Return the number of tensors and the first names of each kind that there is."""
        rows = (
            ("loaded", self.loaded),
            ("left fresh: other shape", self.other_shape),
            ("left fresh: not in the file", self.absent),
            ("not used", self.unused),
        )
        lines = [f"  {label:<27} {len(keys):>5}  " for label, keys in rows if keys]
        names = [first_names(keys, WIDTH - len(lines[0])) for _, keys in rows if keys]
        return "\n".join(line + shown for line, shown in zip(lines, names, strict=True))


def compare(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> Fit:
    """Compare the weights of a model with those of a file.

    Args:
        own: of the model.
        weights: of the file.
        source: where they come from, for the message.

    Raises:
        ValueError: naming the first weight that is NaN or infinite, or of another kind of number than the
            model's; such weights would be loaded without a word.
    """
    common = [key for key in own if key in weights]
    same_shape = [key for key in common if own[key].shape == weights[key].shape]
    faults = [f"{key} {fault}" for key in same_shape if (fault := _fault(own[key], weights[key]))]
    if faults:
        raise ValueError(
            f"{source}: expected finite weights of the model's types, got {len(faults)} that are not, first "
            f"{faults[0]}. Use an earlier checkpoint, or one that holds plain float weights"
        )
    moved = [key for key in same_shape if is_anchors(key) and not is_close(own[key], weights[key])]
    return Fit(
        loaded=[key for key in same_shape if key not in moved],
        other_shape=[
            f"{key} {shape(weights[key])} -> {shape(own[key])}"
            for key in common
            if own[key].shape != weights[key].shape
        ],
        absent=[key for key in own if key not in weights],
        unused=[key for key in weights if key not in own],
        other_anchors=[
            f"{key} {shorten(weights[key].tolist())} -> {shorten(own[key].tolist())}" for key in moved
        ],
    )


def _fault(own: Tensor, value: Tensor) -> str:
    """Return what keeps a tensor of the right shape from being loaded, nothing if it is sound."""
    if value.is_complex() or value.is_floating_point() != own.is_floating_point():
        return f"of type {value.dtype} instead of {own.dtype}".replace("torch.", "")
    if value.is_floating_point() and not value.float().isfinite().all():
        return "with NaN or infinite values"
    return ""


def is_anchors(key: str) -> bool:
    """Tell whether a key names the anchors of a level, which checkpoints hold but which are not learned."""
    return ".cell_anchors." in key


def is_close(own: Tensor, other: Tensor) -> bool:
    """Tell whether boxes are equal but for the rounding of float32, or of the coarser type of the file."""
    own, precision = own.cpu().double(), max(4 * torch.finfo(torch.float32).eps, torch.finfo(other.dtype).eps)
    return bool((own - other.double()).abs().max() <= precision * own.abs().max())


def shape(tensor: Tensor) -> str:
    """Write a shape as 256x3x3."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def first_names(names: Sequence[str], width: int) -> str:
    """Join as many names as ``width`` columns hold, at least the start of one."""
    shown = names[0][:width]
    for name in names[1:]:
        if len(shown) + len(name) + len(", , ...") > width:
            return f"{shown}, ..."
        shown += f", {name}"
    return shown
