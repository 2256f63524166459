import json
import threading

import numpy as np
import pytest
import torch
from atss_core.apps.check.charts import plot_objects
from PIL import Image, ImageFont

from atss_core.data.images import SUFFIXES, read_image
from atss_core.structures import BoxList
from atss_core.visualization.boxes import (
    Rectangle,
    _contrast,
    _fit,
    _place_tag,
    class_color,
    draw_boxes,
    image_grid,
    readable_scale,
    save_image,
)
from atss_core.visualization.charts import plot_curves, plot_runs, read_metrics
from tests.conftest import small_disk

GRAY = (128, 128, 128)
NAMES = ["cat", "dog", "a rather long class name"]


def blank_image(width=200, height=100):
    return Image.new("RGB", (width, height), GRAY)


def box_list(boxes, labels, scores=None, size=(100, 200)):
    return BoxList(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        size,
        torch.tensor(labels, dtype=torch.int64),
        None if scores is None else torch.tensor(scores),
    )


def changed(image, background=GRAY):
    return (np.asarray(image) != np.array(background)).any(axis=-1)


@pytest.mark.parametrize("scores", [None, [0.5]])
def test_box_is_drawn_on_its_pixels(scores):
    image = blank_image()
    drawn = np.asarray(draw_boxes(image, box_list([[40, 30, 150, 80]], [2], scores), NAMES))
    color = class_color(2)
    assert (drawn[80, 40:151] == color).all()
    assert (drawn[30:81, 40] == color).all()
    assert (drawn[30:81, 150] == color).all()
    outside = changed(drawn)
    outside[:81, 40:151] = False  # the box, and above it the tag
    assert not outside.any()
    assert (drawn[40:75, 50:140] == GRAY).all()
    assert not changed(image).any(), "the image itself must stay as it is"


def test_tag_has_name_and_score_above_the_box():
    boxes = [[40, 50, 150, 90]]
    without = changed(draw_boxes(blank_image(), box_list(boxes, [1]), NAMES))
    with_score = changed(draw_boxes(blank_image(), box_list(boxes, [1], [0.87]), NAMES))
    assert without[:50].any()
    assert with_score[:50].any(axis=0).sum() > without[:50].any(axis=0).sum()
    tag = np.asarray(draw_boxes(blank_image(), box_list(boxes, [1]), NAMES), dtype=float)[:50]
    # Smoothed text of this size may not reach the full colour.
    assert np.abs(tag - _contrast(class_color(1))).max(axis=-1).min() < 60


def test_boxes_of_the_network_input_are_resized_to_the_image():
    small = box_list([[10, 15, 40, 40]], [1], size=(50, 50))
    large = box_list([[40, 30, 160, 80]], [1])
    assert draw_boxes(blank_image(), small, NAMES) == draw_boxes(blank_image(), large, NAMES)


def test_scale_enlarges_the_image_before_drawing():
    drawn = draw_boxes(blank_image(), box_list([[40, 30, 150, 80]], [1]), NAMES, scale=3)
    assert drawn.size == (600, 300)
    assert (np.asarray(drawn)[90:240, 120] == class_color(1)).all()
    # A line drawn before would be three pixels wide or blurred.
    assert (np.asarray(drawn)[100:240, 122:450] == GRAY).all()


def test_threshold_leaves_out_low_scores():
    both = box_list([[5, 60, 50, 90], [100, 60, 150, 90]], [1, 2], [0.3, 0.7])
    only = box_list([[100, 60, 150, 90]], [2], [0.7])
    assert draw_boxes(blank_image(), both, NAMES, 0.5) == draw_boxes(blank_image(), only, NAMES)
    assert draw_boxes(blank_image(), both, NAMES, 0.3) != draw_boxes(blank_image(), only, NAMES)


def test_best_score_is_on_top():
    stacked = box_list([[40, 30, 150, 80]] * 2, [1, 2], [0.9, 0.6])
    assert draw_boxes(blank_image(), stacked, NAMES).getpixel((40, 80)) == class_color(1)


def test_no_detections_leave_the_image():
    assert draw_boxes(blank_image(), box_list([], [], []), NAMES) == blank_image()


@pytest.mark.parametrize("scale", [1, 2.5])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
def test_tiny_images(size, scale):
    width, height = size
    result = box_list([[0, 0, width - 1, height - 1]], [3], [0.5], size=(height, width))
    drawn = draw_boxes(blank_image(width, height), result, NAMES, scale=scale)
    assert drawn.size == (round(width * scale), round(height * scale))
    assert changed(drawn).any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_image_modes(mode):
    drawn = draw_boxes(blank_image().convert(mode), box_list([[40, 30, 150, 80]], [1]), NAMES)
    assert drawn.mode == "RGB"
    assert drawn.getpixel((40, 80)) == class_color(1)


