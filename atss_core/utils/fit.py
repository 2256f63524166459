"""Compare the weights of a file with those of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

WIDTH = 98  # columns of the table


@dataclass(frozen=True)
class Fit:
    """What of a file fits a model.

    Attributes:
        loaded: keys that both have, with one shape.
        other_shape: keys that both have, with the shapes of file and model: ``key 80x256x3x3 -> 6x256x3x3``.
        absent: keys that the file lacks.
        unused: keys that the model lacks.
    """

    loaded: list[str]
    other_shape: list[str]
    absent: list[str]
    unused: list[str]

    def problems(self) -> list[str]:
        """Return what keeps the file from being all of the model and nothing else."""
        return [
            *(f"missing {key}" for key in self.absent),
            *(f"unexpected {key}" for key in self.unused),
            *(f"of another shape {key}" for key in self.other_shape),
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


def compare(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Fit:
    """Compare the weights of a model with those of a file."""
    common = [key for key in own if key in weights]
    return Fit(
        loaded=[key for key in common if own[key].shape == weights[key].shape],
        other_shape=[
            f"{key} {shape(weights[key])} -> {shape(own[key])}"
            for key in common
            if own[key].shape != weights[key].shape
        ],
        absent=[key for key in own if key not in weights],
        unused=[key for key in weights if key not in own],
    )


def shape(tensor: Tensor) -> str:
    """Write a shape as 256x3x3."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def first_names(names: Sequence[str], width: int) -> str:
    """Join as many names as ``width`` columns hold, at least one."""
    shown = names[0]
    for name in names[1:]:
        if len(shown) + len(name) + len(", , ...") > width:
            return f"{shown}, ..."
        shown += f", {name}"
    return shown
