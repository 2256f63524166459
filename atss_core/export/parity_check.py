"""Run an exported file beside the detector on images."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from atss_core.data import Batch, Sample, read_image
from atss_core.data.images import MAX_PIXELS
from atss_core.data.transforms import Resize, Transform, to_pixels
from atss_core.export.parity import Report, Tolerance, compare, detections_of, expect
from atss_core.export.runtimes import load
from atss_core.export.targets import TARGETS
from atss_core.modeling import Detector
from atss_core.structures import BoxList, ImageList

# Padding of the batch that the file gets, which must not matter.
PADDING = 77


class Prover:
    """Compare exported files with the detector they come from.

    Args:
        detector: in evaluation mode, on the CPU.
        transform: makes a tensor of an image, as ``build_transform`` returns.
        resize: the part of it that is left to the users of a file.
        collate: pads tensors, as ``build_collate`` returns.
        images: files; the first is also used to measure latency.
        tolerance: of the comparison.
        repeats: measurements of latency.
        max_pixels: larger images are refused.
        grey_bits: of grey values of more than 8 bits, see ``to_rgb``.
    """

    def __init__(
        self,
        detector: Detector,
        transform: Transform,
        resize: Resize,
        collate: Callable[[Sequence[Sample]], Batch],
        images: Sequence[Path],
        *,
        tolerance: Tolerance | None = None,
        repeats: int = 5,
        max_pixels: int = MAX_PIXELS,
        grey_bits: int = 0,
    ) -> None:
        self.detector = detector
        self.transform = transform
        self.resize = resize
        self.collate = collate
        # Each image by itself, and the first two, whatever their sizes, as a batch.
        self.batches = [[image] for image in images] + ([list(images[:2])] if len(images) > 1 else [])
        self.tolerance = tolerance or Tolerance()
        self.repeats = repeats
        self.max_pixels = max_pixels
        self.grey_bits = grey_bits

    def __call__(self, path: Path) -> Report:
        """Compare a file; whether it is equal is in the report."""
        threads = torch.get_num_threads()
        run, _ = load(path, threads)
        runtime = next(target.title for target in TARGETS.values() if target.suffix == path.suffix)
        report = Report(path.name, runtime, self.tolerance, threads=threads, repeats=self.repeats)
        for batch in self.batches:
            images, arrays = self.read(batch)
            found = detections_of(run(*arrays), self.detector, images.image_sizes)
            name = " + ".join(image.name for image in batch)
            size = (arrays[0].shape[2], arrays[0].shape[3])
            report.comparisons.append(
                compare(name, size, found, *expect(self.detector, images), self.tolerance)
            )
        images, arrays = self.read(self.batches[0])
        report.latency_size = images.image_sizes[0]
        report.detector_ms, report.exported_ms = medians_ms(
            [lambda: self._detect(images), lambda: run(*arrays)], self.repeats
        )
        return report

    def read(self, paths: Sequence[Path]) -> tuple[ImageList, tuple[np.ndarray, np.ndarray]]:
        """Return a batch as the detector takes it, and as an exported file does."""
        samples, pixels = [], []
        for path in paths:
            image = read_image(path, True, self.max_pixels, self.grey_bits)
            nothing = BoxList(torch.zeros(0, 4), (image.height, image.width))
            tensor, _ = self.transform(image, nothing, random.Random(0))
            samples.append(Sample(tensor, nothing, image_id=0))
            pixels.append(to_pixels(self.resize(image, None, random.Random(0))[0]).numpy())
        height, width = (max(array.shape[axis] for array in pixels) for axis in (1, 2))
        images = np.full((len(pixels), 3, height, width), PADDING, dtype=np.uint8)
        for place, array in zip(images, pixels, strict=True):
            place[:, : array.shape[1], : array.shape[2]] = array
        image_sizes = np.array([array.shape[1:] for array in pixels], dtype=np.int64)
        return self.collate(samples).images, (images, image_sizes)

    @torch.inference_mode()
    def _detect(self, images: ImageList) -> None:
        self.detector(images)


def medians_ms(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median milliseconds of each function; they take turns and warm up once."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, durations in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            durations.append(1000 * (time.perf_counter() - start))
    return [statistics.median(durations[1:]) for durations in times]
