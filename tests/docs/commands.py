"""Find the commands in the documents."""

import os
import re
import shlex
from dataclasses import dataclass

from tests.golden import ROOT

DOCUMENTS = [ROOT / name for name in ("README.md", "INSTALL.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
# What a line of a block begins with if it is a command.
PROGRAMS = {
    *(
        "atss",
        "python",
        "torchrun",
        "make",
        "pip",
        "git",
        "cd",
        "bash",
        "sh",
        "sbatch",
        "mkdir",
        "ln",
        "ruff",
    ),
    *("mypy", "mkdocs", "curl", "wget", "apt", "apt-get", "conda", "uv", "export", ".", "source", "pytest"),
}
LANGUAGES = ("sh", "bash", "shell", "console")
FENCE = re.compile(r"^\s*(```+|~~~+)\s*(\w*)")
MARK = re.compile(r"^\s*<!-- needs: (.+?) -->\s*$")
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=(\"\$\([^)]*\)\"|\S*)")


@dataclass(frozen=True)
class Command:
    """A command of a document.

    Attributes:
        document: its path from the root.
        line: where it stands.
        text: with continued lines joined and comments left out.
        needs: what its block is marked to need, empty for nothing.
    """

    document: str
    line: int
    text: str
    needs: str

    def __str__(self):
        return f"{self.document}:{self.line}: {self.text}"

    @property
    def words(self):
        """The words, without variables before them and with arithmetic of the shell worked out."""
        text = re.sub(r"\$\(\(.*?\)\)", "29500", self.text)
        words = shlex.split(text, comments=True)
        while words and ASSIGNMENT.match(words[0]):
            words.pop(0)
        return words


def commands_of(document):
    """Return the commands of a document, and the lines of marks that no command follows."""
    lines = document.read_text(encoding="utf-8").splitlines()
    found, unused = [], []
    needs, mark_line, is_marked_block = "", 0, False
    language = None  # of the fenced block that the line is in
    pending, start = "", 0
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if fence:
            language = None if language is not None else fence[2]
            continue
        in_block = language in LANGUAGES if language is not None else line.startswith("    ")
        if language is None and (mark := MARK.match(line)):
            if needs and not is_marked_block:
                unused.append(mark_line)
            needs, mark_line, is_marked_block = mark[1], number, False
            continue
        if not in_block:
            if language is None and line.strip():  # text ends the reach of a mark
                if needs and not is_marked_block:
                    unused.append(mark_line)
                needs = ""
            continue
        text = line.strip().removeprefix("$ ")
        if not pending:
            start = number
        pending += text.removesuffix("\\")
        if text.endswith("\\"):
            continue
        command, pending = pending, ""
        for part in re.split(r"\s&&\s", command):
            part = re.sub(r"\s{2,}#.*$|\s{4,}\(.*$", "", part).strip()
            if is_command(part):
                is_marked_block = True
                found.append(Command(os.path.relpath(document, ROOT), start, part, needs))
    if needs and not is_marked_block:
        unused.append(mark_line)
    return found, unused


def is_command(text):
    """Tell whether a line of a block is one to paste: it begins with a program, or with variables for one."""
    rest = text
    while match := ASSIGNMENT.match(rest):
        rest = rest[match.end() :].lstrip()
    if rest != text:
        return True
    first = rest.split(maxsplit=1)[0] if rest else ""
    return first in PROGRAMS or first.endswith(".sh") or first == "eval"