def test_boxes_outside_and_upside_down_are_drawn_at_the_border():
    result = box_list([[-50, -50, 500, 500], [90, 60, 80, 50]], [1, 2])
    drawn = draw_boxes(blank_image(), result, NAMES)
    assert drawn.getpixel((0, 99)) == drawn.getpixel((199, 99)) == class_color(1)


@pytest.mark.parametrize("seed", range(3))
def test_tags_stay_inside_and_avoid_each_other(seed):
    generator = torch.Generator().manual_seed(seed)
    font = ImageFont.load_default(12)
    taken = []
    for x, y in torch.rand(8, 2, generator=generator).tolist():
        left, top = int(x * 300), int(y * 200)
        box = Rectangle(left, top, min(left + 60, 299), min(top + 60, 199))
        tag = _place_tag(box, "dog 0.50", font, (300, 200), taken)
        assert 0 <= tag.left < tag.right <= 299
        assert 0 <= tag.top < tag.bottom <= 199
    assert len(taken) == 8
    first = _place_tag(Rectangle(99, 99, 180, 160), "dog", font, (300, 200), [])
    second = _place_tag(Rectangle(99, 99, 180, 160), "dog", font, (300, 200), [first])
    assert first.bottom == 98, "above the box"
    assert not second.overlaps(Rectangle(99, 99 - 20, 130, 98))


def test_rectangles_that_share_one_pixel_overlap():
    square = Rectangle(10, 10, 20, 20)
    assert square.overlaps(Rectangle(20, 20, 30, 30))
    assert square.overlaps(Rectangle(12, 12, 13, 13))
    for apart in ((21, 10, 30, 20), (0, 10, 9, 20), (10, 21, 20, 30), (10, 0, 20, 9)):
        assert not square.overlaps(Rectangle(*apart))


def test_text_contrasts_with_every_color():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    for label in range(1, 81):
        light, dark = sorted((luminance(class_color(label)), luminance(_contrast(class_color(label)))))[::-1]
        assert (light + 0.05) / (dark + 0.05) > 3, f"label {label}"  # WCAG 2.1, large text


def test_colors_are_distinct():
    colors = np.array([class_color(label) for label in range(1, 81)], dtype=float)
    assert len(np.unique(colors, axis=0)) == 80
    first = colors[:10]
    distances = np.linalg.norm(first[:, None] - first, axis=-1) + 1000 * np.eye(10)
    assert distances.min() > 60
    assert class_color(7) == class_color(7)


@pytest.mark.parametrize("label", [0, 4, -1])
def test_labels_without_a_name_are_refused(label):
    with pytest.raises(ValueError, match=rf"labels in 1\.\.3, got {label}"):
        draw_boxes(blank_image(), box_list([[0, 0, 9, 9]], [label]), NAMES)


def test_boxes_without_labels_are_refused():
    with pytest.raises(ValueError, match="boxes with labels"):
        draw_boxes(blank_image(), BoxList(torch.zeros(1, 4), (100, 200)), NAMES)


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        *(((128, 128), 3), ((192, 200), 2), ((480, 640), 1), ((384, 500), 1), ((1, 1), 384)),
        *(((1, 4000), 1), ((15, 1000), 2), ((1000, 15), 2), ((1, 20), 102)),  # at most 2048 pixels long
    ],
)
def test_readable_scale(size, scale):
    assert readable_scale(size) == scale


def test_image_grid_holds_every_image_once():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    red, green, blue = (
        Image.new("RGB", size, color)
        for size, color in zip([(60, 40), (30, 50), (80, 20)], colors, strict=True)
    )
    grid = image_grid([[("left", red), ("right", green)], [], [("below", blue)]], title="Title")
    pixels = np.asarray(grid)
    corners = {}
    for image, color in zip((red, green, blue), colors, strict=True):
        rows, columns = np.nonzero((pixels == color).all(axis=-1))
        assert len(rows) == image.width * image.height
        corners[color] = (columns.min(), rows.min())
    (red_x, red_y), (green_x, green_y), (blue_x, blue_y) = corners.values()
    assert red_x == blue_x
    assert red_y == green_y
    assert green_x > red_x + 80, "columns are as wide as their widest image"
    assert blue_y > red_y + 50, "rows are as high as their highest image"


def test_title_and_captions_are_written():
    plain = image_grid([[("", blank_image())]])
    captioned = image_grid([[("caption", blank_image())]])
    titled = image_grid([[("", blank_image())]], title="Title")
    assert plain.size == captioned.size
    assert plain != captioned
    assert titled.height > plain.height
    assert (np.asarray(titled)[:25] < 100).any()


def test_long_captions_are_shortened_to_the_image():
    font = ImageFont.load_default(15)
    assert _fit("short", font, 100) == "short"
    shortened = _fit("long " * 50, font, 100)
    assert shortened.endswith("...")
    assert 80 < font.getlength(shortened) <= 100


@pytest.mark.parametrize("rows", [[], [[]]])
def test_empty_grid_is_refused(rows):
    with pytest.raises(ValueError, match="at least one image"):
        image_grid(rows)


