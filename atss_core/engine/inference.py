"""Run a detector over a data set."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from atss_core.data import Batch
from atss_core.engine.trainer import report_skipped
from atss_core.modeling import Detector
from atss_core.structures import BoxList
from atss_core.utils import dist


@dataclass
class Timing:
    """Seconds spent on images, without loading them.

    Attributes:
        network: in backbone and head.
        postprocessing: from head outputs to detections.
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


@torch.inference_mode()
def run_inference(
    detector: Detector, batches: Iterable[Batch], device: torch.device, num_batches: int | None = None
) -> tuple[dict[int, BoxList], Timing]:
    """Detect objects in all images of a loader.

    Args:
        detector: switched to evaluation mode.
        batches: of normalised images.
        device: where the detector is.
        num_batches: for the progress bar.

    Returns:
        Detections by image id, on the CPU, in pixels of the network input; and the timing, in which the
        first batch does not count, because it warms up, unless it is the only one.
    """
    detector.eval()
    results: dict[int, BoxList] = {}
    first, others = Timing(is_warm=False), Timing()
    num_skipped = 0
    disable = None if dist.is_main() else True
    for batch in tqdm(batches, total=num_batches, desc="inference", disable=disable):
        num_skipped += report_skipped(batch, num_skipped)
        if not batch.image_ids:
            continue
        images = batch.images.to(device, non_blocking=True)
        start = now(device)
        outputs = detector.predict(images)
        middle = now(device)
        detections = detector.detect(outputs, images.image_sizes)
        end = now(device)
        (others if first.num_images else first).add(middle - start, end - middle, len(images))
        results |= {i: found.to("cpu") for i, found in zip(batch.image_ids, detections, strict=True)}
    return results, others if others.num_images else first


def now(device: torch.device) -> float:
    """Return the time in seconds after all work queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
