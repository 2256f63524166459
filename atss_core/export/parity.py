"""Parity check: compare the detections of an exported file with those of the detector.

Runtimes round differently, and a rounding can decide which of two equal candidates survives NMS, or which
detection is the hundredth. So the detector runs again with its head outputs perturbed at random by a few
times that rounding error. Detections that all runs share are stable, and an exported file must match all of
them within the tolerances. Unstable detections may differ, but not grow in number.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atss_core.data import Batch, Sample, read_image
from atss_core.data.transforms import Resize, Transform, to_pixels
from atss_core.export.graph import DETECTIONS
from atss_core.export.targets import Arrays, target_of
from atss_core.layers import batched_nms_padded
from atss_core.modeling import Detector
from atss_core.modeling.head import HeadOutputs
from atss_core.structures import BoxList, ImageList

# Largest perturbation of head outputs, about ten times the difference between runtimes.
PERTURBATION = 1e-4
NUM_PERTURBATIONS = 8
# Value of the batch padding that an exported file gets; its outputs must not depend on it.
_PADDING = 77


@dataclass(frozen=True)
class Tolerance:
    """Largest differences between detections that count as the same."""

    box: float = 0.05  # of each coordinate, in pixels of the resized image
    score: float = 5e-4  # absolute


@dataclass(frozen=True)
class Comparison:
    """Agreement of a file with the detector on one batch."""

    name: str  # of the image, or of the images in a batch
    size: tuple[int, int]  # (height, width) of the batch in pixels
    detections: int  # of the detector
    stable: int  # those that do not depend on rounding
    matched: int  # stable ones that the file has as well
    extra: int  # of the file, in no run of the detector
    box_difference: float  # largest among the matched, in pixels
    score_difference: float  # largest among the matched

    @property
    def is_equal(self) -> bool:
        """Whether all stable detections match and the extra ones are at most as many as the unstable ones."""
        return self.matched == self.stable and self.extra <= self.detections - self.stable


@dataclass
class Report:
    """Result of the parity check of an exported file."""

    file: str  # its name
    runtime: str  # title of the format
    tolerance: Tolerance
    comparisons: list[Comparison] = field(default_factory=list)  # one per image, and one for a batch of two
    detector_ms: float = 0.0  # median latency for one image
    exported_ms: float = 0.0  # the same for the file
    latency_size: tuple[int, int] = (0, 0)  # (height, width) of that image in pixels
    threads: int = 0  # CPU threads of both
    repeats: int = 0  # measurements of each, alternating

    @property
    def failure(self) -> str:
        """Why the check failed; empty if it passed."""
        total, stable = (sum(getattr(c, name) for c in self.comparisons) for name in ("detections", "stable"))
        unequal = [c.name for c in self.comparisons if not c.is_equal]
        if unequal:
            return f"it does not detect what the detector detects in {', '.join(unequal)}"
        if not total:
            return (
                "nothing was detected in the images, so nothing could be compared; give --images a folder of "
                "images with objects, or lower MODEL.ATSS.INFERENCE_TH"
            )
        if 2 * stable < total:
            return (
                f"only {stable} of {total} detections do not depend on rounding, too few to compare; give "
                f"--images other images, or weights of a trained detector"
            )
        return ""

    def table(self) -> str:
        """Return the results as a table for the terminal."""
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
        """Return the results for a JSON file."""
        return {**asdict(self), "is_equal": not self.failure, "failure": self.failure}


@dataclass(frozen=True)
class ParityCheck:
    """Compare exported files with the detector they come from."""

    detector: Detector  # in evaluation mode, on the CPU
    transform: Transform  # turns an image into a tensor, as ``build_transform`` returns
    resize: Resize  # the step of it that users of a file do themselves
    collate: Callable[[Sequence[Sample]], Batch]  # pads tensors, as ``build_collate`` returns
    images: Sequence[Path]  # the first also serves to measure latency
    repeats: int  # latency measurements
    max_pixels: int  # larger images are refused
    grey_bits: int = 0  # of grey values of more than 8 bits, see ``to_rgb``

    def __call__(self, path: Path) -> Report:
        """Run a file beside the detector and report how they agree."""
        threads = torch.get_num_threads()
        target = target_of(path)
        run, _ = target.load(path, threads)
        report = Report(path.name, target.title, Tolerance(), threads=threads, repeats=self.repeats)
        # Each image by itself, then the first two, whatever their sizes, as one batch.
        for batch in [
            *([image] for image in self.images),
            *([self.images[:2]] if len(self.images) > 1 else []),
        ]:
            images, arrays = self.read_batch(batch)
            detections = read_detections(run(*arrays), self.detector, images.image_sizes)
            name = " + ".join(image.name for image in batch)
            size = (arrays[0].shape[2], arrays[0].shape[3])
            expected, perturbed = detect_perturbed(self.detector, images)
            report.comparisons.append(compare(name, size, detections, expected, perturbed, report.tolerance))
        images, arrays = self.read_batch(self.images[:1])
        report.latency_size = images.image_sizes[0]
        with torch.inference_mode():
            report.detector_ms, report.exported_ms = _median_ms(
                [lambda: self.detector(images), lambda: run(*arrays)], self.repeats
            )
        return report

    def read_batch(self, paths: Sequence[Path]) -> tuple[ImageList, tuple[np.ndarray, np.ndarray]]:
        """Return a batch in the detector's format and in that of exported files."""
        samples, pixels = [], []
        for path in paths:
            image = read_image(path, True, self.max_pixels, self.grey_bits)
            target = BoxList(torch.zeros(0, 4), (image.height, image.width))
            tensor, _ = self.transform(image, target, random.Random(0))
            samples.append(Sample(tensor, target, image_id=0))
            pixels.append(to_pixels(self.resize(image, None, random.Random(0))[0]).numpy())
        height, width = (max(array.shape[axis] for array in pixels) for axis in (1, 2))
        images = np.full((len(pixels), 3, height, width), _PADDING, dtype=np.uint8)
        for padded, array in zip(images, pixels, strict=True):
            padded[:, : array.shape[1], : array.shape[2]] = array
        image_sizes = np.array([array.shape[1:] for array in pixels], dtype=np.int64)
        return self.collate(samples).images, (images, image_sizes)


