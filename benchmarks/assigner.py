"""Time and memory of ATSS assignment against a straightforward dense implementation.

The dense one is what the paper's pseudo code suggests and what detectors commonly do: all distances and all
IoUs of G boxes and K anchors as matrices, contiguous along the anchors, vectorised over the boxes.

    python benchmarks/assigner.py [--device cuda]
"""

import torch
from measure import device_and_repeats, medians, peak_memory

from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.assigners import AtssAssigner
from atss_core.structures import boxes as box_ops

HEIGHT, WIDTH = 800, 1216
STRIDES, SIZES, TOPK = (8, 16, 32, 64, 128), (64, 128, 256, 512, 1024), 9
NUM_BOXES = (1, 17, 120, 1000, 3000)


def dense_assign(anchors, boxes, topk=TOPK):
    """Match K anchors to (G, 4) boxes through (G, K) matrices; returns (K,) int64."""
    centers = box_ops.centers(anchors.boxes)
    distances = (centers - box_ops.centers(boxes)[:, None]).square().sum(dim=-1).sqrt()
    ious = box_ops.iou(anchors.boxes, boxes[:, None])
    candidates, start = [], 0
    for count in anchors.counts:
        nearest = distances[:, start : start + count].topk(min(topk, count), dim=1, largest=False).indices
        candidates.append(nearest + start)
        start += count
    candidates = torch.cat(candidates, dim=1)  # (G, M)
    candidate_ious = ious.gather(1, candidates)
    threshold = candidate_ious.mean(dim=1, keepdim=True) + candidate_ious.std(dim=1, keepdim=True)
    inside = box_ops.distances_to_sides(centers[candidates], boxes[:, None]).amin(dim=-1) > 0.01
    wanted = torch.where((candidate_ious >= threshold) & inside, candidate_ious, -1.0)
    best, matched = torch.full_like(ious, -1.0).scatter_(1, candidates, wanted).max(dim=0)
    return torch.where(best >= 0, matched, -1)


def random_boxes(num_boxes, device):
    """Boxes with the many small ones of COCO, inside the image."""
    generator = torch.Generator().manual_seed(num_boxes)
    sides = torch.exp(torch.rand(num_boxes, 2, generator=generator) * 4.6 + 1.6)  # 5 to 500 px
    free = torch.tensor([WIDTH, HEIGHT]) - sides
    corner = torch.rand(num_boxes, 2, generator=generator) * free
    return torch.cat([corner, corner + sides], dim=1).to(device)


def main():
    """Print one row for each number of boxes."""
    device, repeats = device_and_repeats(__doc__)
    grids = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES]
    anchors = AnchorGenerator(SIZES, STRIDES).to(device)(grids)
    grid_assigner = AtssAssigner(TOPK)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {len(anchors)} anchors")
    print("| boxes | dense ms | grid ms | ratio | dense MB | grid MB | memory |")
    print("|---|---|---|---|---|---|---|")
    for num_boxes in NUM_BOXES:
        boxes = random_boxes(num_boxes, device)
        ways = (lambda b=boxes: dense_assign(anchors, b), lambda b=boxes: grid_assigner(anchors, [b])[0])
        first, second = (way() for way in ways)
        assert (first != second).float().mean() < 1e-4, "the two must agree but for rounding"
        dense_time, grid_time = medians(ways, device, repeats)
        dense_bytes, grid_bytes = (peak_memory(way, device) for way in ways)
        print(
            f"| {num_boxes} | {dense_time * 1e3:.2f} | {grid_time * 1e3:.2f} | {dense_time / grid_time:.1f} "
            f"| {dense_bytes / 1e6:.1f} | {grid_bytes / 1e6:.2f} | {100 * grid_bytes / dense_bytes:.1f}% |"
        )


if __name__ == "__main__":
    main()
