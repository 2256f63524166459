"""Every command of the documents is parsed by what it calls, and run by a test or marked for what it needs.

A new command fails here until it is one of these:

* parsed by its own parser, with its configuration and overrides loaded (all commands of ``atss``, its old
  doors and launchers of it, even if marked);
* and run: by WALKS below, or by the test that RUN_BY names for it;
* or marked in the document, in a line of its own before the block: ``<!-- needs: COCO -->``; NEEDS has the
  words.
"""

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from atss_core.cli import quickstart
from atss_core.cli.datasets import split_arguments
from atss_core.cli.main import COMMANDS, main
from atss_core.cli.parser import CommandParser
from atss_core.config import load_cfg
from tests.conftest import QUICK, TINY
from tests.docs.commands import DOCUMENTS, Command, commands_of
from tests.golden import ROOT

# What a block may be marked to need.
NEEDS = {"COCO", "BCCD", "GPU", "network", "camera", "own data", "weights", "cluster"}

# Documents whose unmarked ``atss`` commands are run here from top to bottom, as they stand.
WALKS = ("docs/index.md", "docs/own-data.md", "docs/assignment.md", "docs/config.md", "docs/faq.md")

# What else runs a command, by its first words: a test, or a target of the Makefile that CI makes.
CLI = "tests/cli/test_commands.py"
RUN_BY = {
    "atss quickstart": f"{CLI}::test_quickstart_writes_images_curves_and_metrics",
    "atss train": f"{CLI}::test_train_writes_its_files_and_evaluates",
    "atss test": f"{CLI}::test_test_net_agrees_with_the_evaluation_after_training",
    "atss demo": f"{CLI}::test_demo_draws_every_image",
    "atss demo --video": "tests/cli/test_demo.py::test_video_is_annotated_frame_by_frame",
    "atss demo --webcam": "tests/cli/test_demo.py::test_camera",
    "atss check": "tests/cli/test_own_data.py::test_sound_data_is_found_sound",
    "atss assign": "tests/cli/test_assign.py::test_report_equals_a_slow_count",
    "atss plot": "tests/cli/test_main.py::test_plot_draws_runs_side_by_side",
    "atss doctor": "tests/cli/test_main.py::test_the_doctor_reports_versions_and_remedies",
    "atss export": "tests/cli/test_export.py::test_package_is_verified_and_described",
    "atss remove-solver-states": "tests/cli/test_remove_solver_states.py::test_weights_and_names_are_kept",
    "torchrun": "tests/engine/test_distributed.py::test_two_processes_count_every_image_once",
    "python -m torch.distributed.launch": "tests/engine/test_interruptions.py::test_killed_worker",
    "python my_components.py": "tests/docs/test_pages.py::test_own_components_train_from_the_command_line",
    "python -c from atss_core.layers import ops_info": "tests/layers/test_extension.py::"
    "test_info_names_the_operators_in_use",
    "python -c from atss_core.data import write_shapes": "tests/data/test_shapes.py::"
    "test_images_match_the_annotations",
    "python demo/predict.py": "tests/engine/test_predictor.py::test_the_script_runs",
    "python demo/run_exported.py": "tests/export/test_targets.py::test_script_runs_without_this_package",
    "python docs/make_config_reference.py": "tests/docs/test_pages.py::test_reference_of_keys_is_current",
    "python configs/paper/make_index.py": "tests/config/test_paper_configs.py::test_every_row_has_one_entry",
    "python -m pytest": "Makefile::unit",
    "ruff": "Makefile::lint",
    "mypy": "Makefile::types",
    "mkdocs": "tests/docs/test_pages.py::test_site_builds_without_a_warning",
    "make": "Makefile::test",
}
# Words of the shell, of which only the grammar is checked.
SHELL = {"cd", "mkdir", "ln", ".", "source", "export", "eval"}

DOORS = {
    "tools/train_net.py": "train",
    "tools/train_slurm.sh": "train",
    "tools/test_net.py": "test",
    "tools/quickstart.py": "quickstart",
    "tools/check_dataset.py": "check",
    "tools/assign.py": "assign",
    "tools/remove_solver_states.py": "remove-solver-states",
    "demo/atss_demo.py": "demo",
}

FOUND = {document: commands_of(document) for document in DOCUMENTS}
ALL = [command for found, _ in FOUND.values() for command in found]


class ParsedError(Exception):
    """Stops a command once it has read its words."""