def _median_ms(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median milliseconds of each function; they alternate, after one warm-up call."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, durations in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            durations.append(1000 * (time.perf_counter() - start))
    return [statistics.median(durations[1:]) for durations in times]


@torch.inference_mode()
def detect_perturbed(detector: Detector, images: ImageList) -> tuple[list[BoxList], list[list[BoxList]]]:
    """Return the detections of each image, and those of each perturbed run."""
    outputs = detector.predict(images)
    generator = torch.Generator().manual_seed(0)
    perturbed = [
        detector.postprocess(perturb(outputs, generator), images.image_sizes)
        for _ in range(NUM_PERTURBATIONS)
    ]
    return detector.postprocess(outputs, images.image_sizes), perturbed


def perturb(outputs: HeadOutputs, generator: torch.Generator) -> HeadOutputs:
    """Add uniform noise of up to ``PERTURBATION`` in both directions to head outputs."""

    def add_noise(levels: Sequence[Tensor]) -> list[Tensor]:
        return [x + PERTURBATION * (2 * torch.rand(x.shape, generator=generator) - 1) for x in levels]

    centerness = None if outputs.centerness is None else add_noise(outputs.centerness)
    return HeadOutputs(add_noise(outputs.cls_logits), add_noise(outputs.encoded_boxes), centerness)


def read_detections(
    outputs: Arrays, detector: Detector, image_sizes: Sequence[tuple[int, int]]
) -> list[BoxList]:
    """Convert the outputs of a runtime; candidates go through the NMS of this package."""
    boxes, scores, labels, *rest = (torch.from_numpy(array.copy()) for array in outputs)
    if len(outputs) == len(DETECTIONS):
        keep, counts = torch.arange(scores.shape[1]).expand(scores.shape), rest[0]
    else:
        settings = detector.postprocess
        keep, counts = batched_nms_padded(
            boxes, scores, labels, settings.nms_threshold, settings.max_detections
        )
    kept = [indices[:count] for indices, count in zip(keep, counts.tolist(), strict=True)]
    return [
        BoxList(boxes[i, kept[i]], size, labels[i, kept[i]], scores[i, kept[i]])
        for i, size in enumerate(image_sizes)
    ]


def compare(
    name: str,
    size: tuple[int, int],
    detections: Sequence[BoxList],
    expected: Sequence[BoxList],
    perturbed: Sequence[Sequence[BoxList]],
    tolerance: Tolerance,
) -> Comparison:
    """Compare the detections of a file with those of the detector, for each image of a batch."""
    num_detections = num_stable = num_matched = num_extra = 0
    box_difference = score_difference = 0.0
    for i, (exported, reference) in enumerate(zip(detections, expected, strict=True)):
        is_same, boxes, scores = _compare_pairs(reference, exported, tolerance)
        is_stable, is_known = torch.ones(len(reference), dtype=torch.bool), is_same.any(dim=0)
        for rerun in (run[i] for run in perturbed):
            is_stable &= _compare_pairs(reference, rerun, tolerance)[0].any(dim=1)
            is_known |= _compare_pairs(exported, rerun, tolerance)[0].any(dim=1)
        is_matched = is_stable & is_same.any(dim=1)
        is_same &= is_matched[:, None]
        num_detections += len(reference)
        num_stable += int(is_stable.sum())
        num_matched += int(is_matched.sum())
        num_extra += int((~is_known).sum())
        box_difference = max([box_difference, *boxes[is_same].tolist()])
        score_difference = max([score_difference, *scores[is_same].tolist()])
    return Comparison(
        name, size, num_detections, num_stable, num_matched, num_extra, box_difference, score_difference
    )


def _compare_pairs(first: BoxList, second: BoxList, tolerance: Tolerance) -> tuple[Tensor, Tensor, Tensor]:
    """Return which pairs of detections are the same, and their box and score differences, each (D1, D2)."""
    assert first.scores is not None
    assert first.labels is not None
    assert second.scores is not None
    assert second.labels is not None
    boxes = (first.boxes[:, None] - second.boxes).abs().amax(dim=2)
    scores = (first.scores[:, None] - second.scores).abs()
    is_same = (boxes <= tolerance.box) & (scores <= tolerance.score)
    return is_same & (first.labels[:, None] == second.labels), boxes, scores
