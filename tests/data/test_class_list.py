"""classes.json as people write it, rightly and wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from twostage.data.class_list import read_class_list
from twostage.data.errors import DatasetError, LabelError


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def one(**entry: Any) -> dict[str, Any]:
    return {"classes": [{"id": 1, "name": "cat", **entry}]}


def test_names_synonyms_flags_and_ids(tmp_path: Path) -> None:
    content = {
        "ignore": [0, 255],
        "classes": [
            {"id": 9, "name": "cat"},
            {"id": 2, "name": ["couch", "sofa"], "seen": False},
            {"id": 4, "name": "tree | bush"},
        ],
    }
    classes = read_class_list(written(tmp_path, content))
    assert classes.vocabulary.names == (("cat",), ("couch", "sofa"), ("tree", "bush"))
    assert classes.vocabulary.seen == (True, False, True)
    assert classes.vocabulary.label_ids == (9, 2, 4)
    assert classes.ignore == (0, 255)


def test_one_class_may_be_everything_else(tmp_path: Path) -> None:
    entries = [{"id": 3, "name": "cat"}, {"id": 0, "name": ["sky", "sea"], "background": True}]
    vocabulary = read_class_list(written(tmp_path, {"classes": entries})).vocabulary
    assert (vocabulary.background, vocabulary.shown) == (1, ("cat", "background"))
    assert vocabulary.names == (("cat",), ("sky", "sea"))
    both = [{**entry, "background": True} for entry in entries]
    with pytest.raises(DatasetError, match='2 classes are "background": one at most'):
        read_class_list(written(tmp_path, {"classes": both}))
    with pytest.raises(DatasetError, match="\"background\" of class 'cat' has to be true or false, got 1"):
        read_class_list(written(tmp_path, one(background=1)))


@pytest.mark.parametrize(("given", "expected"), [(0, (0,)), (None, ()), ([7, 0, 7], (0, 7))])
def test_ignore_takes_a_number_a_list_or_null(tmp_path: Path, given: Any, expected: tuple[int, ...]) -> None:
    assert read_class_list(written(tmp_path, {**one(), "ignore": given})).ignore == expected


def test_ignore_is_255_and_flags_are_unknown_by_default(tmp_path: Path) -> None:
    classes = read_class_list(written(tmp_path, "\ufeff" + json.dumps(one())))  # as some editors save it
    assert classes.ignore == (255,)
    assert classes.vocabulary.seen is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{\n"classes": [\n{"id": 1,}\n]}', "line 3"),
        ([], 'a list called "classes"'),
        ({"class": []}, 'a list called "classes"'),
        ({"classes": []}, "empty"),
        ({**one(), "ignored": 0}, "unknown key 'ignored'.*'ignore'"),
        (one(sen=True), "unknown key 'sen'.*'seen'"),
        ({"classes": ["cat"]}, 'entry 0.*"id" and "name"'),
        ({"classes": [{"id": 1}]}, 'entry 0.*"id" and "name"'),
        (one(name=""), 'entry 0.*"name"'),
        (one(name=[]), 'entry 0.*"name"'),
        (one(name=3), 'entry 0.*"name"'),
        (one(name=["a", " "]), 'entry 0.*"name"'),
        (one(id="1"), 'the "id" of class .cat. has to be an integer'),
        (one(id=True), "has to be an integer"),
        (one(id=-1), "has to be an integer"),
        (one(id=65536), "has to be an integer"),
        (one(seen=1), '"seen" of class .cat.'),
        ({**one(), "ignore": "x"}, '"ignore" has to be an integer'),
        ({**one(), "ignore": 1}, 'both the class .cat. and in "ignore"'),
        ({"classes": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}, "id 1 is given to both"),
        (
            {"classes": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog|cat"}]},
            "'cat' occurs for id 1 and id 2",
        ),
        ({"classes": [{"id": 1, "name": "cat|cat"}]}, "'cat' occurs"),
    ],
)
def test_mistakes_are_told_apart(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(DatasetError, match=says) as caught:
        read_class_list(written(tmp_path, content))
    assert "classes.json" in str(caught.value)


def test_missing_file_shows_an_example_that_is_valid(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no class list here") as caught:
        read_class_list(tmp_path / "classes.json")
    example = str(caught.value).split("as in ", 1)[1]
    assert len(read_class_list(written(tmp_path, example)).vocabulary) == 2


def test_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DatasetError, match="UTF-8"):
        read_class_list(tmp_path / "classes.json")


def test_numbers_become_positions(tmp_path: Path) -> None:
    content = {"ignore": 0, "classes": [{"id": 300, "name": "a"}, {"id": 2, "name": "b"}]}
    classes = read_class_list(written(tmp_path, content))
    raw = torch.tensor([[0, 300, 2]], dtype=torch.int32)
    assert classes.to_labels(raw, "x").tolist() == [[-1, 0, 1]]
    strange = torch.tensor([[0, 300, 1], [65535, -5, 1]], dtype=torch.int32)
    assert classes.undeclared(strange) == [-5, 1, 65535]
    assert classes.to_labels(strange, "x", undeclared="ignore").tolist() == [[-1, 0, -1], [-1, -1, -1]]
    with pytest.raises(LabelError, match=r"m\.png: values -5, 1, 65535 \(4 pixels\).*\"ignore\""):
        classes.to_labels(strange, "m.png")
