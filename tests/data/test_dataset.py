import json

import numpy as np
import pytest
import torch
from PIL import Image

from atss_core.data import UnreadableImageError, collate
from atss_core.data.samplers import SampleKey

BOX = [10, 5, 20, 8]


def test_boxes_become_inclusive_labels_follow_category_ids(folder):
    folder.tree["categories"] = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]
    image_id = folder.add_image()
    folder.add_box(image_id, BOX, category_id=9)
    folder.add_box(image_id, [0, 0, 5, 5], category_id=3)
    folder.add_box(image_id, [1, 1, 9, 9], category_id=3, iscrowd=1)
    dataset = folder.open()
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.category_ids == [3, 9]
    assert dataset.num_classes == 2
    target = dataset.target(0)
    assert target.boxes.tolist() == [[10, 5, 29, 12], [0, 0, 4, 4]]
    assert target.labels.tolist() == [2, 1]
    assert target.image_size == (40, 60)


def test_boxes_are_clipped_and_those_outside_dropped(folder):
    folder.add_image([50, 30, 40, 40], [70, 50, 5, 5], [-10, -10, 20, 20])
    assert folder.open().target(0).boxes.tolist() == [[50, 30, 59, 39], [0, 0, 9, 9]]


def test_each_image_gets_its_own_annotations_whatever_their_order(folder):
    first, second = folder.add_image(), folder.add_image()
    folder.add_box(second, [0, 0, 10, 10])
    folder.add_box(first, [0, 0, 20, 20])
    folder.add_box(second, [0, 0, 30, 30])
    folder.tree["images"].reverse()
    dataset = folder.open()
    assert dataset.image_ids == [first, second]
    assert dataset.target(0).boxes[:, 2].tolist() == [19]
    assert dataset.target(1).boxes[:, 2].tolist() == [9, 29]


def test_training_drops_images_without_a_usable_object(folder):
    kept = folder.add_image(BOX, [3, 3, 0.5, 9])
    folder.add_image()
    folder.add_image([3, 3, 1, 9], [3, 3, 9, 0.5])
    folder.add_image(BOX, iscrowd=1)
    folder.add_image([100, 100, 20, 20])
    assert folder.open(training=True).image_ids == [kept]
    assert len(folder.open(training=False)) == 5


def test_training_without_any_usable_object_is_an_error(folder):
    folder.add_image(BOX, iscrowd=1)
    with pytest.raises(ValueError, match=r"annotations\.json: no image has an object"):
        folder.open(training=True)


def test_file_without_annotations_can_be_evaluated(folder):
    folder.add_image()
    del folder.tree["annotations"]
    dataset = folder.open()
    assert not dataset.has_annotations
    assert len(dataset[0].target) == 0
    assert dataset[0].target.labels.dtype == torch.int64


def test_aspect_ratio_is_height_by_width(folder):
    folder.add_image(size=(30, 60))
    dataset = folder.open()
    assert dataset.aspect_ratios.tolist() == [0.5]
    assert dataset.image_info(0)["height"] == 30
    assert dataset.image_path(0) == folder.images / "1.png"


# Faulty annotation files


def test_missing_annotation_file(folder):
    with pytest.raises(
        FileNotFoundError, match=r"little needs .*annotations\.json.*DATASETS\.DATA_DIR.*link"
    ):
        folder.reopen()


def test_missing_folder_of_images(folder):
    folder.add_image()
    (folder.images / "1.png").unlink()
    folder.images.rmdir()
    with pytest.raises(FileNotFoundError, match=r"little needs the folder .*images.*annotations\.json"):
        folder.open()


