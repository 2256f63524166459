import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from atss_core.data.datasets.shapes import CLASS_NAMES, draw_image, write_shapes
from atss_core.utils import files
from tests.conftest import small_disk

SMALL = {"num_train": 6, "num_val": 3, "progress": False}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", **SMALL)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_images_match_the_annotations(shapes):
    for split, count in (("train", 6), ("val", 3)):
        tree = json.loads((shapes / "annotations" / f"{split}.json").read_text())
        assert [category["name"] for category in tree["categories"]] == list(CLASS_NAMES)
        assert len(tree["images"]) == count
        assert {a["image_id"] for a in tree["annotations"]} == {image["id"] for image in tree["images"]}
        for entry in tree["images"]:
            with Image.open(shapes / split / entry["file_name"]) as image:
                assert image.size == (entry["width"], entry["height"])


def test_boxes_lie_in_the_image_and_areas_in_the_boxes():
    for seed in range(20):
        _, objects = draw_image(128, 160, np.random.default_rng(seed))
        assert 1 <= len(objects) <= 6
        for entry in objects:
            x, y, width, height = entry["bbox"]
            assert min(x, y) >= 0
            assert min(width, height) >= 1
            assert x + width <= 160
            assert y + height <= 128
            assert 0 < entry["area"] <= width * height


def test_boxes_are_tight_around_the_drawn_objects():
    # With one object, the pixels that differ from the background, up to noise and blur, are the object.
    for seed in range(200):
        image, objects = draw_image(144, 144, np.random.default_rng(seed))
        if len(objects) > 1:
            continue
        x, y, width, height = objects[0]["bbox"]
        outside = np.ones((144, 144), dtype=bool)
        outside[max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2] = False
        background = np.median(image[outside].astype(float), axis=0)
        distance = np.linalg.norm(image - background, axis=2)
        assert np.quantile(distance[outside], 0.99) < 75
        rows, columns = np.nonzero(distance[y : y + height, x : x + width] > 75)
        reached = [rows.min(), columns.min(), height - 1 - rows.max(), width - 1 - columns.max()]
        assert max(reached) <= 4


def test_same_seed_gives_the_same_bytes(shapes, tmp_path):
    assert contents(write_shapes(tmp_path / "again", **SMALL)) == contents(shapes)
    assert contents(write_shapes(tmp_path / "other", seed=1, **SMALL)) != contents(shapes)


def test_training_and_validation_images_differ(shapes):
    assert (shapes / "train" / "000000.jpg").read_bytes() != (shapes / "val" / "000000.jpg").read_bytes()


def test_complete_folder_is_kept_and_replaced_for_other_parameters(tmp_path):
    folder = write_shapes(tmp_path / "shapes", **SMALL)
    marker = folder / "marker"
    marker.touch()
    write_shapes(folder, **SMALL)
    assert marker.exists()
    write_shapes(folder, **{**SMALL, "num_val": 4})
    assert not marker.exists()
    assert len(list((folder / "val").iterdir())) == 4


def test_folder_with_missing_images_is_written_again(tmp_path):
    folder = write_shapes(tmp_path / "shapes", **SMALL)
    before = contents(folder)
    (folder / "train" / "000002.jpg").unlink()
    assert contents(write_shapes(folder, **SMALL)) == before


def test_other_folder_is_never_replaced(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="is not a shapes dataset"):
        write_shapes(tmp_path, **SMALL)
    assert (tmp_path / "precious").exists()


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("atss_core.data.datasets.shapes._move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_error_names_the_folder(tmp_path):
    with (
        small_disk(),
        pytest.raises(OSError, match=r"cannot write .*shapes \(File too large\)"),
    ):
        write_shapes(tmp_path / "shapes", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"num_train": 0}, {"num_val": -1}, {"image_sizes": [(8, 100)]}])
def test_invalid_numbers_are_errors(tmp_path, wrong):
    with pytest.raises(ValueError, match="must be"):
        write_shapes(tmp_path / "shapes", **{**SMALL, **wrong})


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".shapes.{files._host()}.{dead.pid}.0123abcd.tmp" / "train").mkdir(parents=True)
    write_shapes(tmp_path / "shapes", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
