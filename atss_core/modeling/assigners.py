"""How positives are chosen: the subject of the paper.

An assigner maps anchors and the boxes of each image to one number per anchor: the index of its box, or
``BACKGROUND`` or ``IGNORED``. Ties are settled by rule, because boxes on whole pixels tie often:

* among anchors at the same distance from a box (or of the same rank score), the lowest anchor index wins;
* among boxes that claim an anchor equally, the lowest box index wins.

Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.modeling.nearest import nearest_anchors, sort_key
from atss_core.structures import boxes as box_ops

BACKGROUND = -1
IGNORED = -2

# An anchor is in a box only if its centre is more than this many pixels from every side.
INSIDE_MARGIN = 0.01

# Object sizes that FCOS leaves to P3 ... P7: the largest distance to a side in pixels, both ends included.
SSC_SIZES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))

# What the detector calls: anchors and the boxes of each image, (G, 4) each -> (N, K) int64.
Assigner = Callable[[Anchors, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Candidates:
    """What ATSS knows about each box before an anchor that several boxes want goes to one of them.

    Boxes of a batch are padded to the fullest image; what is said of a box that is none means nothing.

    Attributes:
        anchors: indices of the candidates, level by level, int64, shape (N, G, M).
        ious: of each candidate with its box, shape (N, G, M).
        mean: of the IoUs, shape (N, G).
        threshold: mean plus standard deviation of the IoUs, shape (N, G).
        is_positive: whether the candidate reaches the threshold and may be positive, bool, shape (N, G, M).
        is_box: False where there is only padding, bool, shape (N, G).
    """

    anchors: Tensor
    ious: Tensor
    mean: Tensor
    threshold: Tensor
    is_positive: Tensor
    is_box: Tensor


class AtssAssigner:
    """Adaptive Training Sample Selection (paper, algorithm 1).

    For each box, the ``topk`` anchors of each level that are nearest to its centre are candidates; those
    whose IoU with it reaches the mean plus the standard deviation of the candidates' IoUs, and whose centre
    is inside it, are positive. An anchor that several boxes want goes to the one it overlaps most.

    The candidates are found on the grid, so memory and time grow with the boxes and not with boxes times
    anchors.

    Args:
        topk: places per level and box; each counts with all the anchors that share its centre.
        positives_in_box: only anchors whose centre is inside the box can be positive.
        at_least_one: give a box that ends without a positive one of its candidates; see
            ``with_at_least_one``. The paper does not.
    """

    def __init__(self, topk: int = 9, *, positives_in_box: bool = True, at_least_one: bool = False) -> None:
        if topk < 1:
            raise ValueError(f"MODEL.ATSS.TOPK must be at least 1, got {topk}")
        self.topk = topk
        self.positives_in_box = positives_in_box
        self.at_least_one = at_least_one

    def __call__(self, anchors: Anchors, boxes: Sequence[Tensor]) -> Tensor:
        """Match the anchors to the boxes of each image, (G, 4) each; returns (N, K) int64."""
        if not any(map(len, boxes)):
            return anchors.boxes.new_full((len(boxes), len(anchors)), BACKGROUND, dtype=torch.int64)
        found = self.candidates(anchors, boxes)
        matched = most_overlapping_box(found.anchors, found.ious, found.is_positive, len(anchors))
        return with_at_least_one(found, matched) if self.at_least_one else matched

    def candidates(self, anchors: Anchors, boxes: Sequence[Tensor]) -> Candidates:
        """Find the candidates of the boxes of each image, (G, 4) each, of which at least one has a box."""
        padded, is_box = pad(boxes)
        candidates = nearest_anchors(anchors, box_ops.centers(padded), self.topk)
        candidate_boxes = anchors.boxes[candidates]
        ious = box_ops.iou(candidate_boxes, padded[:, :, None])
        mean = ious.mean(dim=-1)
        # One candidate alone has no spread.
        threshold = mean + ious.std(dim=-1) if ious.shape[-1] > 1 else mean
        is_positive = (ious >= threshold[..., None]) & is_box[..., None]
        is_positive &= may_be_positive(candidate_boxes, padded[:, :, None], ious, self.positives_in_box)
        return Candidates(candidates, ious, mean, threshold, is_positive, is_box)


class SscAssigner:
    """Spatial and scale constraint of FCOS (arXiv 1904.01355, section 3.2).

    An anchor is positive for the boxes that its centre is inside and whose size suits its level; the smallest
    of them wins.

    With centre sampling (version 2 of that paper, and its released code) the anchor's centre must also be
    near the box's, across and down.

    Args:
        sizes: (low, high) of each level in pixels, both included.
        center_radius: the centres must be less than so many strides of the level apart; 0 for any distance.
    """

    def __init__(
        self, sizes: Sequence[tuple[float, float]] = SSC_SIZES, *, center_radius: float = 0.0
    ) -> None:
        if center_radius < 0:
            raise ValueError(
                f"MODEL.ATSS.CENTER_SAMPLING_RADIUS counts strides and must not be negative, got "
                f"{center_radius}; 0 is off"
            )
        self.sizes = tuple(sizes)
        self.center_radius = center_radius

    def __call__(self, anchors: Anchors, boxes: Sequence[Tensor]) -> Tensor:
        """Match the anchors to the boxes of each image, (G, 4) each; returns (N, K) int64.

        Raises:
            ValueError: if the number of levels is not that of ``sizes``.
        """
        if len(anchors.strides) != len(self.sizes):
            raise ValueError(
                f"POSITIVE_TYPE SSC knows the object sizes of {len(self.sizes)} levels, "
                f"but there are {len(anchors.strides)} levels"
            )
        low, high = (per_anchor(anchors, limits) for limits in zip(*self.sizes, strict=True))
        radius = per_anchor(anchors, [stride * self.center_radius or torch.inf for stride in anchors.strides])
        return per_image(
            lambda image_boxes: self._match(anchors, image_boxes, low, high, radius), anchors, boxes
        )

    @staticmethod
    def _match(anchors: Anchors, boxes: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
        centers = box_ops.centers(anchors.boxes)
        distances = box_ops.distances_to_sides(centers, boxes[:, None])  # (G, K, 4)
        size = distances.amax(dim=-1)
        is_positive = (distances.amin(dim=-1) > INSIDE_MARGIN) & (size >= low) & (size <= high)
        is_positive &= (centers - box_ops.centers(boxes)[:, None]).abs().amax(dim=-1) < radius
        areas = torch.where(is_positive, box_ops.area(boxes)[:, None], torch.inf)
        smallest, box_index = areas.min(dim=0)
        return torch.where(smallest < torch.inf, box_index, BACKGROUND)


class IouAssigner:
    """IoU thresholds of RetinaNet (arXiv 1708.02002, section 4).

    An anchor is positive for the box it overlaps most if the IoU reaches the upper threshold, or if it is
    one of some box's best anchors; it is background below the lower threshold. What lies between is ignored.

    Args:
        positive_iou: the upper threshold.
        negative_iou: the lower threshold.
        positives_in_box: ignore positives whose centre is outside their box, which RetinaNet keeps.
    """

    def __init__(
        self, positive_iou: float = 0.5, negative_iou: float = 0.4, *, positives_in_box: bool = True
    ) -> None:
        if negative_iou > positive_iou:
            raise ValueError(
                f"BG_IOU_THRESHOLD must not exceed FG_IOU_THRESHOLD, got {negative_iou} > {positive_iou}"
            )
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.positives_in_box = positives_in_box

    def __call__(self, anchors: Anchors, boxes: Sequence[Tensor]) -> Tensor:
        """Match the anchors to the boxes of each image, (G, 4) each; returns (N, K) int64."""
        return per_image(lambda image_boxes: self._match(anchors, image_boxes), anchors, boxes)

    def _match(self, anchors: Anchors, boxes: Tensor) -> Tensor:
        ious = box_ops.iou(anchors.boxes, boxes[:, None])  # (G, K)
        best_iou, box_index = ious.max(dim=0)
        best_of_box = ious.amax(dim=1, keepdim=True)
        # A box that overlaps no anchor would tie with all of them at IoU 0, hence the second condition.
        is_best_of_a_box = ((ious == best_of_box) & (best_of_box > 0)).any(dim=0)
        is_positive = (best_iou >= self.positive_iou) | is_best_of_a_box
        stays = may_be_positive(anchors.boxes, boxes[box_index], best_iou, self.positives_in_box)
        unmatched = torch.where(best_iou < self.negative_iou, BACKGROUND, IGNORED)
        return torch.where(is_positive, torch.where(stays, box_index, IGNORED), unmatched)


class TopkAssigner:
    """A fixed number of positives per box: the highest IoUs, ties settled by distance.

    The rank score is ``IoU - distance / largest distance / 1000``. An anchor that several boxes want goes to
    the one it overlaps most.

    Args:
        topk: anchors per box over all levels.
        positives_in_box: those of them whose centre is outside the box are not positive.
    """

    def __init__(self, topk: int = 9, *, positives_in_box: bool = True) -> None:
        if topk < 1:
            raise ValueError(f"MODEL.ATSS.TOPK must be at least 1, got {topk}")
        self.topk = topk
        self.positives_in_box = positives_in_box

    def __call__(self, anchors: Anchors, boxes: Sequence[Tensor]) -> Tensor:
        """Match the anchors to the boxes of each image, (G, 4) each; returns (N, K) int64."""
        return per_image(lambda image_boxes: self._match(anchors, image_boxes), anchors, boxes)

    def _match(self, anchors: Anchors, boxes: Tensor) -> Tensor:
        ious = box_ops.iou(anchors.boxes, boxes[:, None])  # (G, K)
        between = box_ops.centers(anchors.boxes) - box_ops.centers(boxes)[:, None]
        distances = between.square().sum(dim=-1).sqrt()
        ranks = torch.arange(len(anchors), device=boxes.device)
        order = sort_key(distances / distances.max() / 1000 - ious, ranks)
        chosen = order.topk(min(self.topk, len(anchors)), largest=False).indices
        chosen_ious = ious.gather(1, chosen)
        is_positive = may_be_positive(
            anchors.boxes[chosen], boxes[:, None], chosen_ious, self.positives_in_box
        )
        return most_overlapping_box(chosen[None], chosen_ious[None], is_positive[None], len(anchors))[0]


def pad(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Bring the boxes of N images, (G, 4) each, to one tensor (N, G, 4) and a mask (N, G) of real ones."""
    padded = torch.nn.utils.rnn.pad_sequence(list(boxes), batch_first=True)
    counts = torch.tensor([len(image_boxes) for image_boxes in boxes])
    is_box = torch.arange(padded.shape[1]) < counts[:, None]
    return padded, is_box.to(padded.device, non_blocking=True)


