import numpy as np
import pytest
from PIL import Image

from atss_core.apps.check.checks import Defect, check_images, quick_check
from atss_core.apps.check.image_grids import TILE_HEIGHT, TILE_WIDTH, draw_defects, draw_sample

SIZES = [(15, 1000), (1, 4000), (1000, 15), (4000, 1), (1, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_thin_images_fit_on_a_sheet(folder, size):
    folder.add_image([0, 0, size[1], size[0]], size=size, image=Image.new("RGB", size[::-1], "blue"))
    folder.add_image([3, 3, 20, 20], image=Image.new("RGB", (60, 40), "lime"))
    dataset = folder.open()
    defect = Defect("boxes", "all of them", images=(0, 1), rows=(0, 1))
    for sheet in (draw_sample(dataset), draw_defects(dataset, [defect])):
        assert sheet.width < 2 * TILE_WIDTH
        assert TILE_HEIGHT < sheet.height < 2 * TILE_HEIGHT
        colors = np.asarray(sheet).reshape(-1, 3)
        assert (colors == (0, 255, 0)).all(axis=1).sum() > 10_000  # the other keeps its size


@pytest.mark.parametrize("size", SIZES)
def test_thin_images_of_wrong_size_fit_on_a_sheet(folder, size):
    folder.add_image([0, 0, 9, 9], image=Image.new("RGB", size[::-1], "blue"))
    defects = check_images(folder.open())
    assert [defect.kind for defect in defects] == ["wrong sizes"]
    sheet = draw_defects(folder.open(), defects)
    assert sheet.width < 2 * TILE_WIDTH
    assert sheet.height < 2 * TILE_HEIGHT


def test_images_above_the_limit_are_a_card(folder):
    folder.add_image([3, 3, 20, 20], image=Image.new("RGB", (60, 40), "lime"))
    dataset = folder.open(max_pixels=2399)
    sheet = np.asarray(draw_defects(dataset, quick_check(dataset)))
    assert (sheet == (178, 34, 34)).all(axis=2).any()  # the words of the card
    assert not (sheet == (0, 255, 0)).all(axis=2).any()
