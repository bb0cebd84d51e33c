"""The files of one segmented photo, read back with Pillow and json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.data.errors import DataError, LabelError
from twostage.types import Segmentation
from twostage.visualize import overlay, write_segmentation
from twostage.vocabulary import Vocabulary

WORDS = Vocabulary((("cat",), ("sofa", "couch"), ("Übergröße",)))
IMAGE = torch.zeros(3, 4, 6, dtype=torch.uint8)


def labels() -> torch.Tensor:
    out = torch.full((4, 6), -1, dtype=torch.int32)
    out[:, :3] = 1
    out[0, 3:] = 2
    return out


def test_three_files_say_the_same(tmp_path: Path) -> None:
    info = {"proposals": 7, "seconds": 0.5, "place": Path("x"), "steps": [1, (2,)]}
    files = write_segmentation(tmp_path, "a photo", IMAGE, Segmentation(labels(), info=info), WORDS)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["a photo.json", "a photo_labels.png", "a photo_overlay.png"]
    with Image.open(files.labels) as stored:
        assert stored.mode == "L"
        values = np.array(stored)
    assert np.array_equal(values, np.where(labels() == -1, 255, labels()))
    with Image.open(files.overlay) as stored:
        assert np.array_equal(np.array(stored), overlay(IMAGE, labels(), WORDS))
    summary = json.loads(files.summary.read_text(encoding="utf-8"))
    assert (summary["height"], summary["width"], summary["void_code"]) == (4, 6, 255)
    assert (summary["void_pixels"], summary["void_share"]) == (9, 9 / 24)
    assert summary["labels_file"] == "a photo_labels.png"
    assert summary["info"] == {"proposals": 7, "seconds": 0.5, "place": "x", "steps": [1, [2]]}
    assert summary["classes"] == [
        {"name": "sofa", "synonyms": ["couch"], "id": 1, "pixels": 12, "share": 0.5, "score": None},
        {"name": "Übergröße", "synonyms": [], "id": 2, "pixels": 3, "share": 0.125, "score": None},
    ]


def test_scores_are_means_over_the_pixels_of_the_class(tmp_path: Path) -> None:
    confidence = torch.arange(4 * 6, dtype=torch.float32).reshape(4, 6) / 24
    made = Segmentation(labels(), confidence=confidence)
    classes = json.loads(write_segmentation(tmp_path, "x", IMAGE, made, WORDS).summary.read_text())["classes"]
    assert classes[0]["score"] == pytest.approx(confidence[:, :3].mean().item())
    assert classes[1]["score"] == pytest.approx(confidence[0, 3:].mean().item())


@pytest.mark.parametrize(("count", "void", "bits"), [(255, 255, 8), (256, 65535, 16), (847, 65535, 16)])
def test_many_classes_take_sixteen_bits(tmp_path: Path, count: int, void: int, bits: int) -> None:
    vocabulary = Vocabulary(tuple((f"c{k}",) for k in range(count)))
    values = torch.tensor([[0, count - 1, -1]])
    files = write_segmentation(tmp_path, "x", IMAGE[:, :1, :3], Segmentation(values), vocabulary)
    assert files.labels.read_bytes()[24] == bits  # from the PNG header: Pillow's mode depends on its version
    with Image.open(files.labels) as stored:
        assert np.array(stored).tolist() == [[0, count - 1, void]]
    assert json.loads(files.summary.read_text())["void_code"] == void


def test_label_ids_of_the_vocabulary_are_written(tmp_path: Path) -> None:
    vocabulary = Vocabulary((("cat",), ("sofa",)), label_ids=(17, 255))
    files = write_segmentation(
        tmp_path, "x", IMAGE[:, :1, :3], Segmentation(torch.tensor([[0, 1, -1]])), vocabulary
    )
    with Image.open(files.labels) as stored:
        assert np.array(stored).tolist() == [[17, 255, 65535]]
    assert [entry["id"] for entry in json.loads(files.summary.read_text())["classes"]] == [17, 255]


def test_a_picture_without_any_class(tmp_path: Path) -> None:
    files = write_segmentation(tmp_path, "x", IMAGE, Segmentation(torch.full((4, 6), -1)), WORDS)
    summary = json.loads(files.summary.read_text())
    assert summary["classes"] == []
    assert summary["void_share"] == 1.0


def test_stems_may_name_folders_but_not_leave_the_output(tmp_path: Path) -> None:
    files = write_segmentation(tmp_path / "out", "holiday/v1.2", IMAGE, Segmentation(labels()), WORDS)
    assert files.summary == tmp_path / "out" / "holiday" / "v1.2.json"
    assert files.overlay.exists()
    for stem in ("", "../x", "/x", "a/../../x"):
        with pytest.raises(DataError, match="below the output folder"):
            write_segmentation(tmp_path / "out", stem, IMAGE, Segmentation(labels()), WORDS)


def test_what_cannot_be_stored_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="label map"):
        write_segmentation(tmp_path, "x", IMAGE, Segmentation(labels().T.contiguous()), WORDS)
    with pytest.raises(LabelError, match="expected integer labels"):
        write_segmentation(tmp_path, "x", IMAGE, Segmentation(labels() + 1), WORDS)
    wide = Vocabulary((("cat",),), label_ids=(70000,))
    with pytest.raises(DataError, match="do not fit a PNG"):
        write_segmentation(tmp_path, "x", IMAGE, Segmentation(torch.zeros(4, 6, dtype=torch.int64)), wide)
    assert list(tmp_path.iterdir()) == []
