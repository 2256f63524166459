"""Label assignment: golden scenes, a dense reference, ties and unusual boxes."""

import numpy as np
import pytest
import torch

from atss_core.config import load_cfg
from atss_core.modeling import build_assigner
from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.assigners import (
    BACKGROUND,
    IGNORED,
    AtssAssigner,
    IouAssigner,
    SscAssigner,
    TopkAssigner,
)
from atss_core.modeling.assigners.closest import closest_cells
from atss_core.modeling.assigners.common import resolve_conflicts, sort_key
from atss_core.modeling.assigners.ssc import SSC_SIZES
from atss_core.structures import boxes as box_ops
from tests import golden
from tests.modeling import dense
from tests.modeling.scenes import GENERATORS, GRIDS, SCENES, STRIDES, random_boxes

ASSIGNERS = {
    "ATSS9": AtssAssigner(9),
    "ATSS3": AtssAssigner(3),
    "ATSS27": AtssAssigner(27),
    "SSC": SscAssigner(),
    "IoU": IouAssigner(),
    "TOPK": TopkAssigner(9),
}


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize("scene", SCENES)
def test_golden_scene(scene, name):
    expected = golden.arrays(f"assign_{scene}")
    anchors = GENERATORS[scene[:2]](GRIDS)
    matched = ASSIGNERS[name](anchors, [torch.from_numpy(expected["boxes"])])[0].numpy()
    labels = np.where(
        matched >= 0, expected["labels"][matched.clip(min=0)], np.where(matched == IGNORED, -1, 0)
    )
    published = np.zeros(len(anchors), dtype=np.int64)
    published[expected[f"{name}/pos_idx"]] = expected[f"{name}/pos_label"]
    published[expected[f"{name}/ign_idx"]] = -1
    different = set(np.flatnonzero(labels != published)) - set(expected[f"{name}/unstable_idx"])
    assert not different


@pytest.mark.parametrize("whole_pixels", [False, True])
@pytest.mark.parametrize("topk", [1, 3, 9, 27])
@pytest.mark.parametrize("kind", GENERATORS)
def test_grid_candidates_equal_dense_candidates(kind, topk, whole_pixels):
    anchors = GENERATORS[kind]([(13, 20), (7, 10), (4, 5), (2, 3), (1, 2)])
    boxes = random_boxes(40, 160, 104, seed=topk, whole_pixels=whole_pixels)
    matched = AtssAssigner(topk)(anchors, [boxes])[0]
    assert torch.equal(matched, dense.assign(anchors, boxes, topk))
    assert (matched >= 0).any()


@pytest.mark.parametrize("grid_size", [(1, 1), (1, 30), (30, 1), (2, 5), (3, 3), (17, 23)])
@pytest.mark.parametrize("topk", [1, 2, 9, 27, 60])
def test_closest_cells_with_ties_and_far_points(grid_size, topk):
    height, width = grid_size
    random = torch.Generator().manual_seed(0)
    # Halves of cells tie constantly; a third of the points lie outside the grid.
    points = (
        torch.rand(200, 2, generator=random) * 6 * torch.tensor([width, height])
    ).round() / 2 - 0.5 * max(grid_size)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack([column, row], dim=-1).view(-1, 2)
    distances = (points[:, None] - cells).square().sum(dim=-1)
    expected = distances.sort(dim=1, stable=True).indices[:, :topk]
    assert torch.equal(closest_cells(points, grid_size, topk), expected)


def test_batch_equals_images_one_by_one():
    anchors = GENERATORS["A1"](GRIDS)
    boxes = [random_boxes(g, 1216, 800, seed=g, whole_pixels=True) for g in (5, 0, 60, 1)]
    for assigner in ASSIGNERS.values():
        together = assigner(anchors, boxes)
        assert together.shape == (4, len(anchors))
        for image, image_boxes in enumerate(boxes):
            assert torch.equal(together[image], assigner(anchors, [image_boxes])[0])


