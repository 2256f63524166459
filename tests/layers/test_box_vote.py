import pytest
import torch
from hypothesis import given, settings

from atss_core.layers import box_vote
from tests import golden
from tests.devices import compiled_devices, devices
from tests.layers import oracles
from tests.layers.crowds import THRESHOLDS, crowds


def as_rows(boxes, scores, labels):
    """Rows (score, label, box), sorted so that the order of near ties does not matter."""
    rows = torch.cat([scores[:, None].cpu().double(), labels[:, None].cpu(), boxes.cpu().double()], dim=1)
    return torch.tensor(sorted(rows.tolist(), key=lambda row: [round(v, 3) for v in row])).reshape(-1, 6)


def assert_same(votes, expected):
    assert votes[1].tolist() == sorted(votes[1].tolist(), reverse=True)
    torch.testing.assert_close(as_rows(*votes), as_rows(*expected), rtol=1e-5, atol=1e-4)


@devices
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("threshold", ["0.66", "0.50"])
@pytest.mark.parametrize("case", ["n2", "n6", "n40", "n300", "n300loose"])
def test_golden(case, threshold, soft, device):
    published = golden.arrays("vote")
    boxes, scores = (torch.from_numpy(published[f"{case}/{key}"]) for key in ("boxes", "scores"))
    name = f"{case}/{'soft_' if soft else ''}bbox_vote/{threshold}"
    expected = [torch.from_numpy(published[f"{name}/{key}"]) for key in ("boxes", "scores")]
    labels = torch.full((len(scores),), 7, dtype=torch.int16, device=device)
    votes = box_vote(boxes.to(device), scores.to(device), labels, float(threshold), soft)
    assert_same(votes, (*expected, torch.full((len(expected[1]),), 7)))


@devices
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("case", ["merge0", "merge1"])
def test_golden_of_all_classes(case, soft, device):
    published = golden.arrays("vote")
    values = [
        torch.from_numpy(published[f"{case}/{key}"]).to(device) for key in ("boxes", "scores", "labels")
    ]
    name = f"{case}/{'soft-vote' if soft else 'vote'}"
    expected = [torch.from_numpy(published[f"{name}/{key}"]) for key in ("boxes", "scores", "labels")]
    votes = box_vote(*values, 0.66, soft)
    # The published code keeps the top 1000.
    assert len(votes[1]) >= len(expected[1])
    assert_same([value[: len(expected[1])] for value in votes], expected)


@given(crowds(), THRESHOLDS)
@settings(max_examples=150, deadline=None)
def test_equals_a_loop_with_ties_everywhere(crowd, threshold):
    for soft in (False, True):
        votes = oracles.box_vote(*crowd, threshold, soft)
        expected = (
            torch.tensor([box.tolist() for _, _, box in votes]).reshape(-1, 4),
            torch.tensor([score for score, _, _ in votes]),
            torch.tensor([label for _, label, _ in votes], dtype=torch.int64),
        )
        assert_same(box_vote(*crowd, threshold, soft), expected)


@devices
@pytest.mark.parametrize("soft", [False, True])
def test_order_of_equal_scores(soft, device):
    boxes = torch.tensor([[0.0, 0, 9, 9], [50, 50, 59, 59], [0, 0, 9, 8], [50, 50, 59, 58], [80, 80, 90, 90]])
    rescored = torch.tensor(0.5) * (1 - torch.tensor(0.9))
    scores, labels = torch.tensor([0.5, 0.5, 0.5, 0.5, rescored]), torch.tensor([5, 3, 5, 3, 1])
    _, new_scores, new_labels = box_vote(boxes.to(device), scores.to(device), labels.to(device), 0.6, soft)
    assert new_labels.tolist() == ([5, 3, 1, 5, 3] if soft else [5, 3, 1])
    assert new_scores.tolist() == [0.5, 0.5, *([rescored.item()] * (3 if soft else 1))]


