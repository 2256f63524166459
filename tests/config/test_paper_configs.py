"""Configurations of the paper's tables: completeness, published numbers and a current index."""

import importlib.util
import re
import sys
from itertools import pairwise

import pytest

from atss_core.config import load_cfg
from tests.golden import ROOT, SHARED

FOLDER = ROOT / "configs" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))
TABLES = SHARED / "paper_tables.md"
# Rows of Tables 1 to 8.
NUM_ROWS = {1: 7, 2: 4, 3: 5, 4: 9, 5: 5, 6: 5, 7: 6, 8: 8}
MULTI_SCALE = [file for file in FILES if file.stem.endswith("_multiscale")]


def load_module():
    spec = importlib.util.spec_from_file_location("make_index", FOLDER / "make_index.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


make_index = load_module()
ENTRIES = make_index.read_entries()


def plain(text):
    return re.sub(r'[",()]', "", text)


def published_rows():
    """(table, row) -> (label, numbers), read from the transcript of the paper."""
    rows = {}
    for section in re.split(r"\n(?=\*\*Table )", TABLES.read_text(encoding="utf-8")):
        table = re.match(r"\*\*Table (\d)\*\*", section)
        if not table:
            continue
        section = section.split("\n**Released")[0]
        lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
        if not lines:  # "name number, name number, ..." after the title
            pairs = re.findall(r"([\w ]+?) (\d\d\.\d)", section.split("**", 2)[2])
            lines = [list(pair) for pair in pairs]
        for number, (name, *cells) in enumerate(lines, start=1):
            numbers = [float(m[0]) for cell in cells if (m := re.match(r"\s*(\d\d\.\d)\b", cell))]
            rows[int(table[1]), number] = (name.strip(), numbers)
    return rows


def test_every_row_has_one_entry():
    rows = [(entry.table, entry.row) for entry in ENTRIES]
    assert rows == [(table, row) for table, count in NUM_ROWS.items() for row in range(1, count + 1)]
    assert len(FILES) == 41
    assert len(MULTI_SCALE) == 2
    assert {entry.file for entry in ENTRIES} == set(FILES)


def test_equal_rows_share_a_file():
    loaded = {}
    for file in FILES:
        cfg = load_cfg(file).clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.TEST.EXPECTED_RESULTS = "", []
        other = loaded.setdefault(cfg.dump(), file)
        assert other is file, f"{file.name} and {other.name} are the same"


def test_index_is_current():
    assert make_index.INDEX.read_text(encoding="utf-8") == make_index.make_index()
    for target in re.findall(r"\]\(([^)#:]+)\)", make_index.INDEX.read_text(encoding="utf-8")):
        assert (FOLDER / target).exists()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_has_its_row_output_folder_and_results(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert make_index.ROW.match(lines[0])
    assert max(map(len, lines)) <= 110
    cfg = load_cfg(file)
    assert f"training_dir/paper/{file.stem}" == cfg.OUTPUT_DIR
    names = [entry[1] for entry in cfg.TEST.EXPECTED_RESULTS]
    assert names in (["AP"], list(make_index.METRICS))
    assert all(task == "bbox" and 0 < mean < 1 for task, _, mean, _ in cfg.TEST.EXPECTED_RESULTS)
    assert {std for *_, std in cfg.TEST.EXPECTED_RESULTS} == {0.002}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"table{entry.table}_row{entry.row}")
def test_the_schedule_matches_the_table(entry):
    cfg = load_cfg(entry.file)
    is_long = entry.table == 8
    iterations, steps = (180000, (120000, 160000)) if is_long else (90000, (60000, 80000))
    assert (iterations, steps) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA, cfg.SOLVER.IMS_PER_BATCH) == (0.01, 0.1, 16)
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM) == (1e-4, 0.9)
    warmup = (cfg.SOLVER.WARMUP_METHOD, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR)
    assert warmup == ("constant", 500, 1 / 3)
    if is_long:
        assert cfg.INPUT.MIN_SIZE_RANGE_TRAIN == (640, 800)
    else:
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_RANGE_TRAIN) == ((800,), (-1, -1))
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1333, 800, 1333)
    assert (("coco_2017_test_dev",) if is_long else ("coco_2017_val",)) == cfg.DATASETS.TEST
    atss = cfg.MODEL.ATSS
    assert (atss.INFERENCE_TH, atss.PRE_NMS_TOP_N, atss.NMS_TH) == (0.05, 1000, 0.6)
    assert cfg.TEST.DETECTIONS_PER_IMG == 100
    # Only the first row of Table 1 computes P6 from C5.
    assert (entry.file.stem == "retinanet_1anchor") == cfg.MODEL.RETINANET.USE_C5
    assert {"GIoU": 2.0, "SmoothL1": 1.0}[atss.REG_LOSS_TYPE] == atss.REG_LOSS_WEIGHT


