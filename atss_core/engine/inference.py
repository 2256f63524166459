"""Run a detector over a data set."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from tqdm import tqdm

from atss_core.data import Batch
from atss_core.engine.trainer import report_skipped
from atss_core.modeling import Detector
from atss_core.modeling.head import HeadOutputs
from atss_core.structures import BoxList, ImageList
from atss_core.utils import dist


@dataclass
class Timing:
    """Seconds spent on images, without loading them.

    Attributes:
        network: in copying to the device, backbone and head. Multi-scale testing resizes and detects in
            each size here.
        postprocessing: from head outputs to detections, or merging those of all sizes.
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
            f"{network + post:.4f} s an image on this process: {network:.4f} network, {post:.4f} "
            f"post-processing ({self.num_images} images, {warm_up})"
        )

    def add(self, network: float, postprocessing: float, num_images: int) -> None:
        """Add the seconds that a batch took."""
        self.network += network
        self.postprocessing += postprocessing
        self.num_images += num_images


class Inference(Protocol):
    """What detects objects: ``SingleScale``, or ``MultiScale`` of ``tta.py``."""

    detector: Detector
    device: torch.device

    def predict(self, images: ImageList) -> Any:
        """Run the network on what the loader delivers, on the CPU."""

    def detect(self, outputs: Any, image_sizes: Sequence[tuple[int, int]]) -> list[BoxList]:
        """Turn what ``predict`` returned into detections, in pixels of their own ``image_size``."""


class SingleScale:
    """Detect objects in normalised batches.

    Args:
        detector: on ``device``.
        device: where the detector is.
    """

    def __init__(self, detector: Detector, device: torch.device) -> None:
        self.detector = detector
        self.device = device

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
        batches: what the test loader of the same configuration delivers.
        num_images: for the progress bar.

    Returns:
        Detections by image id, on the CPU, in pixels of their ``image_size``; and the timing, in which the
        first batch does not count, because it warms up, unless it is the only one.
    """
    inference.detector.eval()
    results: dict[int, BoxList] = {}
    first, others = Timing(is_warm=False), Timing()
    num_skipped = 0
    with tqdm(
        total=num_images, desc="inference", unit="img", disable=None if dist.is_main() else True
    ) as bar:
        for batch in batches:
            num_skipped += report_skipped(batch, num_skipped)
            if batch.image_ids:
                start = _mark(inference.device)
                outputs = inference.predict(batch.images)
                middle = _mark(inference.device)
                detections = inference.detect(outputs, batch.images.image_sizes)
                end = _mark(inference.device)
                results |= {i: found.to("cpu") for i, found in zip(batch.image_ids, detections, strict=True)}
                network, postprocessing = _seconds(start, middle, end)
                (others if first.num_images else first).add(network, postprocessing, len(batch))
            bar.update(len(batch) + len(batch.skipped))
    return results, others if others.num_images else first


def gather_detections(results: dict[int, BoxList]) -> dict[int, BoxList]:
    """Bring the detections of all processes together on the main process, as plain tensors on the CPU.

    Args:
        results: detections by image id, on the CPU.

    Returns:
        Those of all processes; nothing on the others.

    Raises:
        ValueError: if two processes have the same image.
    """
    rows = [(image_id, len(found), *found.image_size) for image_id, found in results.items()]
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    if results:
        boxes = torch.cat([found.boxes for found in results.values()])
        scores = torch.cat([found.scores for found in results.values() if found.scores is not None])
        labels = torch.cat([found.labels for found in results.values() if found.labels is not None])
    gathered: dict[int, BoxList] = {}
    for part in zip(*(dist.gather(tensor) for tensor in (table, boxes, scores, labels)), strict=True):
        counts = part[0][:, 1].tolist()
        split = zip(part[0].tolist(), *(values.split(counts) for values in part[1:]), strict=True)
        for (image_id, _, height, width), found_boxes, found_scores, found_labels in split:
            if image_id in gathered:
                raise ValueError(
                    f"image {image_id} was tested by two processes; the sampler shares them wrongly"
                )
            gathered[image_id] = BoxList(found_boxes, (height, width), found_labels, found_scores)
    return gathered


def _mark(device: torch.device) -> float | torch.cuda.Event:
    """Mark this moment: on a GPU in the queue of its work, so that nobody waits for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(*marks: Any) -> list[float]:
    """Return the seconds between marks; on a GPU the last one must be reached, or is waited for."""
    if isinstance(marks[-1], float):
        return [end - start for start, end in pairwise(marks)]
    marks[-1].synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def now(device: torch.device) -> float:
    """Return the time in seconds after all work queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
