"""Compare what an exported file finds with what the detector finds.

Another runtime rounds otherwise, and a rounding can decide who of two equal candidates suppresses the other,
or which detection is the hundredth. So the detector runs again with its head outputs perturbed at random by
a few times that rounding: what it finds each time alike is stable, and an exported file must find all of
that, to the tolerances. Unstable detections may differ, up to their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from atss_core.export.runtimes import Arrays, is_nms_inside
from atss_core.layers import batched_nms_padded
from atss_core.modeling import Detector
from atss_core.modeling.head import HeadOutputs
from atss_core.structures import BoxList, ImageList

# Head outputs are perturbed by up to this much, some ten times what runtimes differ by.
SHAKE = 1e-4
NUM_SHAKES = 8


@dataclass(frozen=True)
class Tolerance:
    """What two detections may differ by and still be the same.

    Attributes:
        box: each coordinate, in pixels of the resized image.
        score: scores.
    """

    box: float = 0.05
    score: float = 5e-4


@dataclass(frozen=True)
class Comparison:
    """How the detections of images compare.

    Attributes:
        name: of the image, or of those in a batch.
        size: (height, width) in pixels of the batch.
        detections: that the detector found.
        stable: of these, those that do not depend on rounding.
        matched: of the stable ones, those that the exported file found.
        extra: detections of the file alone, which the detector does not find when perturbed either.
        box_difference: largest among the matched, in pixels.
        score_difference: largest among the matched.
    """

    name: str
    size: tuple[int, int]
    detections: int
    stable: int
    matched: int
    extra: int
    box_difference: float
    score_difference: float

    @property
    def is_equal(self) -> bool:
        """Whether all stable detections were found and others only in place of what is not stable."""
        return self.matched == self.stable and self.extra <= self.detections - self.stable


@dataclass
class Report:
    """What is known about an exported file.

    Attributes:
        file: its name.
        runtime: what ran it.
        tolerance: that was applied.
        comparisons: one for each image, and for a batch of two.
        detector_ms: median milliseconds of the detector for one image.
        exported_ms: the same of the file.
        latency_size: (height, width) in pixels of that image.
        threads: of both.
        repeats: how often each ran, in turns.
    """

    file: str
    runtime: str
    tolerance: Tolerance
    comparisons: list[Comparison] = field(default_factory=list)
    detector_ms: float = 0.0
    exported_ms: float = 0.0
    latency_size: tuple[int, int] = (0, 0)
    threads: int = 0
    repeats: int = 0

    @property
    def failure(self) -> str:
        """Why the file does not count as equal; nothing if it does."""
        total, stable = (sum(getattr(c, name) for c in self.comparisons) for name in ("detections", "stable"))
        unequal = [c.name for c in self.comparisons if not c.is_equal]
        if unequal:
            return f"it does not detect what the detector detects in {', '.join(unequal)}"
        if not total:
            return (
                "nothing was detected in the images, which proves nothing; give --images a folder of "
                "images with objects, or lower MODEL.ATSS.INFERENCE_TH"
            )
        if 2 * stable < total:
            return (
                f"only {stable} of {total} detections do not depend on rounding, which proves nothing; give "
                f"--images other images, or weights of a trained detector"
            )
        return ""

    def table(self) -> str:
        """Return the figures as lines for a terminal."""
        width = max(len("image"), *(len(c.name) for c in self.comparisons))
        lines = [
            f"{'image':{width}}  {'size':>9}  detections  stable  matched  extra   box px  score diff.",
            *(
                f"{c.name:{width}}  {c.size[0]:>4}x{c.size[1]:<4}  {c.detections:>10}  {c.stable:>6}  "
                f"{c.matched:>7}  {c.extra:>5}  {c.box_difference:>7.1e}  {c.score_difference:>11.1e}"
                for c in self.comparisons
            ),
            f"an image of {self.latency_size[0]}x{self.latency_size[1]}: detector {self.detector_ms:.1f} ms,"
            f" {self.runtime} {self.exported_ms:.1f} ms (medians of {self.repeats} in turns, "
            f"{self.threads} threads)",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Return the figures for a JSON file."""
        return {**asdict(self), "is_equal": not self.failure, "failure": self.failure}


