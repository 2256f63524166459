"""Own data through the commands of a user, faulty data in particular."""

import json
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from atss_core.cli import check_dataset, demo, test, train
from atss_core.cli.common import run
from atss_core.utils.checkpoint import read_checkpoint
from tests.conftest import TINY
from tests.golden import ROOT
from tests.layouts import CONTENT, coco_tree, voc_xml, write_coco, write_pictures, write_voc, write_yolo

CONFIG = str(ROOT / "configs" / "quick" / "atss_R_18_own_data.yaml")
ONE_STEP = [
    *TINY,
    *("SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "(1,)", "INPUT.MIN_SIZE_RANGE_TRAIN", "(48, 48)"),
    *("INPUT.MIN_SIZE_TEST", "48"),
]


def words_for(places, folder):
    return ["DATASETS.TRAIN", places[0], "DATASETS.TEST", places[1], "OUTPUT_DIR", str(folder)]


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_any_layout_trains_tests_and_draws(write, tmp_path, capsys):
    places = write(tmp_path / "my data", names=["große Katze", "dog"])
    folder = tmp_path / "run"
    train.main(["--config-file", CONFIG, *ONE_STEP, *words_for(places, folder)])
    names = read_checkpoint(folder / "model_final.pth")["class_names"]
    assert sorted(names) == ["dog", "große Katze"]
    assert "NUM_CLASSES: 3" in (folder / "config.yml").read_text()
    (metrics,) = (folder / "inference").glob("*/metrics.json")
    content = json.loads(metrics.read_text())
    assert content["per_class"].keys() == set(names)
    assert ("voc" in content) == (write is write_voc)
    output = capsys.readouterr().out
    assert ("by the 11 points of 2007" in output) == (write is write_voc)

    # Neither testing nor the demo needs to be told the number of classes.
    test.main(["--config-file", CONFIG, *ONE_STEP, *words_for(places, folder)])
    write_pictures(tmp_path / "new")
    flags = ["--weights", str(folder / "model_final.pth"), "--images-dir", str(tmp_path / "new")]
    demo.main([*flags, "--output-dir", str(tmp_path / "drawn"), "--config-file", CONFIG, *ONE_STEP])
    assert len(list((tmp_path / "drawn").iterdir())) == len(CONTENT)


def test_registered_names(tmp_path):
    places = write_coco(tmp_path / "data")
    config = tmp_path / "own.yaml"
    config.write_text(
        f"_BASE_: {CONFIG}\nDATASETS:\n  REGISTER:\n    my_train: {places[0]}\n    my_val: {places[1]}\n"
        "  TRAIN: [my_train]\n  TEST: my_val\n"
    )
    train.main(["--config-file", str(config), *ONE_STEP, "OUTPUT_DIR", str(tmp_path / "run")])
    assert (tmp_path / "run" / "inference" / "my_val" / "metrics.json").is_file()
    dumped = tmp_path / "run" / "config.yml"  # loads again, names and all
    test.main(["--config-file", str(dumped)])


def test_empty_pictures_train_on_demand(tmp_path):
    places = write_coco(tmp_path / "data", content={**CONTENT, "e": [], "f": [], "g": [], "h": []})
    words = words_for(places, tmp_path / "run")
    opts = [*ONE_STEP, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "SOLVER.IMS_PER_BATCH", "8"]
    train.main(["--config-file", CONFIG, "--skip-test", *opts, *words])
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(line)["loss"])


# One defect each. Every function spoils a data set and returns the overrides that go with it.


def edit(file, change):
    """Rewrite a JSON file."""
    tree = json.loads(file.read_text())
    changed = change(tree)
    file.write_text(json.dumps(tree if changed is None else changed))


def in_json(change):
    return lambda folder: edit(folder / "train.json", change)


def in_annotation(**values):
    return in_json(lambda tree: tree["annotations"][1].update(values))


def replace(file, old, new, count=1):
    def spoil(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, count))

    return spoil


