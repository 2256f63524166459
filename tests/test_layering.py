"""The house rules of CONTRIBUTING.md that a machine can check."""

import ast
import re

import pytest

from atss_core.config import get_cfg
from tests.golden import ROOT

PACKAGE = ROOT / "atss_core"
FILES = sorted(PACKAGE.rglob("*.py"))
# What each package may import, besides itself.
ALLOWED = {
    "config": "",
    "structures": "",
    "utils": "structures config",
    "layers": "structures utils",
    "modeling": "config layers structures utils",
    "solver": "config utils",
    "data": "config structures utils",
    "evaluation": "structures utils",
    "checkpoint": "config structures utils",
    "visualization": "config structures utils",
    "engine": "checkpoint config data evaluation layers modeling solver structures utils visualization",
    "export": "checkpoint config data engine layers modeling structures utils",
}
ALLOWED = {package: set(imported.split()) for package, imported in ALLOWED.items()}
ALLOWED["apps"] = {*ALLOWED}
ALLOWED["cli"] = {*ALLOWED}


def name_of(file):
    return str(file.relative_to(PACKAGE))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node, node.module or ""
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_one_way(file):
    parts = file.relative_to(PACKAGE).parts
    assert len(parts) <= 3, "at most three levels deep"
    if len(parts) == 1:
        return
    package = parts[0]
    for node, module in imports(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute"
        if module.startswith("atss_core."):
            imported = module.split(".")[1]
            assert imported == package or imported in ALLOWED[package], (
                f"{package} must not import {imported}"
            )


def test_only_commands_import_apps():
    for file in FILES:
        package, *names = file.relative_to(PACKAGE).with_suffix("").parts
        for _, module in imports(ast.parse(file.read_text())):
            if module.startswith("atss_core.apps."):
                assert package == "cli" or module.split(".")[2] == names[0], f"{name_of(file)}: {module}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_stand_at_the_top_and_name_what_they_take(file):
    tree = ast.parse(file.read_text())
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node, module in imports(tree):
        assert id(node) not in inner, f"import of {module} inside a function"
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), (
            f"star import of {module}"
        )


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_configuration_is_read_in_builders_alone(file):
    if file.name == "build.py" or file.relative_to(PACKAGE).parts[0] in ("config", "cli", "apps"):
        return
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {
        n.arg for n in nodes if isinstance(n, ast.arg)
    }
    assert "cfg" not in names
    sections = {n.attr for n in nodes if isinstance(n, ast.Attribute)} & set(get_cfg())
    assert not sections, f"reads {sections} of a configuration"


def test_there_are_no_import_cycles():
    files = {
        ".".join(["atss_core", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): file
        for file in FILES
    }
    graph = {}
    for module, file in files.items():
        graph[module] = set()
        for node, name in imports(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            submodules = {f"{name}.{n}" for n in names} & files.keys()
            graph[module] |= submodules or {name}
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def counts_pixels(node):
    """Tell whether an expression is a difference of coordinates plus or minus one."""
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, (ast.Add, ast.Sub))
        and isinstance(node.right, ast.Constant)
        and node.right.value == 1
        and isinstance(node.left, ast.BinOp)
        and isinstance(node.left.op, ast.Sub)
    )


def test_the_pixel_convention_lives_in_one_file():
    assert counts_pixels(ast.parse("b[..., 2] - b[..., 0] + 1", mode="eval").body)
    assert not counts_pixels(ast.parse("start - 1", mode="eval").body)
    places = {
        name_of(file)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if counts_pixels(node)
    }
    assert "structures/boxes.py" in places
    # Drawing and rendering count pixels of images, not of boxes.
    assert places <= {"structures/boxes.py", "visualization/boxes.py", "data/datasets/shapes.py"}


def test_links_of_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("tests/reference/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=lambda file: file.stem)
def test_tests_import_no_test_modules(file):
    names = [name for _, name in imports(ast.parse(file.read_text()))]
    assert not [name for name in names if name.startswith("tests.") and ".test_" in name]
