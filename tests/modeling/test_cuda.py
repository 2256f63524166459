"""Tests that need a GPU; ``benchmarks/gpu.sh`` runs them and the benchmarks."""

import pytest
import torch

from atss_core.data import Batch
from atss_core.modeling.assigners import AtssAssigner, IouAssigner, SscAssigner, TopkAssigner
from tests import golden
from tests.devices import on_compiled_cuda, on_cuda
from tests.modeling.scenes import GENERATORS, GRIDS, random_boxes

pytestmark = on_cuda
CONFIG = "atss_R_50_FPN_1x"
ASSIGNERS = [AtssAssigner(9), SscAssigner(), IouAssigner(), TopkAssigner(9)]


def batch(name="R50_ATSS_BOX", device="cuda"):
    images = golden.images().to(device)
    return images, [t.to(device) for t in golden.targets(golden.arrays(f"loss_{name}"), images.image_sizes)]


@pytest.mark.parametrize("assigner", ASSIGNERS, ids=lambda a: type(a).__name__)
def test_training_step_does_not_wait_for_the_device(assigner):
    model = golden.detector(CONFIG).train().cuda()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
    images, targets = batch("R50_ATSS_BOX", device="cpu")
    pinned = Batch(images, targets, [1, 2], []).pin_memory()
    model.criterion.assigner = assigner

    def step():
        on_device = pinned.to("cuda", non_blocking=True)
        losses = model(on_device.images, on_device.targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    step()  # allocations and autotuning of the first step may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("assigner", ASSIGNERS, ids=lambda a: type(a).__name__)
def test_assignment_equals_the_cpu(assigner):
    boxes = [random_boxes(g, 1216, 800, seed=g, whole_pixels=True) for g in (120, 0, 3)]
    anchors = GENERATORS["A1"]
    expected = assigner(anchors(GRIDS), boxes)
    matched = assigner(anchors.cuda()(GRIDS), [b.cuda() for b in boxes])
    anchors.cpu()
    # The order of additions differs, so a threshold may fall to either side of an exact tie.
    assert (matched.cpu() != expected).float().mean() < 1e-4


@pytest.mark.parametrize("config", [CONFIG, "atss_dcnv2_R_50_FPN_1x"])
def test_losses_and_detections_equal_the_published_ones(config):
    name = "dcnv2R50_ATSS_BOX" if "dcn" in config else "R50_ATSS_BOX"
    model = golden.detector(config).cuda()
    images, targets = batch(name)
    losses = model.train()(images, targets)
    expected = golden.arrays(f"loss_{name}")
    for key, value in losses.items():
        assert value.item() == pytest.approx(float(expected[key]), rel=1e-4)
    with torch.inference_mode():
        results = model.eval()(images)
    published = golden.arrays(f"forward_{config}")
    for i, result in enumerate(results):
        boxes, labels = (torch.from_numpy(published[f"det{i}/{key}"]) for key in ("boxes", "labels"))
        distances = (result.boxes.cpu()[:, None] - boxes).abs().amax(dim=-1)
        distances[result.labels.cpu()[:, None] != labels] = torch.inf
        assert (distances.amin(dim=1) < 0.1).float().mean() > 0.97


def test_autocast_keeps_the_loss_in_float32():
    model = golden.detector(CONFIG).train().cuda()
    images, targets = batch()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        losses = model(images, targets)
    expected = golden.arrays("loss_R50_ATSS_BOX")
    for key, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(float(expected[key]), rel=0.05)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_compiled_cuda)])
def test_detection_waits_for_the_device_once(device):
    model = golden.detector(CONFIG).eval().to(device)
    images = golden.images().to(device)
    with torch.inference_mode():
        expected = model(images)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="called a synchronizing CUDA operation") as waits:
                detections = model(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1
    for one, other in zip(detections, expected, strict=True):
        assert torch.equal(one.boxes, other.boxes)