def write_over(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def remove(*files):
    def spoil(folder):
        for file in files:
            path = folder / file
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def shrink(folder):
    Image.new("RGB", (30, 30)).save(folder / "pictures" / "a.png")


def truncate(folder):
    file = folder / "pictures" / "a.png"
    file.write_bytes(file.read_bytes()[:500])


COCO_DEFECTS = {
    "no file": (remove("train.json"), ["annotation file", "train.json, which does not exist"]),
    "half a file": (
        lambda folder: (folder / "train.json").write_text((folder / "train.json").read_text()[:300]),
        ["train.json is not valid JSON", "line 1"],
    ),
    "not text": (write_over("train.json", b"\xff\xfe\x00{"), ["train.json is not", "fetch it again"]),
    "a list": (in_json(lambda tree: [1, 2]), ["must hold a COCO dictionary, got list"]),
    "no images": (in_json(lambda tree: tree.pop("images") and tree), ['expected a list "images"']),
    "no categories": (in_json(lambda tree: tree["categories"].clear()), ['expected a list "categories"']),
    "image id twice": (
        in_json(lambda tree: tree["images"][1].update(id=1)),
        ["image id must be unique", "1"],
    ),
    "category id twice": (
        in_json(lambda tree: tree["categories"][1].update(id=1)),
        ["category id must be unique"],
    ),
    "category name twice": (
        in_json(lambda tree: tree["categories"][1].update(name="cat")),
        ["every category needs a name of its own", "cat"],
    ),
    "annotation id twice": (
        in_annotation(id=1),
        ["1 annotation(s) have the id of another", "number them anew"],
    ),
    "no file name": (
        in_json(lambda tree: tree["images"][2].pop("file_name") and None),
        ['image 3 needs a "file_name"'],
    ),
    "no size": (in_json(lambda tree: tree["images"][2].update(width=0)), ["image 3 must have at least 1x1"]),
    "size as text": (in_json(lambda tree: tree["images"][2].update(width="64")), ['whole number as "width"']),
    "unknown image": (in_annotation(image_id=99), ["annotation 2 has image_id 99"]),
    "unknown category": (in_annotation(category_id=99), ["annotation 2 has category_id 99"]),
    "NaN box": (
        in_annotation(bbox=[1, float("nan"), 5, 5]),
        ["annotation 2 must have 4 finite numbers", "nan"],
    ),
    "three numbers": (
        in_annotation(bbox=[1, 5, 5]),
        ["annotation 2 must have 4 finite numbers", "[1, 5, 5]"],
    ),
    "no area": (in_annotation(bbox=[1, 5, 0, 5]), ["1 box(es) have a width or height of 0", "2 in a.png"]),
    "outside": (in_annotation(bbox=[99, 5, 9, 5]), ["1 box(es) lie wholly outside their picture", "a.png"]),
    "reaching out": (in_annotation(bbox=[50, 5, 30, 30]), ["1 box(es) reach out of their picture", "a.png"]),
    "one pixel": (in_annotation(bbox=[5, 5, 1, 30]), ["1 box(es) are at most one pixel wide", "a.png"]),
    "box twice": (
        in_json(lambda tree: tree["annotations"].append({**tree["annotations"][0], "id": 50})),
        ["1 box(es) repeat another", "50 in a.png"],
    ),
    "no object": (
        in_json(lambda tree: tree.update(annotations=[])),
        ["train.json: no picture has an object to learn from"],
    ),
    "class without objects": (
        in_json(lambda tree: [a.update(category_id=1) for a in tree["annotations"]] and None),
        ["1 of 2 classes have no object: dog"],
    ),
    "crowd as text": (in_annotation(iscrowd="0"), ['annotation 2 must have 0 or 1 as "iscrowd"', "'0'"]),
    "huge id": (in_annotation(id=2**70), ['a "id" of the annotations is too large']),
    "tiny objects": (
        in_annotation(bbox=[5, 5, 3, 3]),
        ["1 object(s), 16.7%, are far from every anchor size"],
    ),
    "no picture": (remove("pictures/a.png"), ["1 of 4 pictures are not in", "pictures: a.png; restore"]),
    "no folder": (remove("pictures"), ["needs the folder", "pictures with the pictures of"]),
    "half a picture": (truncate, ["a.png cannot be read as a picture"]),
    "text for a picture": (write_over("pictures/a.png", b"hello"), ["a.png cannot be read as a picture"]),
    "other size": (shrink, ["a.png is 30x30 pixels", "annotations of image 1 are for 64x48"]),
    "listed twice": (
        in_json(lambda tree: tree["images"][1].update(file_name="a.png")),
        ["1 picture(s) are listed more than once: a.png"],
    ),
    "class count": (
        lambda folder: ["MODEL.ATSS.NUM_CLASSES", "81"],
        ["2 classes (cat, dog), which needs MODEL.ATSS.NUM_CLASSES 3", "it is 81"],
    ),
    "other classes in the test set": (
        lambda folder: edit(folder / "val.json", lambda t: t["categories"][1].update(name="wolf")),
        ["must have the classes of", "2 classes (cat, dog), but has 2 classes (cat, wolf)"],
    ),
}
VOC_DEFECTS = {
    "not XML": (
        write_over("Annotations/a.xml", b"<annotation><object>"),
        ["a.xml is not valid XML", "line 1"],
    ),
    "another XML": (
        write_over("Annotations/a.xml", b"<html></html>"),
        ["a.xml is not a VOC annotation", "html"],
    ),
    "no corner": (
        replace("Annotations/a.xml", "<xmin>5</xmin>", ""),
        ["a.xml: object 1 (cat) needs a bndbox with xmin"],
    ),
    "corner is text": (replace("Annotations/a.xml", ">5<", ">five<"), ["a.xml: object 1 (cat)", "'five'"]),
    "corners swapped": (
        lambda folder: ElementTree.ElementTree(voc_xml("a", [(0, 30, 6, -20, 20), (1, 2, 2, 30, 30)])).write(
            folder / "Annotations" / "a.xml"
        ),
        ["1 box(es) have a width or height of 0 or less", "1 in a.png"],
    ),
    "unknown class": (
        write_over("classes.txt", b"cat\nwolf\n"),
        ["has the name 'dog', which is none of the 2 classes (cat, wolf)"],
    ),
    "no split": (
        remove("ImageSets/Main/train.txt"),
        ["has no split 'train'", "train.txt; the splits are val"],
    ),
    "empty split": (write_over("ImageSets/Main/train.txt", b"\n"), ["train.txt is empty"]),
    "split lists a file twice": (
        write_over("ImageSets/Main/train.txt", b"a\nb\na\n"),
        ["train.txt lists a more than once"],
    ),
    "no annotation": (
        remove("Annotations/b.xml"),
        ["there is no annotation file", "b.xml, though its split lists"],
    ),
    "list of one class": (
        write_over("ImageSets/Main/train.txt", b"a  1\nb -1\n"),
        ["train.txt has a second column, 'a  1'", "expected a list of names alone"],
    ),
    "list of other names": (
        write_over("ImageSets/Main/train.txt", b"x\ny\n"),
        ["there is no annotation file", "x.xml"],
    ),
    "odd encoding": (
        write_over("Annotations/a.xml", b'<?xml version="1.0" encoding="klingon"?><annotation/>'),
        ["a.xml is not valid XML", "klingon"],
    ),
    "no pictures": (remove("JPEGImages"), ["no folder JPEGImages or images"]),
    "not a data set": (remove("Annotations"), ["is not a data set; expected a COCO file"]),
}
YOLO_DEFECTS = {
    "class too high": (
        write_over("labels/train/a.txt", b"2 0.5 0.5 0.2 0.2"),
        ["a.txt, line 1: class 2 is not one of the 2 classes, which count from 0 to 1"],
    ),
    "pixels": (
        write_over("labels/train/a.txt", b"0 0.5 0.5 0.2 0.2\n1 32 24 10 10"),
        ["a.txt, line 2: boxes are fractions of the sides", "'1 32 24 10 10'"],
    ),
    "four numbers": (
        write_over("labels/train/a.txt", b"1 0.5 0.5 0.5"),
        ["a.txt, line 1: expected class x y width height", "'1 0.5 0.5 0.5'"],
    ),
    "words": (
        write_over("labels/train/a.txt", b"cat 0.5 0.5 0.5 0.5"),
        ["a.txt, line 1: expected class x y"],
    ),
    "no names": (replace("data.yaml", "names", "nombres"), ["does not name its classes", "classes.txt"]),
    "wrong count": (replace("data.yaml", "names", "nc: 3\nnames"), ["nc is 3, but names has 2 classes"]),
    "gap in names": (
        replace("data.yaml", '["cat", "dog"]', "{0: cat, 2: dog}"),
        ["must be 0, 1, 2, ..., got [0, 2]"],
    ),
    "name twice": (replace("data.yaml", "dog", "cat"), ["every category needs a name of its own", "cat"]),
    "no labels": (remove("labels"), ["none of 4 pictures has a label file", "labels/train/a.txt"]),
    "no split": (remove("images/train"), ["has no pictures for 'train'", "there is no", "images/train"]),
    "half a picture": (
        lambda folder: (folder / "images/train/a.png").write_bytes(b"hello"),
        ["1 of 4 pictures cannot be read", "images/train/a.png", "SKIP_CORRUPT"],
    ),
    "label without picture": (
        remove("images/train/a.png"),
        ["1 label file(s) have no picture", "labels/train/a.txt; restore the pictures"],
    ),
    "picture without label": (
        remove("labels/train/a.txt"),
        ["1 picture(s) have no label file and count as empty: a.png"],
    ),
    "one label for two": (
        lambda folder: shutil.copy(folder / "images/train/a.png", folder / "images/train/a.bmp"),
        ["1 label file(s) belong to several pictures of one name: a.txt"],
    ),
    "other encoding": (
        lambda folder: (folder / "labels/train/a.txt").write_text("0 .5 .5 .2 .2", encoding="utf-16"),
        ["a.txt is not UTF-8 text", "save it as UTF-8"],
    ),
    "class that YAML misreads": (
        replace("data.yaml", '["cat", "dog"]', "[yes, no]"),
        ["YAML reads the class name True as no text; put it in quotes"],
    ),
    "split misspelt": (
        replace("data.yaml", "train: images/train", "train: images/trian"),
        ["has no pictures for 'train'", "images/trian"],
    ),
    "not YAML": (write_over("data.yaml", b"names: [cat"), ["data.yaml is not valid YAML"]),
}
CASES = [
    *((write_coco, name, *case) for name, case in COCO_DEFECTS.items()),
    *((write_voc, name, *case) for name, case in VOC_DEFECTS.items()),
    *((write_yolo, name, *case) for name, case in YOLO_DEFECTS.items()),
]


def lines_with(words, text):
    return [line for line in text.splitlines() if all(word in line for word in words)]


@pytest.mark.parametrize(
    ("write", "spoil", "words"),
    [(write, spoil, words) for write, _, spoil, words in CASES],
    ids=[f"{write.__name__[6:]}: {name}" for write, name, _, _ in CASES],
)
def test_each_defect_has_one_line_in_the_check_and_in_training(write, spoil, words, tmp_path, capsys):
    folder = tmp_path / "data"
    places = write(folder)
    more = spoil(folder)
    opts = [*ONE_STEP, *(more if isinstance(more, list) else [])]
    commands = {
        "check": (check_dataset.main, ["--output-dir", str(tmp_path / "check"), *places, *opts]),
        "training": (train.main, ["--skip-test", *opts, *words_for(places, tmp_path / "run")]),
    }
    if "must have the classes of" in words:  # which takes both sets
        commands["training"][1].remove("--skip-test")
    for name, (command, arguments) in commands.items():
        status = 0
        try:
            run(command, ["--config-file", CONFIG, *arguments])
        except SystemExit as stop:
            status = stop.code
        assert status in (0, 2), name
        printed = capsys.readouterr()
        assert lines_with(words, printed.out + printed.err), f"{name} says {printed.out + printed.err}"
        assert "Traceback" not in printed.out + printed.err, name
        assert printed.err.count("\n") <= 1, f"{name} says {printed.err}"


def test_sound_data_is_found_sound(tmp_path, capsys):
    check_dataset.main([*write_coco(tmp_path / "data"), "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    output = capsys.readouterr().out
    assert output.count("nothing wrong was found") == 2
    assert "4 pictures of data_val are in data_train as well" in output
    report = json.loads((tmp_path / "check" / "data_train" / "report.json").read_text())
    assert report["objects"] == {"cat": 3, "dog": 3}
    assert report["num_images"] == 4
    assert sum(report["sides"].values()) == 6
    assert report["defects"] == []
    for name in ("objects.png", "sample.jpg"):
        assert min(Image.open(tmp_path / "check" / "data_train" / name).size) > 200
    assert not (tmp_path / "check" / "data_train" / "defects.jpg").exists()


def test_defects_are_drawn_and_listed(tmp_path, capsys):
    places = write_coco(tmp_path / "data")
    in_annotation(bbox=[5, 5, 0, 30])(tmp_path / "data")
    truncate(tmp_path / "data")
    with pytest.raises(ValueError, match="1 of 4 pictures cannot be read"):
        check_dataset.main([places[0], "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    folder = tmp_path / "check" / "data_train"
    assert min(Image.open(folder / "defects.jpg").size) > 200
    defects = json.loads((folder / "report.json").read_text())["defects"]
    assert [(d["kind"], d["images"], d["annotation_ids"]) for d in defects] == [
        ("boxes without area", ["a.png"], [2]),
        ("unreadable pictures", ["a.png"], []),
    ]
    assert "! 1 of 4 pictures cannot be read" in capsys.readouterr().out


def test_objects_that_get_no_anchor_are_counted(tmp_path, capsys):
    # Two objects of one place and size: the second finds all its anchors taken.
    content = {"a": [(0, 10, 10, 30, 30), (1, 10, 10, 30, 30)], "b": CONTENT["b"]}
    places = write_coco(tmp_path / "data", content=content)
    check_dataset.main([places[0], "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    assert "1 of 3 objects get no anchor by POSITIVE_TYPE ATSS" in capsys.readouterr().out


def test_quick_check_reads_no_picture(tmp_path, capsys):
    places = write_coco(tmp_path / "data")
    truncate(tmp_path / "data")
    check_dataset.main(["--quick", places[0], "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    assert "nothing wrong was found" in capsys.readouterr().out


def test_gaps_in_category_ids(tmp_path):
    def spread(tree):
        for entry in (*tree["categories"], *tree["annotations"]):
            key = "category_id" if "category_id" in entry else "id"
            entry[key] = {1: 7, 2: 901}[entry[key]]

    places = write_coco(tmp_path / "data")
    for split in ("train", "val"):
        edit(tmp_path / "data" / f"{split}.json", spread)
    opts = [*ONE_STEP, "MODEL.ATSS.INFERENCE_TH", "0.0"]
    train.main(["--config-file", CONFIG, *opts, *words_for(places, tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "inference" / "data_val" / "bbox.json").read_text())
    assert {result["category_id"] for result in results} == {7, 901}


def test_twenty_thousand_objects(tmp_path, capsys):
    folder = tmp_path / "data"
    content = {f"{i:03}": [] for i in range(100)}
    rng = np.random.default_rng(0)
    corners = rng.integers(0, (480 - 12, 640 - 12), (20000, 2))
    sides = rng.integers(4, 12, (20000, 2))
    for i, ((y, x), (h, w)) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True)):
        content[f"{i % 100:03}"].append((i % 2, x, y, w, h))
    write_pictures(folder / "pictures", content, size=(480, 640), suffix=".jpg")
    tree = coco_tree(content=content, size=(480, 640), suffix=".jpg")
    (folder / "train.json").write_text(json.dumps(tree))
    place = f"{folder / 'train.json'}@{folder / 'pictures'}"
    check_dataset.main([place, "--config-file", CONFIG, "--output-dir", str(tmp_path / "check")])
    report = json.loads((tmp_path / "check" / "data_train" / "report.json").read_text())
    assert sum(report["objects"].values()) == 20000
    assert sum(report["sides"].values()) == 20000
    kinds = {defect["kind"] for defect in report["defects"]}
    assert {"objects that no anchor size fits", "objects without an anchor"} <= kinds
    assert "20000 objects of 2 class(es), at most 200 in a picture" in capsys.readouterr().out


def test_words_of_the_command_line():
    split = check_dataset.split_words
    assert split(["a.json@b", "c@d", "INPUT.MIN_SIZE_TEST", "9"]) == (
        ["a.json@b", "c@d"],
        ["INPUT.MIN_SIZE_TEST", "9"],
    )
    assert split(["VOC2007@train", "SEED", "3"]) == (["VOC2007@train"], ["SEED", "3"])
    registered = ["DATASETS.REGISTER.my.own", "a.json@b"]
    assert split(["my.own", *registered]) == (["my.own"], registered)
    assert split([]) == ([], [])


def test_check_without_data_says_how_to_give_some(capsys):
    with pytest.raises(SystemExit):
        run(check_dataset.main, ["--config-file", CONFIG])
    assert (
        "there is no data set to check: give its place, such as train.json@pictures"
        in capsys.readouterr().err
    )


def test_help_shows_examples():
    command = [sys.executable, str(ROOT / "tools" / "check_dataset.py"), "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "folder@split" in output
    assert "examples:" in output


@pytest.mark.parametrize("name", ["bccd", "coco_tiny"])
def test_real_data_goes_through_the_check(name, tmp_path, capsys):
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs the data set {name} beside the checkout")
    place = {
        "bccd": f"{folder}@test",
        "coco_tiny": f"{folder}/annotations/instances_val2017.json@{folder}/val2017",
    }[name]
    check_dataset.main([place, "--output-dir", str(tmp_path), "--config-file", CONFIG])
    output = capsys.readouterr().out
    expected = {"bccd": "72 pictures of 640x480", "coco_tiny": "80 class(es)"}[name]
    assert expected in output
    assert next(tmp_path.glob("*/sample.jpg")).is_file()