@pytest.mark.parametrize("name", ASSIGNERS)
def test_images_without_boxes_are_background(name):
    anchors = GENERATORS["A1"]([(13, 20), (7, 10), (4, 5), (2, 3), (1, 2)])
    matched = ASSIGNERS[name](anchors, [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert matched.shape == (2, len(anchors))
    assert (matched == BACKGROUND).all()


def test_box_smaller_than_a_stride_gets_the_anchor_inside_it():
    anchors = GENERATORS["A1"](GRIDS)
    matched = AtssAssigner(9)(
        anchors, [torch.tensor([[98.0, 98.0, 102.0, 102.0], [94.0, 94.0, 98.5, 98.5]])]
    )[0]
    # (100, 100) is the centre of row 12, column 12 of P3; the second box contains no centre at all.
    assert (matched >= 0).nonzero().flatten().tolist() == [12 * 152 + 12]


def test_box_partly_outside_the_image_and_box_outside_the_grid():
    anchors = GENERATORS["A1"](GRIDS)
    boxes = torch.tensor([[-40.0, -30.0, 60.0, 50.0], [5000.0, 5000.0, 5100.0, 5100.0]])
    for assigner in ASSIGNERS.values():
        matched = assigner(anchors, [boxes])[0]
        assert (matched == 0).any()
        assert not (matched == 1).any()
        # A box that no anchor overlaps must not make the whole image ignored or positive.
        assert (matched == BACKGROUND).sum() > 19000


@pytest.mark.parametrize("name", ["ATSS9", "TOPK", "IoU"])
def test_anchor_claimed_by_equal_boxes_goes_to_the_first(name):
    anchors = GENERATORS["A1"](GRIDS)
    boxes = torch.tensor([[100.0, 100.0, 180.0, 180.0]]).repeat(3, 1)
    matched = ASSIGNERS[name](anchors, [boxes])[0]
    assert set(matched[matched >= 0].tolist()) == {0}


def test_topk_takes_the_lowest_anchor_among_equals():
    anchors = GENERATORS["A1"](GRIDS)
    # Centred on the corner of four cells: four anchors tie in IoU and distance.
    matched = TopkAssigner(2)(anchors, [torch.tensor([[80.0, 80.0, 144.0, 144.0]])])[0]
    first = 13 * 152 + 13
    assert (matched >= 0).nonzero().flatten().tolist() == [first, first + 1]


def test_single_candidate_has_no_standard_deviation():
    anchors = AnchorGenerator((64,), (8,))([(1, 1)])
    assert AtssAssigner(9)(anchors, [torch.tensor([[-20.0, -20.0, 30.0, 30.0]])]).tolist() == [[0]]


def test_highest_iou_wins_then_lowest_box():
    candidates = torch.tensor([[[0, 1], [1, 2], [2, 1]]])
    ious = torch.tensor([[[0.5, 0.6], [0.7, 0.4], [0.4, 0.7]]])
    is_positive = torch.tensor([[[True, True], [True, True], [True, True]]])
    assert resolve_conflicts(candidates, ious, is_positive, 4).tolist() == [[0, 1, 1, -1]]
    is_positive[0, 1] = False
    assert resolve_conflicts(candidates, ious, is_positive, 4).tolist() == [[0, 2, 2, -1]]


def test_sort_key_orders_floats_then_indices():
    values = torch.tensor([0.0, -0.0, -1.5, 3.25, -torch.inf, torch.inf, 3.25, -1e-30])
    indices = torch.tensor([5, 4, 0, 9, 1, 2, 3, 7])
    order = sort_key(values, indices).argsort().tolist()
    assert order == [4, 2, 7, 1, 0, 6, 3, 5]


def test_iou_assigner_ignores_positives_with_their_centre_outside():
    anchors = AnchorGenerator((64,), (64,))([(1, 2)])  # centres (32, 32) and (96, 32)
    matched = IouAssigner()(anchors, [torch.tensor([[0.0, 0.0, 31.5, 63.0]])])[0]
    assert matched.tolist() == [IGNORED, BACKGROUND]


def test_ssc_needs_five_levels():
    with pytest.raises(ValueError, match="sizes: expected one per level, got 5 for 1"):
        SscAssigner()(AnchorGenerator((64,), (8,))([(2, 2)]), [torch.zeros(1, 4)])


def test_unknown_assigner_lists_the_choices():
    cfg = load_cfg(opts=["MODEL.ATSS.POSITIVE_TYPE", "IOU"])
    with pytest.raises(
        ValueError,
        match=r"POSITIVE_TYPE: expected one of ATSS, SSC, IoU, TOPK, got 'IOU'\. Did you mean 'IoU'",
    ):
        build_assigner(cfg)


@pytest.mark.parametrize("radius", [0.5, 1.5, 2.5])
def test_center_sampling_equals_a_loop(radius):
    grids = [(13, 20), (7, 10), (4, 5), (2, 3), (1, 2)]
    anchors = GENERATORS["A1"](grids)
    boxes = random_boxes(30, 160, 104, seed=3, whole_pixels=True)
    strides = [stride for stride, count in zip(STRIDES, anchors.counts, strict=True) for _ in range(count)]
    limits = [limit for limit, n in zip(SSC_SIZES, anchors.counts, strict=True) for _ in range(n)]
    expected = torch.full((len(anchors),), BACKGROUND)
    for index, (anchor, stride, (low, high)) in enumerate(
        zip(anchors.boxes.tolist(), strides, limits, strict=True)
    ):
        x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
        smallest = float("inf")
        for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            is_near = abs(x - (x1 + x2) / 2) < radius * stride and abs(y - (y1 + y2) / 2) < radius * stride
            area = (x2 - x1 + 1) * (y2 - y1 + 1)
            if min(sides) > 0.01 and low <= max(sides) <= high and is_near and area < smallest:
                smallest, expected[index] = area, number
    matched = SscAssigner(center_radius=radius)(anchors, [boxes])[0]
    assert torch.equal(matched, expected)
    everywhere = SscAssigner()(anchors, [boxes])[0]
    assert 0 < (matched >= 0).sum() < (everywhere >= 0).sum()


def test_center_sampling_by_hand():
    anchors = AnchorGenerator((64,), (8,))([(6, 6)])  # centres 4, 12, ..., 44
    assigner = SscAssigner([(-1, 64)], center_radius=1.5)
    # The centre is (20, 20): less than 12 px away are 12, 20 and 28.
    matched = assigner(anchors, [torch.tensor([[0.0, 0.0, 40.0, 40.0]])])[0].view(6, 6)
    assert (matched >= 0).nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (1, 2, 3)]
    # The box is narrower than the region, and must still contain the centre of the anchor.
    matched = assigner(anchors, [torch.tensor([[15.0, 0.0, 25.0, 40.0]])])[0].view(6, 6)
    assert (matched >= 0).nonzero().tolist() == [[r, 2] for r in (1, 2, 3)]


def test_atss_positives_may_lie_outside_their_box():
    anchors = GENERATORS["A1"](GRIDS)
    boxes = random_boxes(40, 1216, 800, seed=5, whole_pixels=True)
    for topk in (3, 9):
        inside = AtssAssigner(topk)(anchors, [boxes])[0]
        anywhere = AtssAssigner(topk, positives_in_box=False)(anchors, [boxes])[0]
        assert torch.equal(anywhere, dense.assign(anchors, boxes, topk, in_box=False))
        assert (anywhere >= 0)[inside >= 0].all()
        assert (anywhere >= 0).sum() > (inside >= 0).sum()


def test_iou_positives_may_lie_outside_their_box():
    anchors = AnchorGenerator((64,), (64,))([(1, 2)])  # centres (32, 32) and (96, 32)
    boxes = [torch.tensor([[0.0, 0.0, 31.5, 63.0]])]
    assert IouAssigner(positives_in_box=False)(anchors, boxes)[0].tolist() == [0, BACKGROUND]


def test_topk_positives_may_lie_outside_their_box():
    anchors = GENERATORS["A1"](GRIDS)
    boxes = [torch.tensor([[98.0, 98.0, 102.0, 102.0]])]  # contains the centre (100, 100) and no other
    assert (TopkAssigner(9)(anchors, boxes)[0] >= 0).sum() == 1
    assert (TopkAssigner(9, positives_in_box=False)(anchors, boxes)[0] >= 0).sum() == 9


@pytest.mark.parametrize("kind", [AtssAssigner, IouAssigner, TopkAssigner])
def test_a_box_that_overlaps_no_anchor_has_no_positives_outside_either(kind):
    anchors = GENERATORS["A1"](GRIDS)
    boxes = torch.tensor([[-40.0, -30.0, 60.0, 50.0], [5000.0, 5000.0, 5100.0, 5100.0]])
    matched = kind(positives_in_box=False)(anchors, [boxes, boxes[1:]])
    assert (matched[0] == 0).any()
    assert not (matched[0] == 1).any()
    assert (matched[1] < 0).all()


@pytest.mark.parametrize("radius", [-1.0, -0.1])
def test_center_sampling_radius_is_not_negative(radius):
    with pytest.raises(
        ValueError, match=rf"center_radius: expected 0 \(off\) or a number of strides, got {radius}"
    ):
        SscAssigner(center_radius=radius)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["CENTER_SAMPLING_RADIUS", "1.5"],
            "expected 0 with POSITIVE_TYPE ATSS, got 1.5. It belongs to POSITIVE_TYPE SSC",
        ),
        (
            ["CENTER_SAMPLING_RADIUS", "-1.0", "POSITIVE_TYPE", "SSC"],
            r"CENTER_SAMPLING_RADIUS must be in \[0, 1000\], got -1.0",
        ),
        (
            ["POSITIVES_IN_BOX", "False", "POSITIVE_TYPE", "SSC"],
            "POSITIVES_IN_BOX: expected True with .* SSC",
        ),
    ],
)
def test_options_of_another_assigner_are_refused(opts, message):
    keys = [f"MODEL.ATSS.{word}" if i % 2 == 0 else word for i, word in enumerate(opts)]
    with pytest.raises(ValueError, match=message):
        build_assigner(load_cfg(opts=keys))


