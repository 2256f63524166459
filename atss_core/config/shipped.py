"""The configurations that come with the package, found by name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from atss_core.config.reading import check_regular

_PACKAGE = Path(__file__).resolve().parents[1]
# Of a checkout, and of an installed wheel.
_FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")


def find_config(file: str | Path) -> Path:
    """Return the path of a configuration.

    Args:
        file: a path; or the name of a shipped configuration, such as "atss_R_50_FPN_1x"; or its path in the
            repository, "configs/atss/atss_R_50_FPN_1x.yaml", which is found from any folder.

    Raises:
        FileNotFoundError: if there is none; the message proposes the nearest names.
        ValueError: if it is a folder, pipe or device.
    """
    path = Path(os.path.expanduser(file))
    if os.path.isfile(path):
        return path
    shipped = shipped_configs()
    stem = path.name.removesuffix(".yaml")
    found = shipped.get(stem)
    if found is not None and path.parts in ((stem,), (path.name,), ("configs", *found.parts[-2:])):
        return found
    if os.path.lexists(path):
        check_regular(path)
    near = difflib.get_close_matches(stem[:100], shipped, n=2)
    proposal = f"did you mean {' or '.join(near)}?" if near else "the shipped ones are in configs/"
    raise FileNotFoundError(f"no configuration file {file!s:.400}; {proposal}")


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    folder = next((each for each in _FOLDERS if (each / "atss").is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*/*.yaml"))}