def test_malformed_json(folder):
    folder.json.write_text('{"images": [],\n"categories": [}')
    with pytest.raises(ValueError, match=r"annotations\.json is not valid JSON: .* in line 2, column 16"):
        folder.reopen()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "must hold a COCO dictionary, got list"),
        ({"categories": [{"id": 1, "name": "a"}]}, 'expected a list "images"'),
        ({"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1}]}, 'expected a list "categories"'),
        ({"images": [3], "categories": [{"id": 1, "name": "a"}]}, 'every entry of "images"'),
    ],
)
def test_json_that_is_not_coco(folder, tree, message):
    folder.json.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=rf"annotations\.json.*{message}"):
        folder.reopen()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "1"}, "image 1 needs a whole number as \"id\", got '1'"),
        ({"height": None}, 'image 1 needs a whole number as "height", got None'),
        ({"width": 0}, "image 1 must have at least 1x1 pixels, got 0x40"),
        ({"file_name": 5}, 'image 1 needs a "file_name", got 5'),
        ({"file_name": ""}, "image 1 needs a \"file_name\", got ''"),
        ({"file_name": "a\0.png"}, r"image 1 needs a \"file_name\", got 'a\\x00.png'"),
        ({"id": 2}, "every image id must be unique, but 2 repeat"),
    ],
)
def test_bad_image_entry(folder, change, message):
    folder.add_image()
    folder.add_image()
    folder.tree["images"][0].update(change)
    with pytest.raises(ValueError, match=rf"annotations\.json: .*{message}"):
        folder.open()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 33}, "annotation 101 has image_id 33, which is not in the file"),
        ({"category_id": 44}, "annotation 101 has category_id 44, which is not in the file"),
        ({"category_id": "cat"}, "annotation 101 needs a whole number as \"category_id\", got 'cat'"),
        ({"bbox": [1, 2, 3]}, r"annotation 101 must have 4 finite numbers .* got \[1, 2, 3\]"),
        ({"bbox": [1, 2, "3", 4]}, "annotation 101 must have 4 finite numbers"),
        ({"bbox": None}, "annotation 101 must have 4 finite numbers .* got None"),
        ({"bbox": [1, float("nan"), 3, 4]}, "annotation 101 must have 4 finite numbers .* nan"),
        ({"bbox": [1, 2, float("inf"), 4]}, "annotation 101 must have 4 finite numbers .* inf"),
        ({"bbox": [1, 2, 10**30, 4]}, "annotation 101 must have 4 finite numbers .* got .*000"),
        ({"bbox": [1, 2, 1e300, 4]}, r"annotation 101 must have 4 finite numbers .* 1e\+300"),
        ({"bbox": [True, 2, None, 4]}, "annotation 101 must have 4 finite numbers .* None"),
        (
            {"area": "80"},
            "annotation 101 must have a number from 0 to 1e\\+10 as \"area\", got '80'; correct",
        ),
        ({"area": [80]}, r'annotation 101 must have .* as "area", got \[80\]; .* leave it out'),
        ({"area": True}, 'annotation 101 must have .* as "area", got True'),
        ({"area": -1}, 'annotation 101 must have .* as "area", got -1;'),
        ({"area": float("nan")}, 'annotation 101 must have .* as "area", got nan'),
        ({"area": float("inf")}, 'annotation 101 must have .* as "area", got inf'),
        ({"area": 10**400}, 'annotation 101 must have .* as "area", got 1000'),
        ({"iscrowd": "1"}, "annotation 101 must have 0 or 1 as \"iscrowd\", got '1'"),
        ({"iscrowd": [1]}, r'annotation 101 must have 0 or 1 as "iscrowd", got \[1\]'),
        ({"iscrowd": 2}, 'annotation 101 must have 0 or 1 as "iscrowd", got 2'),
        ({"ignore": "yes"}, "annotation 101 must have 0 or 1 as \"ignore\", got 'yes'"),
    ],
)
def test_bad_annotation(folder, change, message):
    folder.add_image(BOX, BOX, BOX)
    folder.tree["annotations"][1].update(change)
    with pytest.raises(ValueError, match=rf"annotations\.json: .*{message}"):
        folder.open()


def test_nested_boxes_are_refused(folder):
    folder.add_image([[1, 2], [9, 8]], [[3, 4], [9, 8]])  # all of them: together they look like numbers
    with pytest.raises(ValueError, match=r"annotation 100 must have 4 finite .* got \[\[1, 2\], \[9, 8\]\]"):
        folder.open()


def test_area_and_crowd_are_completed_for_evaluation(folder):
    image_id = folder.add_image()
    changes = (
        {},
        {"area": None, "iscrowd": None, "ignore": None},
        {"area": 7.5, "iscrowd": 0, "ignore": 1},
        {"area": 0, "iscrowd": False, "ignore": False},
        {"iscrowd": True, "ignore": 0},
    )
    for number, change in enumerate(changes):
        folder.add_box(image_id, [number, 5, 20, 8], **change)
    dataset = folder.open()
    annotations = dataset.coco_dict["annotations"]
    assert [a["area"] for a in annotations] == [160, 160, 7.5, 0, 160]
    assert [a["iscrowd"] for a in annotations] == [0, 0, 1, 0, 1]
    assert dataset.target(0).boxes[:, 0].tolist() == [0, 1, 3]