def test_options_reach_the_assigner():
    cfg = load_cfg(opts=["MODEL.ATSS.POSITIVE_TYPE", "SSC", "MODEL.ATSS.CENTER_SAMPLING_RADIUS", "1.5"])
    assert build_assigner(cfg).center_radius == 1.5
    for kind in ("ATSS", "IoU", "TOPK"):
        opts = ["MODEL.ATSS.POSITIVE_TYPE", kind]
        assert build_assigner(load_cfg(opts=opts)).positives_in_box
        opts += ["MODEL.ATSS.POSITIVES_IN_BOX", "False"]
        assert not build_assigner(load_cfg(opts=opts)).positives_in_box


SMALL_GRIDS = [(13, 20), (7, 10), (4, 5), (2, 3), (1, 2)]


def at_least_one_by_loop(anchors, boxes, topk):
    """Match boxes without a positive, one claim at a time; returns (K,) int64."""
    stats = AtssAssigner(topk).candidates(anchors, [boxes])
    matched = AtssAssigner(topk)(anchors, [boxes])[0].tolist()
    preferences = []
    for candidates, ious in zip(stats.anchors[0].tolist(), stats.ious[0].tolist(), strict=True):
        ranked = sorted(zip(candidates, ious, strict=True), key=lambda pair: (-pair[1], pair[0]))
        preferences.append([(anchor, iou) for anchor, iou in ranked if iou > 0])
    kept = {}
    for index, preference in enumerate(preferences):
        mine = [anchor for anchor, _ in preference if matched[anchor] == index]
        if mine:
            kept[mine[0]] = index
    while True:
        claims = []
        for index, preference in enumerate(preferences):
            if index not in kept.values():
                claims += [(-iou, index, anchor) for anchor, iou in preference if anchor not in kept][:1]
        if not claims:
            break
        for _, index, anchor in sorted(claims):
            kept.setdefault(anchor, index)
    for anchor, index in kept.items():
        matched[anchor] = index
    return torch.tensor(matched)


