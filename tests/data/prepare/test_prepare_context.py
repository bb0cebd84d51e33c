"""PASCAL Context's two kinds of annotation, damaged in the ways that files get damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from miniature import MakeTree, Miniature
from PIL import Image
from scipy.io import savemat

from twostage.data.errors import DatasetError
from twostage.data.prepare.pascal_context import plan as plan_context
from twostage.data.prepare.plan import Request
from twostage.data.prepare.run import prepare


def prepared(tree: Miniature, **options: Any) -> None:
    prepare(tree.plan(Request(tree.root, **options)))


Change = Callable[[dict[str, Any]], None]


class TestContextJson:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("annos_segmentation"), "annos_segmentation'.* is missing or odd"),
            (lambda c: c["images"][0].pop("phase"), "phase'.* is missing or odd"),
            (lambda c: c["annos_segmentation"][0].update(category_id="x"), "is missing or odd"),
            (
                lambda c: [one.update(name=f"x{one['name']}") for one in c["categories"]],
                "other names: 2 is 'x",
            ),
            (lambda c: c["images"].pop(1), "expected 2, found 1: the phase 'train' is there in part"),
            (lambda c: c["images"][1].update(file_name="1999_1.jpg"), "1 of 2 have no photo: 1999_1"),
        ],
    )
    def test_structure(self, make_tree: MakeTree, change: Change, message: str) -> None:
        tree = make_tree("pascal_context_59")
        content = json.loads(tree.sources[0].read_text())
        change(content)
        tree.sources[0].write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=message):
            tree.plan(Request(tree.root))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda one: one.update(category_id=460), r"2008_000002: values 460 "),
            (lambda one: one.update(segmentation=[[1, 2, 3, 4]]), "a mask of category .*expected"),
            (lambda one: one["segmentation"].update(size=[40, 6]), r"\(40, 6\) pixels .* \(6, 40\)"),
            (lambda one: one["segmentation"].update(counts="0"), "the runs cover 0 pixels"),
        ],
    )
    def test_masks(self, make_tree: MakeTree, change: Change, message: str) -> None:
        tree = make_tree("pascal_context_59")
        content = json.loads(tree.sources[0].read_text())
        change(content["annos_segmentation"][0])
        tree.sources[0].write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=message):
            prepared(tree)
        assert not (tree.root / "VOC2010/labels_59/val/2008_000002.png").exists()

    def test_cut_off(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        tree.sources[0].write_bytes(tree.sources[0].read_bytes()[:-10])
        with pytest.raises(DatasetError, match="not JSON, or cut off"):
            tree.plan(Request(tree.root))

    def test_no_object(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        tree.sources[0].write_text("[]")
        with pytest.raises(DatasetError, match="expected an object, got list"):
            tree.plan(Request(tree.root))

    def test_neither_kind_of_annotation(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        tree.sources[0].unlink()
        with pytest.raises(DatasetError, match=r"expected trainval_merged\.json, or the folder trainval"):
            tree.plan(Request(tree.root))
        with pytest.raises(DatasetError, match=r"trainval_merged\.json: cannot be read"):
            plan_context(Request(tree.root), annotations="json")

    def test_few_categories_are_not_459(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        with pytest.raises(DatasetError, match=r"categories only, not of 459.*trainval\.tar\.gz"):
            plan_context(Request(tree.root), (459,))

    def test_one_other_name_is_a_warning(self, make_tree: MakeTree, caplog: pytest.LogCaptureFixture) -> None:
        tree = make_tree("pascal_context_59")
        content = json.loads(tree.sources[0].read_text())
        content["categories"][3]["name"] = "dining table"
        tree.sources[0].write_text(json.dumps(content))
        prepared(tree)
        assert "397 is 'dining table', here" in caplog.text

    def test_59_classes_from_matlab_files(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_459")
        splits = plan_context(Request(tree.root, ("val",), allow_partial=True))
        prepare(splits)
        made = np.array(Image.open(tree.root / "VOC2010/labels_59/val/2008_000007.png"))
        raw = tree.expected[tree.root / "VOC2010/labels_459/val/2008_000007.png"] + 1
        np.testing.assert_array_equal(made, np.where(raw == 2, 0, 255))


class TestMatlab:
    def test_no_label_map(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_459")
        savemat(tree.sources[0], {"Other": np.zeros((2, 2))})
        with pytest.raises(DatasetError, match=r"2008_000002\.mat: no LabelMap can be read"):
            prepared(tree)

    def test_no_numbers(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_459")
        savemat(tree.sources[0], {"LabelMap": np.zeros((2, 2, 3))})
        with pytest.raises(DatasetError, match=r"expected a LabelMap \(H, W\)"):
            prepared(tree)

    def test_a_label_beyond_459(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_459")
        savemat(tree.sources[0], {"LabelMap": np.full((5, 7), 460)})
        with pytest.raises(DatasetError, match="values 460"):
            prepared(tree)