def test_ignore_regions_are_not_learned(folder):
    kept = folder.add_image(BOX)
    folder.add_box(kept, [30, 20, 20, 15], iscrowd=0, ignore=1)
    folder.add_image(BOX, ignore=1)
    dataset = folder.open(training=True)
    assert dataset.image_ids == [kept]
    assert dataset.target(0).boxes.tolist() == [[10, 5, 29, 12]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "JSON nested too deeply"),
        ('{"images": ' + '{"a":' * 100_000, "JSON nested too deeply"),
        ('{"images": [{"id": ' + "1" * 5000 + "}]}", "Exceeds the limit"),
        ('{"images": [], "images": []}', "expected each key of an object once, got 'images' again"),
        ('{"annotations": [{"bbox": [0, 0, 1, 1], "id": 1, "bbox": []}]}', "got 'bbox' again"),
        ('{"annotations": {"1": {}}, "images": [{}], "categories": [{}]}', '"annotations" must be a list'),
    ],
)
def test_hostile_json_gives_a_short_error(folder, content, message):
    folder.json.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        folder.reopen()
    assert str(error.value).startswith(str(folder.json))
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("images", {"id": ["x" * 10_000]}),
        ("images", {"file_name": [0] * 10_000}),
        ("images", {"width": 10**4000}),
        ("categories", {"name": ["x" * 10_000]}),
        ("annotations", {"bbox": [0] * 10_000}),
        ("annotations", {"area": "x" * 10_000}),
        ("annotations", {"ignore": "x" * 10_000}),
        ("annotations", {"image_id": "x" * 10_000}),
    ],
)
def test_values_in_errors_are_shortened(folder, section, change):
    folder.add_image(BOX)
    folder.tree[section][0].update(change)
    with pytest.raises(ValueError, match=r"annotations\.json: ") as error:
        folder.open()
    assert len(str(error.value)) < 500


def test_long_names_in_errors_are_shortened(folder):
    folder.add_image(BOX)
    folder.tree["categories"] = [{"id": i, "name": "x" * 10_000} for i in (7, 8)]
    with pytest.raises(ValueError, match=r"needs a name of its own, but 'xxx.*\.\.\..*x' repeat") as error:
        folder.open()
    assert len(str(error.value)) < 500


def test_annotation_without_id_is_named_by_its_number(folder):
    folder.add_image(BOX, BOX)
    del folder.tree["annotations"][1]["id"]
    with pytest.raises(ValueError, match=r'annotation no\. 2 needs a whole number as "id", got none'):
        folder.open()


def test_boxes_without_area_are_dropped(folder):
    folder.add_image(BOX, [1, 1, 0, 5], [1, 1, 5, -2])
    assert len(folder.open(training=True).target(0)) == 1


def test_empty_images_stay_as_background_on_demand(folder):
    with_object = folder.add_image(BOX)
    empty = folder.add_image()
    folder.add_image(BOX, iscrowd=1)
    folder.add_image([3, 3, 0, 9])
    dataset = folder.open(training=True, filter_empty=False)
    assert dataset.image_ids == [with_object, empty]
    assert len(dataset.target(1)) == 0
    assert dataset[1].target.labels.shape == (0,)


# Images


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (5, 7)])
def test_tiny_images_pass_the_whole_transform(folder, size):
    folder.add_image([0, 0, size[1], size[0]], size=size)
    sample = folder.open()[0]
    assert min(sample.image.shape) >= 1
    assert sample.target.image_size == tuple(sample.image.shape[1:])
    assert sample.image.isfinite().all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(folder, mode):
    original = Image.new("RGB", (60, 40), (200, 200, 200)).convert(mode)
    folder.add_image(BOX, image=original, name="a.tif" if mode == "CMYK" else "a.png")
    image = folder.open().load_image(0)
    assert image.mode == "RGB"
    if mode != "1":
        assert abs(np.asarray(image).mean() - 200) < 5


def test_16_bit_grey_is_scaled_not_clipped(folder):
    ramp = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    folder.add_image(BOX, image=Image.fromarray(ramp))
    pixels = np.asarray(folder.open().load_image(0))[..., 0]
    assert np.abs(pixels - ramp / 257.0).max() <= 1


