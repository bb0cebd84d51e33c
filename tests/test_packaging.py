"""What the package needs beside its code travels with it."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_data_file_is_declared_as_package_data() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"\[tool\.setuptools\.package-data\]\ntwostage = \[(.*?)\]", text, re.DOTALL)
    assert found is not None
    patterns = [pattern.removeprefix("**/") for pattern in re.findall(r'"(.*?)"', found[1])]
    files = [path for path in (ROOT / "twostage").rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix not in (".py", ".pyc")]
    assert len(data) > 5
    lost = [path.name for path in data if not any(fnmatch(path.name, pattern) for pattern in patterns)]
    assert not lost, f"declare these in [tool.setuptools.package-data]: {lost}"


def test_readme_commands_name_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"(?:configs|docs|datasets|tools|twostage)/[\w./-]+\.\w+", text):
        assert (ROOT / name).is_file(), f"README.md speaks of {name}, which is not there"