@torch.inference_mode()
def expect(detector: Detector, images: ImageList) -> tuple[list[BoxList], list[list[BoxList]]]:
    """Return the detections of each image, and those of each shaking."""
    outputs = detector.predict(images)
    generator = torch.Generator().manual_seed(0)
    perturbed = [
        detector.postprocess(shake(outputs, generator), images.image_sizes) for _ in range(NUM_SHAKES)
    ]
    return detector.postprocess(outputs, images.image_sizes), perturbed


def shake(outputs: HeadOutputs, generator: torch.Generator) -> HeadOutputs:
    """Return head outputs with uniform noise of ``SHAKE`` either way."""

    def perturbed(levels: Sequence[Tensor]) -> list[Tensor]:
        return [x + SHAKE * (2 * torch.rand(x.shape, generator=generator) - 1) for x in levels]

    centerness = None if outputs.centerness is None else perturbed(outputs.centerness)
    return HeadOutputs(perturbed(outputs.cls_logits), perturbed(outputs.encoded_boxes), centerness)


def detections_of(
    outputs: Arrays, detector: Detector, image_sizes: Sequence[tuple[int, int]]
) -> list[BoxList]:
    """Read the outputs of a runtime; candidates go through the NMS of this package."""
    boxes, scores, labels, *rest = (torch.from_numpy(array.copy()) for array in outputs)
    if is_nms_inside(outputs):
        return [
            BoxList(boxes[i, :n], size, labels[i, :n], scores[i, :n])
            for i, (n, size) in enumerate(zip(rest[0].tolist(), image_sizes, strict=True))
        ]
    settings = detector.postprocess
    keep, counts = batched_nms_padded(boxes, scores, labels, settings.nms_threshold, settings.max_detections)
    return [
        BoxList(boxes[i, keep[i, :n]], size, labels[i, keep[i, :n]], scores[i, keep[i, :n]])
        for i, (n, size) in enumerate(zip(counts.tolist(), image_sizes, strict=True))
    ]


def compare(
    name: str,
    size: tuple[int, int],
    found: Sequence[BoxList],
    expected: Sequence[BoxList],
    perturbed: Sequence[Sequence[BoxList]],
    tolerance: Tolerance,
) -> Comparison:
    """Compare the detections of a file with those of the detector, for each image of a batch."""
    detections = num_stable = num_matched = num_extra = 0
    box_difference = score_difference = 0.0
    for i, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        again = [results[i] for results in perturbed]
        stable = torch.ones(len(ours), dtype=torch.bool)
        known = has_partner(theirs, ours, tolerance)
        for result in again:
            stable &= has_partner(ours, result, tolerance)
            known |= has_partner(theirs, result, tolerance)
        is_same, boxes, scores = pairs(ours, theirs, tolerance)
        matched = stable & is_same.any(dim=1)
        is_same &= matched[:, None]
        detections += len(ours)
        num_stable += int(stable.sum())
        num_matched += int(matched.sum())
        num_extra += int((~known).sum())
        box_difference = max([box_difference, *boxes[is_same].tolist()])
        score_difference = max([score_difference, *scores[is_same].tolist()])
    return Comparison(
        name, size, detections, num_stable, num_matched, num_extra, box_difference, score_difference
    )


def pairs(first: BoxList, second: BoxList, tolerance: Tolerance) -> tuple[Tensor, Tensor, Tensor]:
    """Tell which detections of two lists are the same, and how boxes and scores differ, each (G1, G2)."""
    assert first.scores is not None
    assert first.labels is not None
    assert second.scores is not None
    assert second.labels is not None
    boxes = (first.boxes[:, None] - second.boxes).abs().amax(dim=2)
    scores = (first.scores[:, None] - second.scores).abs()
    is_same = (boxes <= tolerance.box) & (scores <= tolerance.score)
    return is_same & (first.labels[:, None] == second.labels), boxes, scores


def has_partner(first: BoxList, second: BoxList, tolerance: Tolerance) -> Tensor:
    """Tell which detections of the first list are in the second as well, shape (G1,)."""
    return pairs(first, second, tolerance)[0].any(dim=1)