def upside_down(size):
    """Return an image with a white left half in upright pixels, stored upside down."""
    upright = np.zeros((*size, 3), dtype=np.uint8)
    upright[:, : size[1] // 2] = 255
    return Image.fromarray(upright).rotate(180)


@pytest.mark.parametrize(("orientation", "size"), [(3, (40, 60)), (2, (40, 60)), (3, (40, 40))])
def test_image_of_either_size_is_turned_upright(folder, orientation, size):
    folder.add_image(BOX, size=size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upside_down(size).save(folder.images / "1.png", exif=exif)
    pixels = np.asarray(folder.open().load_image(0))
    assert pixels[:, : size[1] // 2].min() == 255
    assert pixels[:, size[1] // 2 :].max() == 0


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_turned_image_keeps_its_grey_bits(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.full((40, 40), 4095, dtype=np.uint16)
    folder.add_image(BOX, size=(40, 40))
    Image.fromarray(values).save(folder.images / "1.png", exif=exif)
    assert folder.open().load_image(0).info["grey bits"] == 16


def rotated_jpeg():
    """Stored 60x40 (width x height), to be shown as 40x60, with a white left half."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30] = 255
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6  # orientation: turn clockwise
    return image


@pytest.mark.parametrize(("size", "white_corner"), [((40, 60), (39, 0)), ((60, 40), (0, 39))])
def test_exif_orientation_that_fits_the_annotations_is_applied(folder, size, white_corner):
    original = rotated_jpeg()
    folder.add_image(BOX, image=original, size=size, name="a.jpg")
    original.save(folder.images / "a.jpg", exif=original.getexif(), quality=95)
    image = np.asarray(folder.open().load_image(0))
    assert image.shape[:2] == size
    assert image[white_corner].mean() > 200
    assert image[-1, -1].mean() < 50


def test_size_different_from_the_annotations_is_an_error_even_when_skipping(folder):
    folder.add_image(BOX, size=(40, 60))
    folder.tree["images"][0].update(width=61)
    with pytest.raises(ValueError, match=r"1\.png is 60x40 pixels .* image 1 are for 61x40"):
        folder.open(skip_corrupt=True)[0]


def break_image(folder, image_id):
    path = folder.images / f"{image_id}.png"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("damage", ["truncated", "missing", "text"])
def test_unreadable_image_is_named(folder, damage):
    folder.add_image(BOX, BOX)
    path = folder.images / "1.png"
    {"truncated": lambda: break_image(folder, 1), "missing": path.unlink}.get(
        damage, lambda: path.write_text("hello")
    )()
    message = r"1\.png.*image id 1, annotation ids 100, 101.*DATALOADER\.SKIP_CORRUPT True"
    with pytest.raises(UnreadableImageError, match=message):
        folder.open()[0]


def test_training_replaces_a_corrupt_image_by_the_next(folder):
    for _ in range(3):
        folder.add_image(BOX)
    break_image(folder, 3)
    dataset = folder.open(training=True, skip_corrupt=True)
    sample = dataset[SampleKey(2, seed=5)]
    assert sample.image_id == 1
    assert torch.equal(sample.image, dataset[SampleKey(0, seed=5)].image)
    assert len(sample.skipped) == 1
    assert "3.png" in sample.skipped[0]


def test_training_fails_when_no_image_is_readable(folder):
    for image_id in (folder.add_image(BOX), folder.add_image(BOX)):
        break_image(folder, image_id)
    with pytest.raises(ValueError, match=r"2 images of little in a row cannot be read"):
        folder.open(training=True, skip_corrupt=True)[0]


def test_evaluation_skips_corrupt_images_and_counts_them(folder):
    for _ in range(3):
        folder.add_image(BOX)
    break_image(folder, 2)
    dataset = folder.open(skip_corrupt=True)
    batch = collate([dataset[i] for i in range(3)], size_divisibility=32)
    assert batch.image_ids == [1, 3]
    assert len(batch.targets) == len(batch.images) == len(batch) == 2
    assert len(batch.skipped) == 1
    assert "2.png" in batch.skipped[0]
    nothing = collate([dataset[1]], size_divisibility=32).to("cpu")
    assert len(nothing) == len(nothing.images) == 0
    assert len(nothing.skipped) == 1