def test_each_step_from_retinanet_to_fcos_changes_its_keys():
    steps = [make_index.differences(entry.file) for entry in ENTRIES if entry.table == 1]
    removed = [set(before) - set(after) for before, after in pairwise(steps[:6])]
    prefix = "MODEL.ATSS."
    assert removed == [
        {"MODEL.RETINANET.USE_C5", f"{prefix}TOWER_NORM"},
        {f"{prefix}REG_LOSS_TYPE", f"{prefix}REG_LOSS_WEIGHT"},
        {f"{prefix}POSITIVES_IN_BOX"},
        {f"{prefix}USE_CENTERNESS"},
        {f"{prefix}USE_SCALE"},
    ]
    assert all(step[f"{prefix}POSITIVE_TYPE"] == "IoU" for step in steps[:6])
    assert steps[6] == {f"{prefix}POSITIVE_TYPE": "SSC", f"{prefix}REGRESSION_TYPE": "POINT"}


def test_row_labels_match_the_varied_keys():
    for entry in ENTRIES:
        atss = load_cfg(entry.file).MODEL.ATSS
        if entry.table == 2:
            assert entry.label == f"{atss.POSITIVE_TYPE}, {atss.REGRESSION_TYPE}"
        elif entry.table == 4:
            assert entry.label == f"k = {atss.TOPK}"
        elif entry.table == 5:
            side = int(entry.label.split()[2])
            assert tuple(side * stride for stride in atss.ANCHOR_STRIDES) == atss.ANCHOR_SIZES
        elif entry.table == 6:
            height, width = map(int, entry.label.removeprefix("ratio ").split(":"))
            assert (height / width,) == atss.ASPECT_RATIOS
        elif entry.table == 7:
            scales, ratios = map(int, re.search(r"(\d) scales?, (\d) ratios?", entry.label).groups())
            assert (atss.SCALES_PER_OCTAVE, len(atss.ASPECT_RATIOS)) == (scales, ratios)
            # Three scales start at half the size, so that the largest is close to that of one scale.
            assert atss.ANCHOR_SIZES[0] == (32 if scales == 3 else 64)


@pytest.mark.parametrize("file", MULTI_SCALE, ids=lambda file: file.stem)
def test_multi_scale_evaluates_the_model_of_the_single_scale_file(file):
    trained = file.with_name(f"{file.stem.removesuffix('_multiscale')}.yaml")
    cfg, plain = load_cfg(file), load_cfg(trained)
    assert f"{plain.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHT
    assert make_index.published_base(file) == make_index.published_base(trained)
    changed = set(make_index.differences(file)) - set(make_index.differences(trained))
    assert changed == {"MODEL.WEIGHT", "TEST.BBOX_AUG.ENABLED"}
    aug = cfg.TEST.BBOX_AUG
    assert (aug.ENABLED, aug.VOTE, aug.MERGE_TYPE) == (True, True, "soft-vote")
    assert aug.H_FLIP
    assert aug.SCALE_H_FLIP
    assert len(aug.SCALES) == len(aug.SCALE_RANGES) == 12


@pytest.mark.skipif(
    not TABLES.is_file(), reason="needs the transcript of the tables, ../shared/paper_tables.md"
)
def test_expected_results_equal_the_published_ones():
    published = published_rows()
    assert set(published) == {(entry.table, entry.row) for entry in ENTRIES}
    for entry in ENTRIES:
        name, numbers = published[entry.table, entry.row]
        ours = make_index.published_numbers(entry.file)
        expected = [ours[metric] for metric in make_index.METRICS[: len(numbers)]]
        assert len(numbers) in (1, 6)
        assert expected == pytest.approx(numbers, abs=1e-9), f"{entry.file.name} as {name}"
        if entry.table in (4, 5, 6):
            assert name in entry.label.split()
        else:  # the rows of Table 7 have their scales and ratios in columns of their own
            label = entry.label.split(",")[0] if entry.table == 7 else entry.label
            assert plain(name).startswith(plain(label)), entry.file.name


@pytest.mark.skipif(
    not TABLES.is_file(), reason="needs the transcript of the tables, ../shared/paper_tables.md"
)
def test_each_file_has_all_numbers_of_its_rows():
    published = published_rows()
    for file in FILES:
        rows = [published[entry.table, entry.row][1] for entry in ENTRIES if entry.file == file]
        assert len(make_index.published_numbers(file)) == max(map(len, rows))
