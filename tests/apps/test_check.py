"""The checks of a dataset, from its files and from its images, and the drawings of what they find."""

import numpy as np
import pytest
from PIL import Image

from atss_core.apps.check.checks import (
    Defect,
    ambiguous_orientations,
    check_images,
    quick_check,
    refuse_fatal,
    unmatched_objects,
    unused_ranges,
)
from atss_core.apps.check.drawings import TILE_HEIGHT, TILE_WIDTH, draw_defects, draw_sample
from atss_core.apps.check.statistics import best_anchor_iou, count_objects
from atss_core.cli.datasets import open_dataset
from atss_core.config import load_cfg
from tests.dataset_formats import CONTENT, write_coco, write_voc, write_yolo
from tests.golden import ROOT

CONFIG = ROOT / "configs" / "quick" / "atss_R_18_own_data.yaml"
BOX = [10, 5, 20, 8]
SIZES = [(15, 1000), (1, 4000), (1000, 15), (4000, 1), (1, 1)]


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_sound_data_of_any_format_has_no_defects(write, tmp_path):
    content = {
        "sub folder/dröm 1": CONTENT["a"],
        "deeper/猫": CONTENT["b"],
        "empty": [],
        "dots.in": CONTENT["d"],
    }
    for path in write(tmp_path / "my data", content=content, names=["große Katze", "dog"]):
        dataset = open_dataset(load_cfg(CONFIG), path)
        assert len(dataset) == 4
        assert not quick_check(dataset)
        assert not check_images(dataset)


@pytest.mark.parametrize("name", ["x" * 10_000 + ".png", "x" * 10_000 + "/a.png"])
def test_file_names_too_long_for_a_disk_are_missing(folder, name):
    folder.add_image(BOX)
    folder.tree["images"][0].update(file_name=name, unreadable=False)  # a field of the user's
    (defect,) = quick_check(folder.open())
    assert defect.message.startswith("1 of 1 images are not in")
    assert len(defect.message) < 500


def test_boxes_without_area_are_reported(folder):
    folder.add_image(BOX, [1, 1, 0, 5], [1, 1, 5, -2])
    (defect,) = quick_check(folder.open(training=True))
    assert defect.message.startswith("2 box(es) have a width or height of 0 or less and are ignored")
    assert "annotation(s) 101, 102 in 1.png" in defect.message
    assert defect.rows == (1, 2)


def test_boxes_that_reach_out_most_come_first(folder):
    for width in (52, 90, 70):
        folder.add_image([10, 5, width, 8])
    (defect,) = quick_check(folder.open())
    assert defect.kind == "boxes reaching out"
    assert (defect.images, defect.rows) == ((1, 2, 0), (1, 2, 0))


def test_unmatched_objects_are_rows_of_the_annotations(folder):
    folder.add_image(BOX)
    image_id = folder.add_image([1, 1, 0, 5], [70, 5, 9, 9], BOX, BOX)  # no area, outside, and twice the same
    folder.add_box(image_id, BOX, iscrowd=1)
    folder.add_box(image_id, BOX)
    dataset = folder.open()
    assert dataset.target_rows(1).tolist() == [3, 4, 6]
    (defect,) = unmatched_objects(load_cfg(CONFIG), dataset)
    assert (defect.kind, defect.images, defect.rows) == ("unmatched objects", (1,), (4, 6))
    assert defect.message.startswith("2 of 4 objects are unmatched")


def test_ignore_regions_count_apart(folder):
    image_id = folder.add_image(BOX)
    folder.add_box(image_id, [30, 20, 20, 15], iscrowd=0, ignore=1)
    folder.add_image(BOX, ignore=1)
    counts = count_objects(load_cfg(CONFIG), folder.open())
    assert (counts["objects"], counts["num_crowds"]) == ({"cat": 1}, 2)


def test_best_anchor_iou_is_that_of_boxes_with_one_centre():
    sizes, anchors = (
        np.array([[8.0, 8.0], [64.0, 16.0], [3.0, 200.0]]),
        np.array([[32.0, 32.0], [64.0, 64.0]]),
    )
    expected = [1 / 16, 32 * 16 / (64 * 16 + 32 * 32 - 32 * 16), 3 * 32 / (3 * 200 + 32 * 32 - 3 * 32)]
    np.testing.assert_allclose(best_anchor_iou(sizes, anchors), expected)


