"""Inference on an imitated GPU is timed by events, with one synchronisation per batch."""

from types import SimpleNamespace

import pytest
import torch

from atss_core.data import Batch
from atss_core.engine import run_inference
from atss_core.structures import BoxList, ImageList


class Event:
    """A CUDA event whose clock, in milliseconds, the test moves."""

    clock = 0.0
    num_waits = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        assert stream == "stream of cuda:0"
        self.time = Event.clock

    def synchronize(self):
        Event.num_waits += 1

    def elapsed_time(self, end):
        return end.time - self.time


class Imitation:
    """Detects nothing in 3 ms for the network and 5 ms for post-processing."""

    device = torch.device("cuda:0")
    detector = SimpleNamespace(eval=lambda: None)

    def predict(self, images):
        Event.clock += 3
        return len(images)

    def detect(self, outputs, image_sizes):
        Event.clock += 5
        return [BoxList(torch.zeros(0, 4), size, torch.zeros(0, dtype=torch.int64)) for size in image_sizes]


def test_one_synchronisation_per_batch(monkeypatch):
    def refuse(device):
        raise AssertionError("waits for the device")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    images = ImageList.from_tensors([torch.zeros(3, 32, 32)] * 2)
    batches = [Batch(images, [], [2 * i, 2 * i + 1], []) for i in range(3)]
    results, timing = run_inference(Imitation(), batches)
    assert list(results) == list(range(6))
    assert Event.num_waits == 3
    assert timing.num_images == 4  # the first batch warms up
    assert timing.network == pytest.approx(0.006)
    assert timing.postprocessing == pytest.approx(0.010)