def test_outputs_carry_no_gradient():
    boxes = oracles.random_boxes(5).requires_grad_()
    voted, scores, _ = box_vote(boxes, torch.ones(5), torch.ones(5, dtype=torch.int64), 0.5, True)
    assert not voted.requires_grad
    assert not scores.requires_grad


@devices
def test_many_boxes_of_one_class_equal_a_loop(device):
    boxes = oracles.random_boxes(1500, span=300)
    scores = torch.rand(1500, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(1500, dtype=torch.int64)
    overlaps = oracles.ious(boxes)
    remaining = torch.ones(1500, dtype=torch.bool)
    means = []
    for top in scores.argsort(descending=True).tolist():
        if remaining[top]:
            cluster = remaining & (overlaps[top] >= 0.6)
            remaining &= ~cluster
            means.append((boxes[cluster] * scores[cluster, None]).sum(0) / scores[cluster].sum())
    votes = box_vote(boxes.to(device), scores.to(device), labels.to(device), 0.6, False)
    torch.testing.assert_close(votes[0].cpu(), torch.stack(means), rtol=1e-5, atol=1e-3)


@devices
def test_no_box_one_box_and_boxes_that_are_not_finite(device):
    empty = torch.zeros(0, device=device)
    boxes, scores, labels = box_vote(torch.zeros(0, 4, device=device), empty, empty.long(), 0.5, True)
    assert (boxes.shape, scores.shape, labels.shape, labels.dtype) == ((0, 4), (0,), (0,), torch.int64)
    one = (torch.tensor([[1.0, 2, 3, 4]], device=device), torch.tensor([0.5], device=device))
    boxes, scores, labels = box_vote(*one, torch.tensor([3], device=device), 0.5, True)
    assert (boxes.tolist(), scores.tolist(), labels.tolist()) == ([[1, 2, 3, 4]], [0.5], [3])
    broken = torch.tensor([[float("nan"), 0, 1, 1], [0, 0, float("inf"), 1]], device=device).repeat(2, 1)
    _, scores, _ = box_vote(
        broken, torch.ones(4, device=device), torch.zeros(4, device=device).long(), 0.5, True
    )
    assert scores.tolist() == [1.0] * 4


@devices
def test_scores_of_zero_keep_the_first_box(device):
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]], device=device)
    votes = box_vote(boxes, torch.zeros(2, device=device), torch.zeros(2, device=device).long(), 0.5, False)
    assert votes[0].tolist() == [[0, 0, 9, 9]]


@devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype, device):
    boxes = oracles.random_boxes(60, span=2000, largest=800).to(dtype)  # areas above the range of float16
    scores = torch.rand(60, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(60) % 2
    expected = box_vote(boxes.float(), scores.float(), labels, 0.5, True)
    votes = box_vote(boxes.to(device), scores.to(device), labels.to(device), 0.5, True)
    torch.testing.assert_close([v.cpu() for v in votes], list(expected))
    assert votes[0].dtype == votes[1].dtype == torch.float32


@compiled_devices
def test_opcheck_compile_and_export(device):
    boxes = oracles.random_boxes(30).to(device)
    scores, labels = torch.linspace(1, 0.1, 30, device=device), torch.arange(30, device=device) % 3
    torch.library.opcheck(torch.ops.atss.box_vote.default, (boxes, scores, labels, 0.5, True, 0.05))
    torch.library.opcheck(
        torch.ops.atss.box_vote.default, (boxes[:0], scores[:0], labels[:0], 0.5, True, 0.05)
    )

    class Wrapper(torch.nn.Module):
        def forward(self, *inputs):
            return box_vote(*inputs, 0.5, True)

    expected = Wrapper()(boxes, scores, labels)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(Wrapper(), fullgraph=True, backend="aot_eager")(boxes, scores, labels)
    exported = torch.export.export(Wrapper(), (boxes, scores, labels)).module()(boxes, scores, labels)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
