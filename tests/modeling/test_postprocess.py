import pytest
import torch

from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.box_coder import BoxCoder
from atss_core.modeling.head import HeadOutputs
from atss_core.modeling.postprocess import PostProcessor

GENERATOR = AnchorGenerator((32, 64), (8, 16))
GRIDS = [(8, 8), (4, 4)]


def outputs(cls_logit=-20.0, num_classes=3):
    return HeadOutputs(
        [torch.full((1, num_classes, *g), cls_logit) for g in GRIDS],
        [torch.zeros(1, 4, *g) for g in GRIDS],
        [torch.zeros(1, 1, *g) for g in GRIDS],
    )


def run(predicted, **options):
    return PostProcessor(GENERATOR, BoxCoder(), **options)(predicted, [(60, 62)])[0]


def test_no_detections_are_an_empty_list():
    detections = run(outputs())
    assert len(detections) == 0
    assert detections.boxes.shape == (0, 4)
    assert detections.image_size == (60, 62)


def test_score_is_the_root_of_class_and_centerness_and_boxes_are_clipped():
    predicted = outputs()
    predicted.cls_logits[0][0, 2, 0, 1] = 1.0
    predicted.centerness[0][0, 0, 0, 1] = -2.0
    detections = run(predicted)
    assert detections.labels.tolist() == [3]
    assert detections.scores.item() == pytest.approx(
        (torch.sigmoid(torch.tensor(1.0)) * torch.sigmoid(torch.tensor(-2.0))).sqrt().item()
    )
    # The anchor of 32 px around (12, 4), clipped at the border.
    assert detections.boxes.tolist() == [[0.0, 0.0, 27.5, 19.5]]


def test_threshold_is_for_the_class_probability_alone():
    predicted = outputs()
    predicted.cls_logits[0][0, 0, 4, 4] = torch.logit(torch.tensor(0.051))
    predicted.cls_logits[0][0, 0, 0, 0] = torch.logit(torch.tensor(0.049))
    for level in predicted.centerness:
        level[:] = -5.0
    detections = run(predicted)
    assert len(detections) == 1
    assert detections.scores.item() < 0.05


def test_nms_is_within_a_class():
    predicted = outputs()
    predicted.cls_logits[0][0, 0, 4, 4] = 2.0
    predicted.cls_logits[0][0, 1, 4, 4] = 1.0
    predicted.cls_logits[0][0, 0, 4, 5] = 1.5  # IoU with its neighbour: 24 of 40 columns, exactly 0.6
    assert run(predicted).labels.tolist() == [1, 1, 2]
    assert run(predicted, nms_threshold=0.59).labels.tolist() == [1, 2]


def test_limits_before_and_after_nms():
    predicted = outputs()
    logits = torch.linspace(1, 2, 64).view(8, 8)
    predicted.cls_logits[0][0, 0] = logits
    predicted.cls_logits[1][0, 0] = 3.0
    assert len(run(predicted, nms_threshold=1.0)) == 64 + 16
    assert len(run(predicted, nms_threshold=1.0, max_detections=0)) == 64 + 16
    assert len(run(predicted, nms_threshold=1.0, pre_nms_top_n=5)) == 5 + 5
    best = run(predicted, nms_threshold=1.0, max_detections=20)
    assert len(best) == 20
    assert best.scores.tolist() == sorted(best.scores.tolist(), reverse=True)


def test_ties_with_the_last_detection_stay():
    predicted = outputs()
    predicted.cls_logits[1][0, 0] = 3.0
    assert len(run(predicted, nms_threshold=1.0, max_detections=10)) == 16


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_threshold_of_zero_or_less_disables_nms(threshold):
    predicted = outputs()
    predicted.cls_logits[0][0, 0] = 3.0
    assert len(run(predicted, nms_threshold=0.6)) < 64
    assert len(run(predicted, nms_threshold=threshold)) == 64


def test_images_of_a_batch_do_not_mix():
    predicted = [outputs(), outputs(), outputs()]
    predicted[0].cls_logits[0][0, 0, 4, 4] = 2.0
    predicted[2].cls_logits[0][0, 1, 2:6, 2:6] = 1.0
    sizes = [(60, 62), (64, 64), (40, 50)]
    process = PostProcessor(GENERATOR, BoxCoder())
    batch = HeadOutputs(
        *(
            [torch.cat(level) for level in zip(*levels, strict=True)]
            for levels in zip(
                *((p.cls_logits, p.encoded_boxes, p.centerness) for p in predicted), strict=True
            )
        )
    )
    together = process(batch, sizes)
    assert [len(one) for one in together][:2] == [1, 0]
    for one, alone, size in zip(together, predicted, sizes, strict=True):
        (expected,) = process(alone, [size])
        assert one.image_size == size
        assert torch.equal(one.boxes, expected.boxes)
        assert torch.equal(one.scores, expected.scores)
        assert torch.equal(one.labels, expected.labels)


def without_centerness(predicted):
    return HeadOutputs(predicted.cls_logits, predicted.encoded_boxes, None)


def test_score_without_centerness_is_the_class_probability():
    predicted = outputs()
    predicted.cls_logits[0][0, 2, 0, 1] = 1.0
    predicted.cls_logits[1][0, 0, 2, 2] = -1.0
    detections = run(without_centerness(predicted))
    assert detections.labels.tolist() == [3, 1]
    assert torch.equal(detections.scores, torch.sigmoid(torch.tensor([1.0, -1.0])))


def test_without_centerness_the_most_probable_enter_the_nms():
    predicted = without_centerness(outputs())
    logits = torch.linspace(1, 2, 64).view(8, 8)
    predicted.cls_logits[0][0, 0] = logits
    predicted.cls_logits[0][0, 1] = -10.0
    detections = run(predicted, nms_threshold=1.0, pre_nms_top_n=5)
    assert torch.equal(detections.scores, logits.sigmoid().flatten().flip(0)[:5])
    assert len(run(predicted, nms_threshold=1.0, score_threshold=0.99)) == 0


def test_candidates_without_centerness_mark_padding():
    predicted = without_centerness(outputs())
    predicted.cls_logits[1][0, 1, 0, 0] = 0.0
    process = PostProcessor(GENERATOR, BoxCoder())
    _, scores, labels = process.candidates(predicted, [(60, 62)])
    assert scores[scores >= 0].tolist() == [0.5]
    assert labels[scores >= 0].tolist() == [2]
    assert (scores[scores < 0] == -1).all()