@pytest.mark.parametrize("name", ["grid.png", "grid.jpg", "grid.JPEG"])
def test_save_image_makes_its_folder(tmp_path, name):
    drawn = draw_boxes(blank_image(), box_list([[40, 30, 150, 80]], [1]), NAMES)
    save_image(drawn, tmp_path / "new" / name)
    read = np.asarray(Image.open(tmp_path / "new" / name).convert("RGB"), dtype=float)
    # Thin lines must keep their colour in a JPEG as well.
    assert np.abs(read - np.asarray(drawn)).max() <= (0 if name.endswith("png") else 60)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_save_image_writes_every_kind_that_is_read(tmp_path, suffix):
    image = Image.new("RGB", (80, 60), "red")
    save_image(image, tmp_path / f"a{suffix}")
    read = np.asarray(read_image(tmp_path / f"a{suffix}", apply_exif=True), dtype=float)
    assert np.abs(read - np.asarray(image)).max() <= 3


def test_save_image_refuses_other_names(tmp_path):
    for name in ("a.txt", "a"):
        with pytest.raises(ValueError, match=rf"{name}: expected a name such as a\.png"):
            save_image(blank_image(), tmp_path / name)
    assert not list(tmp_path.iterdir())


DOORS = {
    "image": lambda file: save_image(blank_image(), file),
    "curves": lambda file: plot_curves(file.with_name("a.jsonl"), file),
    "runs": lambda file: plot_runs({"a": file.with_name("a.jsonl")}, file),
    "objects": lambda file: plot_objects(file, "title", np.array([20.0]), [64.0], {"cat": 3}),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf", "svg"])
@pytest.mark.parametrize("door", DOORS)
def test_full_disks_are_told_with_the_file_which_stays(door, suffix, tmp_path):
    file = tmp_path / f"drawn.{'png' if door == 'image' else suffix}"
    write_metrics(tmp_path / "a.jsonl", [2.0, 1.0])
    file.write_text("earlier")
    DOORS[door](tmp_path / f"warm.{file.suffix[1:]}")  # so that fonts are in their cache
    with small_disk(), pytest.raises(OSError, match=r"cannot write .*drawn\.\w+ \(File too large\)"):
        DOORS[door](file)
    assert file.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 3


def write_metrics(file, losses, rest=""):
    lines = [
        json.dumps({"iteration": 20 * i, "loss": loss, "loss_cls": loss / 2, "lr": 0.01})
        for i, loss in enumerate(losses)
    ]
    file.write_text("\n".join(lines) + "\n" + rest)
    return file


def test_curves_show_the_losses(tmp_path):
    falling = write_metrics(tmp_path / "falling.jsonl", [4 / (1 + i) for i in range(100)])
    flat = write_metrics(tmp_path / "flat.jsonl", [4.0] * 100)
    for file in (falling, flat):
        plot_curves(file, tmp_path / "new" / f"{file.stem}.png")
    first, second = (
        np.asarray(Image.open(tmp_path / "new" / f"{name}.png").convert("RGB"))
        for name in ("falling", "flat")
    )
    assert first.shape[0] >= 500
    assert first.shape[1] >= 800
    assert changed(first, (255, 255, 255)).mean() > 0.01
    assert (first != second).any()
    classification = (0x00, 0x72, 0xB2)
    assert (first == classification).all(axis=-1).sum() > 100


def test_curves_work_in_a_thread_without_a_display(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    file = write_metrics(tmp_path / "metrics.jsonl", [1.0])
    thread = threading.Thread(target=plot_curves, args=(file, tmp_path / "curves.png"))
    thread.start()
    thread.join()
    assert Image.open(tmp_path / "curves.png").width > 0


@pytest.mark.parametrize("rest", ['{"iteration": 60, "lo', "[1]", '{"epoch": 3}', "\n"])
def test_half_lines_are_skipped(tmp_path, rest):
    file = write_metrics(tmp_path / "metrics.jsonl", [3.0, 2.0, 1.0], rest)
    assert list(read_metrics(file)) == [0, 20, 40]
    plot_curves(file, tmp_path / "curves.png")


def test_a_resumed_run_repeats_iterations(tmp_path):
    file = write_metrics(tmp_path / "metrics.jsonl", [3.0, 2.0, 1.0], '{"iteration": 20, "loss": 9.0}\n')
    records = read_metrics(file)
    assert list(records) == [0, 20, 40]
    assert records[20]["loss"] == 9.0


def test_losses_that_are_not_finite_are_gaps(tmp_path):
    file = write_metrics(tmp_path / "metrics.jsonl", [3.0, float("nan"), float("inf"), 1.0])
    plot_curves(file, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "content", ["", "\n", '{"iteration": 1, "lr": 0.1}', '{"iteration": 1, "loss": NaN}']
)
def test_a_file_without_losses_is_refused(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"finite 'loss' in .*metrics.jsonl"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