def as_atss(words):
    """Return the words of the ``atss`` command that a line calls, through a door or a launcher; else None."""
    if words[:1] == ["atss"]:
        return words[1:]
    if words[:1] == ["torchrun"] or words[:3] == ["python", "-m", "torch.distributed.launch"]:
        launcher = get_args_parser().parse_args(words[1:] if words[0] == "torchrun" else words[3:])
        script, rest = launcher.training_script, launcher.training_script_args
        return rest if launcher.module and script == "atss_core" else as_atss(["python", script, *rest])
    if words[:1] == ["sbatch"]:
        words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".sh")) :]]
    if words[:3] == ["python", "-m", "atss_core"]:
        return words[3:]
    if words[:2] == ["python", "my_components.py"]:
        return words[2:]
    if words[:1] == ["python"] and words[1] in DOORS:
        assert (ROOT / words[1]).is_file()
        return [DOORS[words[1]], *words[2:]]
    return None


def parse(words, monkeypatch):
    """Let a command read its words and do nothing else; returns what it understood."""
    name, *rest = words
    assert name in COMMANDS, f"there is no command {name}"
    read = CommandParser.parse_args

    def stop(parser, args=None):
        raise ParsedError(read(parser, args))

    module = importlib.import_module(f"atss_core.cli.{COMMANDS[name][0]}")
    with monkeypatch.context() as patch:
        patch.setattr(CommandParser, "parse_args", stop)
        with pytest.raises(ParsedError) as stopped:
            module.main(rest)
    return stopped.value.args[0]


def load(arguments):
    """Load the configuration that a command asks for, as far as it is here."""
    opts = getattr(arguments, "opts", None)
    if opts is None:
        opts = split_arguments(getattr(arguments, "words", []))[1]
    file = getattr(arguments, "config_file", str(QUICK))
    # What a run leaves, or the reader's own, has the keys of any other.
    is_made = file.startswith("training_dir/") or file == "my.yaml"
    return load_cfg(QUICK if is_made else file, [word for word in opts if word != "--"])


def data_of(name, cfg, words):
    """Return the datasets that a command opens."""
    if name in ("check", "assign"):
        return split_arguments(words)[0] or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return {"train": [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], "test": cfg.DATASETS.TEST}.get(name, ())


def covered_by(command):
    """Return the longest entry of RUN_BY that fits a command, or None."""
    words = command.words
    atss = as_atss(words) if "my_components.py" not in words else None
    forms = [" ".join(words)]
    if atss:
        forms.append(" ".join(["atss", *atss]))
        forms += [f"atss {atss[0]} {word}" for word in atss if word.startswith("--")]
    fitting = [
        key
        for key in RUN_BY
        if any(f"{form} ".startswith(f"{key} ") or form.startswith(f"{key};") for form in forms)
    ]
    return RUN_BY[max(fitting, key=len)] if fitting else None


def is_walked(command):
    """Tell whether a command is run here. Exports take long; the doctor judges the machine it is on."""
    words = command.words
    is_plain = command.text.startswith("atss ") and words[1] not in ("export", "doctor")
    return is_plain and not command.needs and command.document in WALKS


@pytest.mark.parametrize("command", ALL, ids=str)
def test_command_is_parsed(command, monkeypatch):
    """Wrong flags, keys, values, targets and paths show here, also in what is marked."""
    words = command.words
    atss = as_atss(words) if words else None
    if atss:
        arguments = parse(atss, monkeypatch)
        cfg = load(arguments)
        for place in data_of(atss[0], cfg, getattr(arguments, "words", [])):
            is_made = place.startswith("shapes_") or place.startswith("datasets/shapes/")
            is_own = "config_file" in vars(arguments) and arguments.config_file.startswith("training_dir/")
            assert command.needs or is_made or is_own, (
                f"{command}\nuses the data {place}: put a line <!-- needs: COCO --> before the block, or "
                f"what it needs of {sorted(NEEDS)}"
            )
    elif words[:1] == ["make"]:
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[:2] == ["python", "-c"]:
        compile(words[2], str(command), "exec")
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if not word.startswith("-")), command
    elif words[:1] == ["python"] and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), command
    else:
        subprocess.run(["bash", "-n", "-c", command.text], check=True, capture_output=True)


