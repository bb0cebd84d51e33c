"""Names, and what lies behind them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from twostage.data import catalog
from twostage.data.errors import DatasetError
from twostage.data.folder import FolderDataset

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_registered", {})


def test_folders_by_path(make_folder: MakeFolder) -> None:
    root = make_folder("train", "val")
    assert catalog.get(f"folder:{root}@val").name == "mine@val"
    assert catalog.get("folder:mine@train", root=root.parent).name == "mine@train"
    with pytest.raises(DatasetError, match="no split 'test'"):
        catalog.get(f"folder:{root}@test")
    with pytest.raises(DatasetError, match="needs a path"):
        catalog.get("folder:")


def test_an_at_sign_in_a_folder_name(make_folder: MakeFolder, tmp_path: Path) -> None:
    odd = tmp_path / "me@home"
    make_folder().rename(odd)
    assert catalog.get(f"folder:{odd}").name == "me@home"


def test_registered_names(make_folder: MakeFolder) -> None:
    roots = []

    def factory(root: Path | None) -> FolderDataset:
        roots.append(root)
        return FolderDataset(make_folder())

    catalog.register("my_photos", factory)
    assert "my_photos" in catalog.names()
    assert roots == []  # nothing is read before it is asked for
    assert catalog.get("my_photos", root="somewhere").name == "mine"
    assert roots == [Path("somewhere")]
    for taken in ("my_photos", "shapes_train"):
        with pytest.raises(DatasetError, match="exists already"):
            catalog.register(taken, factory)
    for odd in ("", "folder:x"):
        with pytest.raises(DatasetError, match="Cannot register"):
            catalog.register(odd, factory)


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(DatasetError, match=r"'shape_train'.*Did you mean 'shapes_train'.*folder:PATH"):
        catalog.get("shape_train")


@pytest.mark.parametrize("name", ["shapes_train", "shapes_val", "shapes_test"])
def test_embedded_world(name: str) -> None:
    dataset = catalog.get(name)
    sample = dataset[0]
    assert sample.labels is not None
    assert sample.image.shape[1:] == sample.labels.shape
    assert int(sample.labels.max()) < len(dataset.vocabulary)


def test_import_registers_and_reads_nothing() -> None:
    code = (
        "import sys, twostage\n"
        "assert not any(m.startswith('twostage.data') for m in sys.modules), 'import twostage loads data'\n"
        "from twostage.data import catalog\n"
        "assert catalog._registered == {}\n"
        "assert not any(m.startswith('twostage.data.shapes') for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