def crowded_boxes(num_boxes, *, seed):
    """Return boxes of which most are tiny, many equal and some large, (G, 4)."""
    random = torch.Generator().manual_seed(seed)
    corner = (torch.rand(num_boxes, 2, generator=random) * torch.tensor([100.0, 60.0])).round()
    sides = (torch.rand(num_boxes, 2, generator=random) ** 6 * 90).round() + 1
    boxes = torch.cat([corner, corner + sides], dim=1)
    return torch.cat([boxes, boxes[: num_boxes // 2]])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("topk", "num_boxes"), [(1, 4), (1, 60), (2, 40), (9, 12), (9, 300)])
@pytest.mark.parametrize("kind", GENERATORS)
def test_at_least_one_equals_a_loop(kind, topk, num_boxes, seed):
    anchors = GENERATORS[kind](SMALL_GRIDS)
    boxes = crowded_boxes(num_boxes, seed=seed)
    before = AtssAssigner(topk)(anchors, [boxes])[0]
    after = AtssAssigner(topk, at_least_one=True)(anchors, [boxes])[0]
    assert torch.equal(after, at_least_one_by_loop(anchors, boxes, topk))
    has_positives = set(after[after >= 0].tolist())
    assert set(before[before >= 0].tolist()) < has_positives  # no box loses its last
    # An unmatched box overlaps only candidates that are the single positive of another box.
    stats = AtssAssigner(topk).candidates(anchors, [boxes])
    for index in set(range(len(boxes))) - has_positives:
        others = after[stats.anchors[0, index][stats.ious[0, index] > 0]]
        assert len(set(others.tolist())) == len(others)
        assert (others >= 0).all()


def test_at_least_one_in_a_batch_equals_images_one_by_one():
    anchors = GENERATORS["A1"](SMALL_GRIDS)
    assigner = AtssAssigner(9, at_least_one=True)
    boxes = [crowded_boxes(n, seed=n) if n else torch.zeros(0, 4) for n in (30, 0, 2, 7)]
    together = assigner(anchors, boxes)
    for image, image_boxes in enumerate(boxes):
        assert torch.equal(together[image], assigner(anchors, [image_boxes])[0])
    assert (assigner(anchors, boxes[1:2]) == BACKGROUND).all()


def test_single_anchor_goes_to_the_first_of_equal_boxes():
    anchors = AnchorGenerator((64,), (8,))([(1, 1)])
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]]).repeat(2, 1)
    assert AtssAssigner(9, at_least_one=True)(anchors, [boxes]).tolist() == [[0]]