@pytest.mark.parametrize("command", ALL, ids=str)
def test_command_is_run_or_marked(command):
    words = command.words
    if command.needs:
        assert set(re.split(r"\s*,\s*", command.needs)) <= NEEDS, f"{command}\nneeds one of {sorted(NEEDS)}"
        return
    if is_walked(command) or not words or words[0] in SHELL:
        return
    test = covered_by(command)
    assert test, (
        f"{command}\nis run by no test: name one in RUN_BY of {Path(__file__).name}, or put a line like "
        f"<!-- needs: network --> before the block, with what it needs of {sorted(NEEDS)}"
    )


@pytest.mark.parametrize("entry", RUN_BY.items(), ids=lambda entry: entry[0])
def test_named_tests_exist(entry):
    key, test = entry
    file, name = test.split("::")
    defines = rf"^{name}:" if file == "Makefile" else rf"^def {name}\("
    assert re.search(defines, (ROOT / file).read_text(), re.MULTILINE), f"{key}: there is no {test}"


def test_commands_are_found_and_no_mark_is_left_over():
    """The collector sees each kind of block, and marks stand before commands."""
    assert len(ALL) > 60
    assert {"README.md", "INSTALL.md", "docs/index.md"} <= {command.document for command in ALL}
    unused = {document.name: lines for document, (_, lines) in FOUND.items() if lines}
    assert not unused, f"marks without a command after them: {unused}"


MADE_UP = """
Text with `atss train` in it.

<!-- needs: COCO -->

    atss train --config-file a \\
        SOLVER.BASE_LR 0.1
    tree/   no command

Next.

```sh
$ X=1 make ext && cd there    # why
```

- A list

      git clone it

<!-- needs: GPU -->

Nothing follows.

```python
python = 1
```
"""


def test_collector_reads_blocks_marks_and_continued_lines(tmp_path):
    document = tmp_path / "made_up.md"
    document.write_text(MADE_UP)
    found, unused = commands_of(document)
    assert [(c.line, c.text, c.needs) for c in found] == [
        (6, "atss train --config-file a SOLVER.BASE_LR 0.1", "COCO"),
        (13, "X=1 make ext", ""),
        (13, "cd there", ""),
        (18, "git clone it", ""),
    ]
    assert found[1].words == ["make", "ext"]
    assert unused == [20]


def test_wrong_words_and_what_nobody_runs_are_told(monkeypatch):
    wrong = Command("x.md", 1, "atss train --config-file atss_R_18_shapes SOLVER.BASE_LRR 1", "")
    with pytest.raises(ValueError, match=r"did you mean SOLVER\.BASE_LR"):
        test_command_is_parsed(wrong, monkeypatch)
    with pytest.raises(SystemExit):
        test_command_is_parsed(
            Command("x.md", 1, "atss test --config atss_R_18_shapes --x 1", ""), monkeypatch
        )
    coco = Command("x.md", 1, "torchrun -m atss_core test --config-file atss_R_50_FPN_1x", "")
    with pytest.raises(AssertionError, match="needs: COCO"):
        test_command_is_parsed(coco, monkeypatch)
    with pytest.raises(AssertionError, match="name one in RUN_BY"):
        test_command_is_run_or_marked(Command("x.md", 1, "curl somewhere", ""))
    with pytest.raises(AssertionError, match="needs one of"):
        test_command_is_run_or_marked(Command("x.md", 1, "curl somewhere", "luck"))


@pytest.fixture(scope="module")
def workplace(shapes, tmp_path_factory):
    """A folder that looks like the root of a checkout to the commands, with small data."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(shapes, folder / "datasets")
    for name in ("configs", "demo"):
        (folder / name).symlink_to(ROOT / name)
    return folder


# What makes a command of a walk short.
SHORTER = {"quickstart": TINY, "train": TINY, "assign": ["--num-drawn", "1"]}


def test_walk_through_the_pages(workplace, monkeypatch, capsys):
    """Their commands run one after the other; index.md comes first and leaves what the others use."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(quickstart, "write_shapes", lambda folder: None)  # small ones are there already
    monkeypatch.setattr(quickstart, "NUM_IMAGES", 4)
    walked = [command for page in WALKS for command in ALL if command.document == page and is_walked(command)]
    assert {command.document for command in walked} == set(WALKS)
    for command in walked:
        name, *words = command.words[1:]
        try:
            main([name, *words, *SHORTER.get(name, ())])
        except SystemExit as stopped:
            pytest.fail(f"{command}\nends with {stopped.code}: {capsys.readouterr().err}")