def per_image(match: Callable[[Tensor], Tensor], anchors: Anchors, boxes: Sequence[Tensor]) -> Tensor:
    """Match image by image, for the rules that need all pairs of boxes and anchors; returns (N, K)."""
    background = anchors.boxes.new_full((len(anchors),), BACKGROUND, dtype=torch.int64)
    return torch.stack([match(b) if len(b) else background for b in boxes])


def per_anchor(anchors: Anchors, values: Sequence[float]) -> Tensor:
    """Repeat the value of each level for all its anchors, shape (K,)."""
    return torch.cat([anchors.boxes.new_full((n,), x) for n, x in zip(anchors.counts, values, strict=True)])


def may_be_positive(anchor_boxes: Tensor, boxes: Tensor, ious: Tensor, in_box: bool) -> Tensor:
    """Tell which anchors may be positive for boxes that they are paired with, shape (...).

    Args:
        anchor_boxes: shape (..., 4).
        boxes: shape (..., 4).
        ious: of each pair, shape (...).
        in_box: the anchor's centre must be inside the box; if not, the two need only overlap, because a box
            far from all anchors has candidates too.
    """
    return is_inside(box_ops.centers(anchor_boxes), boxes) if in_box else ious > 0


def is_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Tell whether points (..., 2) are inside boxes (..., 4), more than the margin from every side."""
    return box_ops.distances_to_sides(points, boxes).amin(dim=-1) > INSIDE_MARGIN


def most_overlapping_box(candidates: Tensor, ious: Tensor, is_positive: Tensor, num_anchors: int) -> Tensor:
    """Give each anchor to the box that it overlaps most among those it is positive for.

    Args:
        candidates: anchor indices, int64, shape (N, G, M).
        ious: of each candidate with its box, shape (N, G, M).
        is_positive: whether the candidate is positive for its box, shape (N, G, M).
        num_anchors: K.

    Returns:
        The index of its box for each anchor, else ``BACKGROUND``; int64, shape (N, K).
    """
    num_images, num_boxes, num_candidates = candidates.shape
    ious = torch.where(is_positive, ious, -1.0).flatten(1)
    anchor_index = candidates.flatten(1)
    best = ious.new_full((num_images, num_anchors), -1.0)
    best = best.scatter_reduce(1, anchor_index, ious, "amax")
    is_best = is_positive.flatten(1) & (ious == best.gather(1, anchor_index))
    box_index = torch.arange(num_boxes, device=ious.device).repeat_interleave(num_candidates)
    claims = torch.where(is_best, box_index, num_boxes)
    matched = claims.new_full((num_images, num_anchors), num_boxes)
    matched = matched.scatter_reduce(1, anchor_index, claims, "amin")
    return torch.where(matched < num_boxes, matched, BACKGROUND)


def with_at_least_one(found: Candidates, matched: Tensor) -> Tensor:
    """Give boxes without a positive anchor the best of their candidates that no box needs.

    Each box that has positives keeps the one it overlaps most; all others may be taken from it. Then, round
    by round, each box that has none claims its best candidate, whether its centre is inside or not, among
    those that it overlaps and that no box keeps (by IoU, then the lowest anchor index). An anchor that
    several boxes claim goes to the one it overlaps most, then to the lowest box index, which keeps it.

    So no box loses its last positive, and a box stays without one only if each of its candidates that it
    overlaps is the one anchor that another box keeps, or if it overlaps none. Of more equal boxes than they
    have such candidates, those of the lowest indices are served.

    Args:
        found: the candidates.
        matched: the index of its box for each anchor, else ``BACKGROUND``; int64, shape (N, K).

    Returns:
        The same with boxes served, int64, shape (N, K).
    """
    order = sort_key(-found.ious, found.anchors).argsort(dim=-1)
    candidates, ious = found.anchors.gather(-1, order), found.ious.gather(-1, order)
    num_boxes, num_candidates = candidates.shape[1:]
    box_index = torch.arange(num_boxes, device=matched.device)[:, None]
    may_claim = found.is_box[..., None] & (ious > 0)

    def of_candidates(values: Tensor) -> Tensor:
        return values.gather(1, candidates.flatten(1)).view_as(candidates)

    def give_first(is_allowed: Tensor) -> Tensor:
        """Give the first allowed candidate of each box, the best, to a box that claims it, shape (N, K)."""
        first = is_allowed.byte().argmax(dim=-1, keepdim=True)
        has_claim = is_allowed.any(dim=-1, keepdim=True)
        return most_overlapping_box(
            candidates.gather(-1, first), ious.gather(-1, first), has_claim, matched.shape[1]
        )

    kept = give_first(of_candidates(matched) == box_index)
    # A round serves a box of each image that has any to serve, and takes a candidate from all that it does
    # not serve. So these rounds are enough, and no device is asked whether fewer would be.
    for _ in range(min(num_boxes, num_candidates)):
        keeper = of_candidates(kept)
        has_none = ~(keeper == box_index).any(dim=-1, keepdim=True)
        kept = torch.maximum(kept, give_first(may_claim & has_none & (keeper == BACKGROUND)))
    return torch.where(kept >= 0, kept, matched)
