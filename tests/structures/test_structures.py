import pytest
import torch
from torchvision import ops

from atss_core.structures import BoxList, ImageList
from atss_core.structures import boxes as box_ops


def random_boxes(num_boxes, seed=0):
    corner, sides = torch.rand(2, num_boxes, 2, generator=torch.Generator().manual_seed(seed)) * 50
    return torch.cat([corner, corner + sides], dim=1)


def test_sides_count_both_borders():
    box = torch.tensor([[3.0, 4.0, 3.0, 5.0]])
    assert [side.item() for side in box_ops.widths_heights(box)] == [1, 2]
    assert box_ops.area(box).item() == 2
    assert box_ops.centers(box).tolist() == [[3.0, 4.5]]
    assert torch.equal(
        box_ops.around(torch.tensor([[3.0, 4.5]]), torch.tensor([1.0]), torch.tensor([2.0])), box
    )


def test_iou_equals_torchvision_after_moving_the_border():
    first, second = random_boxes(20), random_boxes(30, seed=1)
    expected = ops.box_iou(box_ops.to_exclusive(first), box_ops.to_exclusive(second))
    assert torch.allclose(box_ops.iou(first[:, None], second), expected)
    assert (expected > 0).any()


def test_iou_of_boxes_apart_is_zero():
    assert box_ops.iou(torch.tensor([0.0, 0, 9, 9]), torch.tensor([10.0, 0, 19, 9])) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_types_are_computed_in_float32(dtype):
    # In float16 the areas are infinite, as is the sum of far corners; bfloat16 has no 513.
    large, half, far = torch.tensor(
        [[0, 0, 512, 512], [0, 0, 256, 512], [49152, 49152, 57344, 57344]], dtype=dtype
    )
    assert [side.item() for side in box_ops.widths_heights(large)] == [513, 513]
    assert box_ops.area(large).item() == 513 * 513
    assert box_ops.iou(large, large).item() == 1
    assert box_ops.iou(large, half).item() == pytest.approx(257 / 513)
    assert box_ops.centers(far).tolist() == [53248, 53248]
    assert box_ops.to_exclusive(large).tolist() == [0, 0, 513, 513]
    assert box_ops.to_inclusive(large).tolist() == [0, 0, 511, 511]
    assert box_ops.to_xywh(large).tolist() == [0, 0, 513, 513]
    assert box_ops.from_xywh(large).tolist() == [0, 0, 511, 511]
    assert box_ops.around(large[2:], large[2], large[3]).tolist() == [256.5, 256.5, 767.5, 767.5]
    assert box_ops.clip(large, (334, 302)).tolist() == [0, 0, 301, 333]
    assert box_ops.flip_horizontal(half, 1000).tolist() == [743, 0, 999, 512]
    assert box_ops.distances_to_sides(torch.ones(2, dtype=dtype), large).tolist() == [1, 1, 511, 511]
    assert BoxList(large[None], (512, 512)).resize((333, 301)).boxes.tolist() == [[0, 0, 301, 333]]
    assert box_ops.area(large).dtype == (dtype if dtype == torch.float64 else torch.float32)


def test_xywh_round_trip():
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert box_ops.to_xywh(boxes).tolist() == [[1, 2, 3, 3]]
    assert torch.equal(box_ops.from_xywh(box_ops.to_xywh(boxes)), boxes)


def test_flip_and_clip():
    boxes = torch.tensor([[-5.0, 2.0, 3.0, 40.0]])
    assert box_ops.flip_horizontal(boxes, 10).tolist() == [[6, 2, 14, 40]]
    assert box_ops.clip(boxes, (20, 10)).tolist() == [[0, 2, 3, 19]]


def test_box_list_moves_its_fields_along():
    boxes = BoxList(random_boxes(3), (60, 120), labels=torch.tensor([1, 2, 3]), scores=torch.rand(3))
    resized = boxes.resize((30, 240))
    assert resized.image_size == (30, 240)
    assert torch.equal(resized.boxes, boxes.boxes * torch.tensor([2.0, 0.5, 2.0, 0.5]))
    assert resized[torch.tensor([False, True, True])].labels.tolist() == [2, 3]
    assert boxes[:1].scores.tolist() == boxes.scores[:1].tolist()
    assert torch.equal(boxes.flip_horizontal().flip_horizontal().boxes.round(), boxes.boxes.round())


def test_box_list_drops_empty_boxes():
    boxes = torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9], [9, 9, 4, 10]])
    assert BoxList(boxes, (10, 10), labels=torch.tensor([1, 2, 3])).drop_empty().labels.tolist() == [1]


def test_box_list_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"boxes must have shape \(G, 4\), got \(4,\)"):
        BoxList(torch.zeros(4), (1, 1))
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
        BoxList(torch.zeros(2, 4), (1, 1), labels=torch.zeros(3))


def test_image_list_pads_right_and_bottom():
    images = ImageList.from_tensors([torch.ones(3, 10, 40), torch.ones(3, 33, 20)], size_divisibility=32)
    assert images.tensors.shape == (2, 3, 64, 64)
    assert images.image_sizes == [(10, 40), (33, 20)]
    assert images.tensors[0].sum() == 3 * 10 * 40
    assert images.tensors[0, :, :10, :40].min() == 1
    assert ImageList.from_tensors([torch.ones(3, 10, 40)]).tensors.shape == (1, 3, 10, 40)


def test_image_list_refuses_wrong_images():
    with pytest.raises(ValueError, match="at least one image"):
        ImageList.from_tensors([])
    with pytest.raises(ValueError, match=r"must have shape \(3, h, w\), got \(1, 4, 4\)"):
        ImageList.from_tensors([torch.ones(1, 4, 4)])