def test_ambiguous_orientation_is_found_in_a_sample_of_headers(folder):
    exif = Image.Exif()
    exif[0x0112] = 4
    for number in range(9):
        folder.add_image(BOX)
        if number in (0, 5, 8):
            Image.new("RGB", (60, 40), "lime").save(folder.images / f"{number + 1}.png", exif=exif)
    (folder.images / "2.png").write_bytes(b"hello")
    dataset = folder.open()
    (defect,) = ambiguous_orientations(dataset, most=100)
    assert defect.images == (0, 5, 8)
    assert defect.message.startswith("3 of 9 sampled images are turned or flipped")
    assert "1.png, 6.png, 9.png" in defect.message
    assert not defect.is_fatal
    assert ambiguous_orientations(dataset, most=2)[0].images == (0, 8)
    Image.new("RGB", (60, 40), "lime").save(folder.images / "9.png")
    assert ambiguous_orientations(dataset, most=1)[0].images == (0,)


def test_dark_images_are_named(folder):
    for number, largest in enumerate((15, 16, 255), start=1):
        folder.add_image(BOX, image=Image.new("RGB", (60, 40), (0, largest, 3)), name=f"{number}.png")
    (defect,) = check_images(folder.open())
    assert (defect.images, defect.is_fatal) == ((0,), False)
    assert defect.message.startswith("1 of 3 images are almost black; the first: ")
    assert "1.png has no value above 15 of 255" in defect.message


def add_grey(folder, name, largest):
    values = np.linspace(0, largest, 2400).astype(np.uint16).reshape(40, 60)
    values[0, 0] = 65535  # a hot pixel
    folder.add_image(BOX, image=Image.fromarray(values), name=name)


def test_grey_images_that_use_few_bits_are_named(folder):
    for number, largest in enumerate((500, 3000, 4095)):
        add_grey(folder, f"{number}.png", largest)
    folder.add_image(BOX)
    (defect,) = unused_ranges(folder.open())
    assert "4 sampled images, grey values of 16 bits use 12" in defect.message
    assert "INPUT.GREY_BITS 12" in defect.message
    assert not defect.is_fatal
    assert not unused_ranges(folder.open(grey_bits=12))
    assert folder.open(grey_bits=12).load_image(2).getpixel((59, 39)) == (255, 255, 255)
    add_grey(folder, "bright.png", 60000)
    assert not unused_ranges(folder.open())


def test_images_above_the_limit_are_known_from_their_sizes(folder):
    folder.add_image(BOX, size=(40, 60))
    folder.add_image(BOX, size=(40, 61))
    (folder.images / "2.png").unlink()  # its pixels are not needed
    dataset = folder.open(max_pixels=2400, skip_corrupt=True)
    fatal = [defect for defect in quick_check(dataset) if defect.is_fatal and "pixel" in defect.kind]
    assert [defect.images for defect in fatal] == [(1,)]
    assert check_images(dataset) == []
    refuse_fatal("little", fatal, skip_corrupt=True)
    with pytest.raises(ValueError, match=r"have more than 2400 pixels, the first 61x40: 2\.png; cut"):
        refuse_fatal("little", fatal, skip_corrupt=False)
    assert dataset[0].image is not None
    assert dataset[1].image is None


@pytest.mark.parametrize("size", SIZES)
def test_thin_images_fit_in_an_image_grid(folder, size):
    folder.add_image([0, 0, size[1], size[0]], size=size, image=Image.new("RGB", size[::-1], "blue"))
    folder.add_image([3, 3, 20, 20], image=Image.new("RGB", (60, 40), "lime"))
    dataset = folder.open()
    defect = Defect("boxes", "all of them", images=(0, 1), rows=(0, 1))
    for grid in (draw_sample(dataset), draw_defects(dataset, [defect])):
        assert grid.width < 2 * TILE_WIDTH
        assert TILE_HEIGHT < grid.height < 2 * TILE_HEIGHT
        colors = np.asarray(grid).reshape(-1, 3)
        assert (colors == (0, 255, 0)).all(axis=1).sum() > 10_000  # the other keeps its size


@pytest.mark.parametrize("size", SIZES)
def test_thin_images_of_wrong_size_fit_in_an_image_grid(folder, size):
    folder.add_image([0, 0, 9, 9], image=Image.new("RGB", size[::-1], "blue"))
    defects = check_images(folder.open())
    assert [defect.kind for defect in defects] == ["wrong sizes"]
    grid = draw_defects(folder.open(), defects)
    assert grid.width < 2 * TILE_WIDTH
    assert grid.height < 2 * TILE_HEIGHT


def test_images_above_the_limit_are_a_card(folder):
    folder.add_image([3, 3, 20, 20], image=Image.new("RGB", (60, 40), "lime"))
    dataset = folder.open(max_pixels=2399)
    grid = np.asarray(draw_defects(dataset, quick_check(dataset)))
    assert (grid == (178, 34, 34)).all(axis=2).any()  # the text of the card
    assert not (grid == (0, 255, 0)).all(axis=2).any()