def test_equal_boxes_share_their_candidates():
    anchors = GENERATORS["A1"](GRIDS)
    boxes = torch.tensor([[100.0, 100.0, 180.0, 180.0]]).repeat(20, 1)
    assert set(AtssAssigner(9)(anchors, [boxes])[0].tolist()) == {BACKGROUND, 0}
    assert set(AtssAssigner(9, at_least_one=True)(anchors, [boxes])[0].tolist()) == {BACKGROUND, *range(20)}


def test_at_least_one_needs_overlap_but_no_centre_inside():
    anchors = GENERATORS["A1"](GRIDS)
    boxes = torch.tensor([[94.0, 94.0, 98.5, 98.5], [5000.0, 5000.0, 5100.0, 5100.0]])
    assert (AtssAssigner(9)(anchors, [boxes]) == BACKGROUND).all()
    matched = AtssAssigner(9, at_least_one=True)(anchors, [boxes])[0]
    assert (matched == 0).sum() == 1
    assert not (matched == 1).any()


def test_candidates_are_those_of_the_assignment():
    anchors = GENERATORS["A1"](GRIDS)
    boxes = [random_boxes(g, 1216, 800, seed=g, whole_pixels=True) for g in (5, 12)]
    stats = AtssAssigner(9).candidates(anchors, boxes)
    assert stats.anchors.shape == stats.ious.shape == stats.is_positive.shape == (2, 12, 45)
    assert stats.is_box.sum(dim=1).tolist() == [5, 12]
    assert not stats.is_positive[0, 5:].any()
    candidate_boxes = anchors.boxes[stats.anchors[1, 3]]
    ious = box_ops.iou(candidate_boxes, boxes[1][3])
    torch.testing.assert_close(stats.ious[1, 3], ious)
    torch.testing.assert_close(stats.mean[1, 3], ious.mean())
    torch.testing.assert_close(stats.threshold[1, 3], ious.mean() + ious.std())
    matched = AtssAssigner(9)(anchors, boxes)
    assert torch.equal(matched, resolve_conflicts(stats.anchors, stats.ious, stats.is_positive, len(anchors)))


@pytest.mark.parametrize("kind", ["SSC", "IoU", "TOPK"])
def test_at_least_one_belongs_to_atss(kind):
    opts = ["MODEL.ATSS.AT_LEAST_ONE", "True", "MODEL.ATSS.POSITIVE_TYPE"]
    assert build_assigner(load_cfg(opts=[*opts, "ATSS"])).at_least_one
    assert not build_assigner(load_cfg()).at_least_one
    with pytest.raises(ValueError, match=f"AT_LEAST_ONE: expected False with POSITIVE_TYPE {kind}, got True"):
        build_assigner(load_cfg(opts=[*opts, kind]))
