"""Time and memory of the compiled operators against torchvision's, and how far each is from its floor.

The floor is what the machine needs at least for the work, measured in the same run: sorting the scores for
NMS and box voting; one exponential and one logarithm a number each way for the focal loss; the plain
convolution of the same shape for the deformable one. Results are checked against each other before timing.

    python benchmarks/ops.py [--device cuda]
"""

import numpy as np
import torch
import torchvision
from measure import device_and_repeats, medians, peak_memory
from torchvision import ops

from atss_core.layers import (
    batched_nms,
    batched_nms_padded,
    box_vote,
    deform_conv2d,
    nms,
    ops_info,
    sigmoid_focal_loss,
)
from atss_core.structures.boxes import to_exclusive


def random_boxes(count, seed, largest=60.0, span=1200.0):
    """Boxes anywhere, few of which overlap much."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * span
    sides = torch.rand(count, 2, generator=generator) * largest + 4
    return torch.cat([corner, corner + sides], dim=1), torch.rand(count, generator=generator)


def clustered_boxes(count, num_clusters, seed, noise=3.0):
    """Boxes of 60 pixels around few centres, as a detector predicts them."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(num_clusters, 2, generator=generator) * 1200
    corner = centers.repeat_interleave(-(-count // num_clusters), dim=0)[:count]
    corner = corner + torch.randn(count, 2, generator=generator) * noise
    sides = 60 + torch.randn(count, 2, generator=generator) * noise * 1.6
    return torch.cat([corner, corner + sides], dim=1), torch.rand(count, generator=generator)


def numpy_vote(boxes, scores, threshold):
    """Box voting of one class as a loop over its clusters, as multi-scale testing commonly has it."""
    order = scores.argsort()[::-1]
    boxes, scores = boxes[order], scores[order]
    voted = []
    while len(boxes):
        areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
        width = np.maximum(0, np.minimum(boxes[0, 2], boxes[:, 2]) - np.maximum(boxes[0, 0], boxes[:, 0]) + 1)
        height = np.maximum(
            0, np.minimum(boxes[0, 3], boxes[:, 3]) - np.maximum(boxes[0, 1], boxes[:, 1]) + 1
        )
        overlaps = width * height / (areas[0] + areas - width * height)
        joins = overlaps >= threshold
        weights = scores[joins, None]
        voted.append(np.append((boxes[joins] * weights).sum(axis=0) / weights.sum(), scores[0]))
        boxes, scores = boxes[~joins], scores[~joins]
    return np.stack(voted)


class Table:
    """Prints a row for each comparison as it is measured."""

    def __init__(self, device, repeats):
        self.device, self.repeats = device, repeats
        print("| operator | ours ms | peer ms | ratio | floor ms | ours / floor |")
        print("|---|---|---|---|---|---|")

    def row(self, name, ours, peer, floor, repeats=None):
        """Time the three in turns."""
        own, other, least = (
            1e3 * t for t in medians([ours, peer, floor], self.device, repeats or self.repeats)
        )
        print(
            f"| {name} | {own:.2f} | {other:.2f} | {other / own:.1f} | {least:.2f} | {own / least:.1f} |",
            flush=True,
        )


def suppress(table):
    """NMS of one class and of many, and of a batch of images as post-processing needs it."""
    device = table.device
    boxes, scores = (value.to(device) for value in random_boxes(5000, 0, largest=200))
    labels = torch.arange(5000, device=device) % 80
    peer = lambda: ops.batched_nms(to_exclusive(boxes), scores, labels, 0.6)  # noqa: E731
    assert batched_nms(boxes, scores, labels, 0.6).tolist() == peer().tolist()
    table.row(
        "batched NMS, 5,000 boxes in 80 classes",
        lambda: batched_nms(boxes, scores, labels, 0.6), peer, lambda: scores.sort(descending=True), 51,
    )  # fmt: skip
    for kind, (b, s) in {
        "uniform": random_boxes(20000, 1),
        "clustered, 200 centres": clustered_boxes(20000, 200, 2),
    }.items():
        b, s = b.to(device), s.to(device)
        assert nms(b, s, 0.6).tolist() == ops.nms(to_exclusive(b), s, 0.6).tolist()
        table.row(
            f"NMS, 20,000 boxes, {kind}",
            lambda b=b, s=s: nms(b, s, 0.6),
            lambda b=b, s=s: ops.nms(to_exclusive(b), s, 0.6),
            lambda s=s: s.sort(descending=True),
        )
    images = [clustered_boxes(4000, 100, seed) for seed in range(16)]
    b, s = (torch.stack([image[i] for image in images]).to(device) for i in range(2))
    c = (torch.arange(4000, device=device) // 40 % 80).expand(16, -1).contiguous()

    def by_torchvision():
        return [ops.batched_nms(to_exclusive(b[i]), s[i], c[i], 0.6)[:100] for i in range(16)]

    keep, counts = batched_nms_padded(b, s, c, 0.6, 100)
    for i, expected in enumerate(by_torchvision()):
        assert keep[i, : counts[i]].tolist() == expected.tolist()
    table.row(
        "batched NMS of 16 images, 4,000 boxes each, best 100",
        lambda: batched_nms_padded(b, s, c, 0.6, 100), by_torchvision, lambda: s.sort(dim=1, descending=True),
    )  # fmt: skip


def vote(table):
    """Box voting against a NumPy loop, which runs on the CPU whatever the device."""
    boxes, scores = clustered_boxes(16000, 800, 3)
    labels = torch.arange(16000) // 200
    cases = {"80 classes x 200 boxes": (boxes, scores, labels)}
    boxes, scores = clustered_boxes(5000, 500, 4)
    cases["one class x 5,000 boxes"] = (boxes, scores, torch.zeros(5000, dtype=torch.int64))
    for name, (boxes, scores, labels) in cases.items():
        arrays = [(boxes[labels == c].numpy(), scores[labels == c].numpy()) for c in labels.unique()]
        loop = lambda arrays=arrays: [numpy_vote(b, s, 0.66) for b, s in arrays]  # noqa: E731
        values = [value.to(table.device) for value in (boxes, scores, labels)]
        expected = torch.from_numpy(np.concatenate(loop()))
        expected = expected[expected[:, 4].argsort(descending=True)]
        found = box_vote(*values, 0.66, False)
        torch.testing.assert_close(found[0].cpu(), expected[:, :4], rtol=1e-4, atol=1e-2)
        table.row(
            f"box voting, {name} (peer: NumPy loop)",
            lambda values=values: box_vote(*values, 0.66, False), loop,
            lambda values=values: values[1].sort(descending=True),
        )  # fmt: skip


def focus(table):
    """Focal loss of an image of 800 x 1216 pixels forward and backward, and its memory."""
    device = table.device
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(20460, 80, generator=generator).to(device).requires_grad_()
    labels = torch.randint(0, 81, (20460,), generator=generator).to(device)
    labels[torch.rand(20460, generator=generator).to(device) > 0.01] = 0
    classes = torch.arange(1, 81, device=device)
    scratch, logits_ = torch.empty_like(logits, requires_grad=False), logits.detach()

    def ours():
        logits.grad = None
        sigmoid_focal_loss(logits, labels).backward()

    def peer():
        logits.grad = None
        targets = (labels[:, None] == classes).float()
        ops.sigmoid_focal_loss(logits, targets, reduction="sum").backward()

    def floor():
        for _ in range(2):
            torch.exp(logits_, out=scratch)
            torch.log1p(scratch, out=scratch)

    ours()
    gradient = logits.grad
    peer()
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-6)
    table.row("focal loss, 20,460 x 80, forward + backward", ours, peer, floor)
    own, other = peak_memory(ours, device), peak_memory(peer, device)
    moved = logits.numel() * 4 * 3  # read, read, written
    copy, _ = medians([lambda: scratch.copy_(logits_), lambda: None], device, 15)
    bandwidth = logits.numel() * 8 / copy
    return (
        f"Focal loss: {own / 1e6:.1f} MB of extra memory at the peak, torchvision {other / 1e6:.1f} MB "
        f"({100 * own / other:.0f}%). Moving its bytes alone would take {1e3 * moved / bandwidth:.2f} ms."
    )


def deform(table, dtype=torch.float32, num_images=1, groups=1):
    """Modulated deformable convolution forward, and forward + backward."""
    device = table.device
    generator = torch.Generator().manual_seed(6)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device, dtype)  # noqa: E731
    x, weight = draw(num_images, 256, 100, 152), draw(256, 256 // groups, 3, 3) / 48
    offset = draw(num_images, 18, 100, 152) / 2
    mask = draw(num_images, 9, 100, 152).sigmoid()
    leaves = [value.requires_grad_() for value in (x, offset, weight, mask)]
    gradient = draw(num_images, 256, 100, 152)

    ours = lambda: deform_conv2d(x, offset, weight, padding=1, mask=mask)  # noqa: E731
    plain = lambda: torch.nn.functional.conv2d(x, weight, padding=1, groups=groups)  # noqa: E731

    def peer():
        # torchvision has no bfloat16 kernel; under autocast it computes in float32, too.
        exact = [value.float() for value in (x, offset, weight, mask)]
        return ops.deform_conv2d(*exact[:3], padding=1, mask=exact[3]).to(dtype)

    def both_ways(forward):
        def run():
            for leaf in leaves:
                leaf.grad = None
            forward().backward(gradient)

        return run

    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.5}
    torch.testing.assert_close(ours(), peer(), **tolerance)
    name = f"deformable convolution {num_images}x256x100x152, 3x3, {str(dtype).removeprefix('torch.')}"
    name += f", {groups} groups" if groups > 1 else ""
    repeats = max(table.repeats // 2, 5)
    with torch.no_grad():
        table.row(f"{name}, forward", ours, peer, plain, repeats)
    table.row(f"{name}, forward + backward", both_ways(ours), both_ways(peer), both_ways(plain), repeats)


def main():
    """Print the table."""
    device, repeats = device_and_repeats(__doc__)
    torch.backends.cudnn.allow_tf32 = False  # the peers do not use it
    print(
        f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, {device}, 2 CPU threads; "
        f"{ops_info()}\n"
    )
    table = Table(device, repeats)
    suppress(table)
    vote(table)
    memory = focus(table)
    deform(table)
    if device.type == "cuda":
        deform(table, torch.bfloat16)
        deform(table, torch.float32, num_images=16)
        deform(table, torch.bfloat16, num_images=16)
    else:
        deform(table, groups=32)
    print(f"\n{memory}")


if __name__ == "__main__":
    main()
