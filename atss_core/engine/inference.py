"""Run a detector over a dataset."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tqdm import tqdm

from atss_core.data import Batch
from atss_core.modeling import Detector
from atss_core.modeling.head import HeadOutputs
from atss_core.structures import BoxList, ImageList
from atss_core.utils import dist

logger = logging.getLogger(__name__)


@dataclass
class Timing:
    """Seconds of inference, without loading.

    Attributes:
        network: copying to the device, backbone and head. Test-time augmentation resizes and detects at each
            scale here.
        postprocessing: from head outputs to detections, or merging those of all scales.
        num_images: how many images that took.
        is_warm: whether a batch before them was left out.
    """

    network: float = 0.0
    postprocessing: float = 0.0
    num_images: int = 0
    is_warm: bool = True

    def __str__(self) -> str:
        if not self.num_images:
            return "no images timed"
        network, post = self.network / self.num_images, self.postprocessing / self.num_images
        warm_up = "without the first batch" if self.is_warm else "warm-up included"
        return (
            f"{network + post:.4f} s per image on this process: {network:.4f} network, {post:.4f} "
            f"post-processing ({self.num_images} images, {warm_up})"
        )

    def add(self, network: float, postprocessing: float, num_images: int) -> None:
        """Add the seconds of a batch."""
        self.network += network
        self.postprocessing += postprocessing
        self.num_images += num_images


class Inference(Protocol):
    """An inference pipeline: ``SingleScale``, or ``MultiScale`` of ``tta.py``."""

    detector: Detector
    device: torch.device

    def predict(self, images: ImageList) -> Any:
        """Run the network on images of the loader, on the CPU."""

    def detect(self, outputs: Any, image_sizes: Sequence[tuple[int, int]]) -> list[BoxList]:
        """Turn what ``predict`` returned into detections, in pixels of their own ``image_size``."""


@dataclass(eq=False)
class SingleScale:
    """Detect objects in normalised batches, with a detector that is on ``device``."""

    detector: Detector
    device: torch.device

    def predict(self, images: ImageList) -> HeadOutputs:
        """Copy images to the device and run the network."""
        return self.detector.predict(images.to(self.device, non_blocking=True))

    def detect(self, outputs: HeadOutputs, image_sizes: Sequence[tuple[int, int]]) -> list[BoxList]:
        """Turn head outputs into the detections of each image of size (height, width)."""
        return self.detector.postprocess(outputs, image_sizes)


@torch.inference_mode()
def run_inference(
    inference: Inference, batches: Iterable[Batch], num_images: int | None = None
) -> tuple[dict[int, BoxList], Timing]:
    """Detect objects in all images of a loader.

    Args:
        inference: its detector is switched to evaluation mode.
        batches: of the test loader of the same configuration.
        num_images: for the progress bar.

    Returns:
        Detections by image id, on the CPU, in pixels of their ``image_size``; and the timing, without the
        first batch, which warms up, unless it is the only one.
    """
    inference.detector.eval()
    results: dict[int, BoxList] = {}
    first, others = Timing(is_warm=False), Timing()
    num_skipped = 0
    hidden = None if dist.is_main() else True  # None shows the bar on a terminal
    with tqdm(total=num_images, desc="inference", unit="img", disable=hidden) as bar:
        for batch in batches:
            num_skipped = log_skipped(batch, num_skipped)
            if batch.image_ids:
                start = _mark(inference.device)
                outputs = inference.predict(batch.images)
                middle = _mark(inference.device)
                detections = inference.detect(outputs, batch.images.image_sizes)
                end = _mark(inference.device)
                results |= zip(batch.image_ids, (boxes.to("cpu") for boxes in detections), strict=True)
                (others if first.num_images else first).add(*_seconds(start, middle, end), len(batch))
            bar.update(len(batch) + len(batch.skipped))
    return results, others if others.num_images else first


def log_skipped(batch: Batch, num_before: int) -> int:
    """Log the unreadable images of a batch, counting on from those before; returns the new count."""
    for number, message in enumerate(batch.skipped, start=num_before + 1):
        logger.warning("Skipped image %d: %s", number, message)
    return num_before + len(batch.skipped)


def gather_detections(results: dict[int, BoxList]) -> dict[int, BoxList]:
    """Gather detections by image id, on the CPU, on the main process; the others get nothing.

    Raises:
        ValueError: if two processes have the same image.
    """
    rows = [(image_id, len(boxes), *boxes.image_size) for image_id, boxes in results.items()]
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    if results:
        boxes = torch.cat([each.boxes for each in results.values()])
        scores = torch.cat([each.scores for each in results.values() if each.scores is not None])
        labels = torch.cat([each.labels for each in results.values() if each.labels is not None])
    gathered: dict[int, BoxList] = {}
    for images, *fields in zip(*(dist.gather(t) for t in (table, boxes, scores, labels)), strict=True):
        split = (values.split(images[:, 1].tolist()) for values in fields)
        for (image_id, _, *size), image_boxes, image_scores, image_labels in zip(
            images.tolist(), *split, strict=True
        ):
            if image_id in gathered:
                raise ValueError(
                    f"image {image_id} was evaluated by two processes; the sampler shares them wrongly"
                )
            gathered[image_id] = BoxList(image_boxes, tuple(size), image_labels, image_scores)
    return gathered


def _mark(device: torch.device) -> float | torch.cuda.Event:
    """Return the time; on a GPU an event in the queue of its work, so that nothing waits for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: Any, middle: Any, end: Any) -> tuple[float, float]:
    """Return the seconds between marks; on a GPU this waits for the last one."""
    if isinstance(end, float):
        return middle - start, end - middle
    end.synchronize()
    return start.elapsed_time(middle) / 1000, middle.elapsed_time(end) / 1000


def now(device: torch.device) -> float:
    """Return the time in seconds after all work queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
