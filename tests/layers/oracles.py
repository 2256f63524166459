"""The operators as slow, simple loops."""

import math

import numpy as np
import torch

from atss_core.structures import boxes as box_ops

F32 = np.float32


def iou(a, b):
    """The IoU of two inclusive boxes with every step rounded to float32."""
    ax1, ay1, ax2, ay2 = (F32(v) for v in a)
    bx1, by1, bx2, by2 = (F32(v) for v in b)
    ax2, ay2, bx2, by2 = (F32(v + F32(1)) for v in (ax2, ay2, bx2, by2))
    with np.errstate(all="ignore"):
        width = max(F32(min(ax2, bx2) - max(ax1, bx1)), F32(0))
        height = max(F32(min(ay2, by2) - max(ay1, by1)), F32(0))
        area_a = F32(F32(ax2 - ax1) * F32(ay2 - ay1))
        area_b = F32(F32(bx2 - bx1) * F32(by2 - by1))
        intersection = F32(width * height)
        return F32(intersection / F32(F32(area_a + area_b) - intersection))


def by_descending_score(scores):
    """Indices by descending score; ties in input order, NaN first."""
    return scores.float().argsort(descending=True, stable=True).tolist()


def nms(boxes, scores, labels, threshold):
    """Keep a box unless a kept box of its class overlaps it by more than the threshold."""
    boxes = boxes.float().numpy()
    keep = []
    for i in by_descending_score(scores):
        kept_in_class = [j for j in keep if labels[j] == labels[i]]
        if not any(iou(boxes[i], boxes[j]) > F32(threshold) for j in kept_in_class):
            keep.append(i)
    return keep


def box_vote(boxes, scores, labels, threshold, soft):
    """Return (score, label, box) of each voted box."""
    boxes = boxes.float().numpy()
    remaining = by_descending_score(scores)
    votes = []
    while remaining:
        top = remaining[0]
        overlaps = {i: iou(boxes[top], boxes[i]) for i in remaining if labels[i] == labels[top]}
        cluster = [i for i, overlap in overlaps.items() if i == top or overlap >= F32(threshold)]
        remaining = [i for i in remaining if i not in cluster]
        weights = [float(scores[i]) for i in cluster]
        box = boxes[top].astype(float)
        if len(cluster) > 1 and sum(weights) > 0:
            box = sum(w * boxes[i].astype(float) for w, i in zip(weights, cluster, strict=True)) / sum(
                weights
            )
        votes.append((float(scores[top]), int(labels[top]), box))
        if soft and len(cluster) > 1:
            for i in cluster:
                rescored = F32(F32(scores[i]) * F32(1 - overlaps[i]))
                if rescored >= F32(0.05):
                    votes.append((float(rescored), int(labels[i]), boxes[i].astype(float)))
    return votes


def focal_loss(logits, labels, gamma, alpha):
    """The sum over rows and classes, in float64."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for c, x in enumerate(row, start=1):
            if label < 0:
                continue
            sign, weight = (-1, alpha) if c == label else (1, 1 - alpha)
            y = sign * x
            softplus = max(y, 0) + math.log1p(math.exp(-abs(y)))
            log_p = min(y, 0) - math.log1p(math.exp(-abs(y)))
            total += weight * math.exp(gamma * log_p) * softplus
    return total


def deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask):
    """One output number at a time, in the dtype of ``x``."""
    (num, channels, height, width), (out_channels, group_channels, kh, kw) = x.shape, weight.shape
    groups, offset_groups = channels // group_channels, offset.shape[1] // (2 * kh * kw)
    out = x.new_zeros(num, out_channels, *offset.shape[2:])

    def at(n, c, y, x_):
        total = 0.0
        y0, x0 = math.floor(y), math.floor(x_)
        for row in (y0, y0 + 1):
            for column in (x0, x0 + 1):
                if 0 <= row < height and 0 <= column < width:
                    total = total + (1 - abs(y - row)) * (1 - abs(x_ - column)) * x[n, c, row, column]
        return total

    for n, o, i, j in np.ndindex(*out.shape):
        first = o // (out_channels // groups) * group_channels
        total = bias[o] if bias is not None else 0.0
        for c, u, v in np.ndindex(group_channels, kh, kw):
            group = (first + c) // (channels // offset_groups)
            tap = group * kh * kw + u * kw + v
            y = i * stride[0] - padding[0] + u * dilation[0] + offset[n, 2 * tap, i, j].item()
            x_ = j * stride[1] - padding[1] + v * dilation[1] + offset[n, 2 * tap + 1, i, j].item()
            factor = mask[n, tap, i, j] if mask is not None else 1.0
            total = total + weight[o, c, u, v] * factor * at(n, first + c, y, x_)
        out[n, o, i, j] = total
    return out


def random_boxes(count, *, seed=0, span=100.0, largest=40.0):
    """Inclusive boxes, some of them exact or near duplicates."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * span
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=random) * largest], dim=1)
    copies = torch.randint(0, max(count, 1), (count // 3,), generator=random)
    noise = torch.randint(0, 2, (count // 3, 4), generator=random).float()
    boxes[: count // 3] = boxes[copies] + noise
    return boxes


def ious(boxes):
    """All pairwise IoUs."""
    return box_ops.iou(boxes[:, None], boxes[None])
