"""`twostage proposals`: pictures, stored masks and numbers, held against masks known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import write_photo, write_system

from twostage.cli import main
from twostage.cli.proposals import own_options
from twostage.config import ConfigError
from twostage.data.errors import LabelError
from twostage.evaluation.recall import best_ious
from twostage.ops.mask_statistics import mask_statistics
from twostage.proposals.cached import CachedConfig, CachedProposals
from twostage.types import Proposals
from twostage.visualize.palette import VOID_COLOUR
from twostage.visualize.proposals import proposal_overlay

Said = pytest.CaptureFixture[str]
STRIPS = "tiny_parts:Strips"
"""Three upright strips that cover the whole photo, without overlap."""


def propose(tmp_path: Path, *words: str, source: str = STRIPS) -> int:
    out, table = tmp_path / "out", tmp_path / "table.json"
    model = ["--model", str(write_system(tmp_path))]
    return main(["proposals", *words, "--source", source, *model, "-o", str(out), "--json", str(table)])


def table(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "table.json").read_text())
    return content


def write_labels(path: Path, rows: list[list[int]], times: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(rows, np.uint8).repeat(times, 0).repeat(times, 1)
    Image.fromarray(array).save(path)
    return path


def test_pictures_masks_and_a_table(tmp_path: Path, capsys: Said) -> None:
    photos = [write_photo(tmp_path / "photos" / f"{name}.png", (20, 30)) for name in ("beach", "forest")]
    assert propose(tmp_path, str(photos[0].parent)) == 0
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == [
        *(f"{name}_{kind}.png" for name in ("beach", "forest") for kind in ("masks", "overlay")),
        "masks/beach.npz",
        "masks/forest.npz",
    ]
    found = table(tmp_path)
    assert found["source"] == {"name": STRIPS, "options": {}}
    first = found["photos"][0]
    assert (first["name"], first["photo"], first["masks"]) == ("beach", str(photos[0]), 3)
    assert (first["height"], first["width"]) == (20, 30)
    assert first["area_percent"] == pytest.approx({"min": 100 / 3, "median": 100 / 3, "max": 100 / 3})
    assert (first["covered_percent"], first["overlap"], first["true_regions"]) == (100, 1, None)
    assert found["all"]["masks"] == 3
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    assert ["beach", "3", "33.33", "33.33", "33.33", "100.0", "1.00"] in lines
    assert ["all", "2", "3", "33.33", "33.33", "33.33", "100.0", "1.00"] in lines
    assert "2 of 2 photos drawn" in said.out
    assert "R@" not in said.out
    assert said.err == ""


@pytest.mark.parametrize("save", ["npz", "coco", "none"])
def test_what_is_stored_is_what_cached_reads(tmp_path: Path, save: str, capsys: Said) -> None:
    photo = write_photo(tmp_path / "beach.png", (20, 30))
    for _ in range(2):  # a second run takes the place of the first
        assert propose(tmp_path, str(photo), "--save", save, "--sheet", "0") == 0
    path = tmp_path / "out" / ("masks.json" if save == "coco" else "masks")
    assert path.exists() is (save != "none")
    assert not (tmp_path / "out" / "beach_masks.png").exists()
    if save == "none":
        return
    assert f"PROPOSALS.NAME cached in {path}" in capsys.readouterr().out
    (found,) = CachedProposals(CachedConfig(str(path))).propose_for(["beach"], [(20, 30)])
    assert torch.equal(
        found.masks, torch.arange(30)[None].expand(20, 30) // 10 == torch.arange(3)[:, None, None]
    )
    again = propose(tmp_path, str(photo), "--set", f"path={path}", "--save", "none", source="cached")
    assert again == 0
    assert table(tmp_path)["photos"][0]["masks"] == 3


def test_recall_against_regions_by_hand(tmp_path: Path, capsys: Said) -> None:
    """Strips of 10 columns against regions 0..10 (IoU 1), 10..18 (.8) and 18..30 without two ignored columns
    (10/10 after ignoring, so 1) and a photo whose only region is everything (1/3).
    """
    write_photo(tmp_path / "photos" / "beach.png", (20, 30))
    write_photo(tmp_path / "photos" / "whole.jpg", (20, 30))
    row = [4] * 10 + [9] * 8 + [255] * 2 + [0] * 10
    write_labels(tmp_path / "labels" / "beach.png", [row] * 20)
    write_labels(tmp_path / "labels" / "whole.png", [[7] * 30] * 20)
    assert propose(tmp_path, str(tmp_path / "photos"), "--labels", str(tmp_path / "labels")) == 0
    beach, whole = table(tmp_path)["photos"]
    assert beach["true_regions"] == 3
    assert beach["recall_percent"] == {"50": 100, "75": 100, "90": 100}
    assert beach["mean_best_iou_percent"] == pytest.approx(100), "ignored pixels count for nobody"
    assert whole["recall_percent"] == {"50": 0, "75": 0, "90": 0}
    everything = table(tmp_path)["all"]
    assert everything["recall_percent"] == {"50": 75, "75": 75, "90": 75}
    assert everything["mean_best_iou_percent"] == pytest.approx(100 * (3 + 1 / 3) / 4)
    assert "R@.90" in capsys.readouterr().out
    words = ["--labels", str(tmp_path / "labels"), "--ignore", "0", "7"]
    assert propose(tmp_path, str(tmp_path / "photos"), *words) == 0
    beach, whole = table(tmp_path)["photos"]
    assert beach["true_regions"] == 3, "255 is a region now, 0 is none"
    assert beach["mean_best_iou_percent"] == pytest.approx(100 * (1 + 0.8 + 0.2) / 3)
    assert (whole["true_regions"], whole["mean_best_iou_percent"]) == (0, None)


def test_labels_may_be_larger_than_the_photo(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "beach.png", (10, 15))
    labels = write_labels(tmp_path / "truth.png", [[1] * 10 + [2] * 20] * 20)
    assert propose(tmp_path, str(photo), "--labels", str(labels)) == 0
    assert table(tmp_path)["photos"][0]["recall_percent"] == {"50": 100, "75": 50, "90": 50}


def test_one_bad_photo_does_not_stop_the_others(tmp_path: Path, capsys: Said) -> None:
    folder = tmp_path / "photos"
    write_photo(folder / "beach.png", (20, 30))
    write_photo(folder / "wide.png", (20, 60))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    for name in ("beach", "wide"):
        write_labels(tmp_path / "labels" / f"{name}.png", [[1] * 30] * 20)
    assert propose(tmp_path, str(folder), "--labels", str(tmp_path / "labels")) == 1
    said = capsys.readouterr()
    assert "1 of 3 photos drawn" in said.out
    assert "broken.jpg" in said.err
    assert "wide.png is 60 x 20 (width x height), but its label map" in said.err
    assert [photo["name"] for photo in table(tmp_path)["photos"]] == ["beach"]
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["beach.npz"]


def test_nothing_but_bad_photos(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    assert propose(tmp_path, str(tmp_path / "broken.jpg"), "--save", "coco") == 1
    assert table(tmp_path)["all"]["masks"] == 0


def test_no_masks_at_all(tmp_path: Path, capsys: Said) -> None:
    photo = write_photo(tmp_path / "beach.png", (20, 30))
    labels = write_labels(tmp_path / "beach_labels.png", [[1] * 30] * 20)
    assert propose(tmp_path, str(photo), "--set", "count=0", "--labels", str(labels)) == 0
    assert ["beach", "0", "-", "-", "-", "0.0", "-", "0.0", "0.0", "0.0", "0.0"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_the_oracle_takes_its_masks_from_the_labels(tmp_path: Path, capsys: Said) -> None:
    photo = write_photo(tmp_path / "beach.png", (20, 30))
    labels = write_labels(tmp_path / "truth.png", [[3] * 15 + [8] * 15] * 20)
    assert propose(tmp_path, str(photo), "--labels", str(labels), source="oracle") == 0
    assert table(tmp_path)["photos"][0]["recall_percent"]["90"] == 100
    assert propose(tmp_path, str(photo), source="oracle") == 1
    assert "oracle cuts masks out of the ground truth: give --labels" in capsys.readouterr().err


def test_the_shipped_network_by_default(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "beach.png", (40, 60))
    words = ["proposals", str(photo), "-o", str(tmp_path / "out"), "--json", str(tmp_path / "table.json")]
    assert main([*words, "--source", "maskformer"]) == 0
    assert table(tmp_path)["source"]["name"] == "maskformer"
    assert table(tmp_path)["photos"][0]["masks"] == 24
    assert table(tmp_path)["photos"][0]["height"] == 160


@pytest.mark.parametrize(
    ("words", "source", "message"),
    [
        (["{photo}"], "sem", "unknown component 'sem'. Did you mean 'sam'"),
        (["{photo}", "--set", "cuont=2"], STRIPS, "Strips has no option 'cuont'. Did you mean 'count'"),
        (["{photo}", "--set", "INPUT.MIN_SIZE=2"], STRIPS, "unknown option INPUT.MIN_SIZE"),
        (["{photo}", "--model", "shape"], STRIPS, "Did you mean 'shapes'"),
        (["{photo}", "--labels", "nowhere"], STRIPS, "there is no nowhere"),
        (["{photo}", "--labels", "{folder}"], STRIPS, "holds no label map of any photo, such as beach.png"),
        (["{photo}", "{other}", "--labels", "{photo}"], STRIPS, "is one file, but there are 2 photos"),
        (["{photo}", "--sheet", "-1"], STRIPS, "expected 0 or more masks"),
        (["nowhere.jpg"], STRIPS, "No such file or folder"),
        (["{photo}"], "cached", "the option 'path' has no default"),
    ],
)
def test_mistakes_end_with_one_sentence(
    tmp_path: Path, capsys: Said, words: list[str], source: str, message: str
) -> None:
    photo, other = (write_photo(tmp_path / name) for name in ("beach.png", "other.png"))
    folder = tmp_path / "empty"
    folder.mkdir()
    given = [word.format(photo=photo, other=other, folder=folder) for word in words]
    model = [] if "--model" in words else ["--model", str(write_system(tmp_path))]
    assert main(["proposals", *given, "--source", source, *model, "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert message in said
    assert not (tmp_path / "out").exists()


def test_options_by_their_bare_names() -> None:
    from twostage.proposals.sam import SamProposals

    assert own_options(SamProposals, ["points_per_side=16", "INPUT.MIN_SIZE_TEST=640", "SEED=3"]) == [
        "PROPOSALS.OPTIONS.points_per_side=16",
        "INPUT.MIN_SIZE_TEST=640",
        "SEED=3",
    ]
    assert own_options(SamProposals, ["MAX_MASKS", "7"]) == ["PROPOSALS.OPTIONS.MAX_MASKS", "7"]
    assert own_options(None, ["a=1"]) == ["a=1"]
    with pytest.raises(ConfigError, match="SamProposals has no option 'points_per_sid'"):
        own_options(SamProposals, ["points_per_sid=16"])


def test_statistics_by_hand() -> None:
    masks = torch.zeros(4, 4, 5)
    masks[0, :2] = 0.6
    masks[1, :, 0] = 0.9
    masks[2] = 0.5  # not above the threshold
    found = mask_statistics(masks)
    assert found.areas == (0.5, 0.2, 0, 0)
    assert found.count == 4
    assert found.covered == pytest.approx((10 + 2) / 20)
    assert found.overlap == pytest.approx((10 + 4) / 12)
    assert mask_statistics(masks > 0.5) == found
    nothing = mask_statistics(torch.zeros(0, 4, 5, dtype=torch.bool))
    assert (nothing.areas, nothing.covered, nothing.overlap) == ((), 0, None)


def test_best_ious_by_hand() -> None:
    labels = torch.tensor([[0, 0, 2, 2, -1]] * 2)
    masks = torch.tensor([[True, True, True, False, False], [False, False, True, True, True]])
    found = Proposals(masks[:, None].expand(2, 2, 5).contiguous(), torch.ones(2))
    classes, ious = best_ious(found, labels, 3)
    assert classes.tolist() == [0, 2]
    assert ious.tolist() == pytest.approx([2 / 3, 1])
    assert best_ious(found[[]], labels, 3)[1].tolist() == [0, 0]
    assert best_ious(found, torch.full((2, 5), -1), 0)[1].tolist() == []


def test_the_overlay_shows_small_masks_on_large_ones() -> None:
    image = torch.full((3, 600, 800), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 600, 800)
    masks[0, 200:300, 200:300] = 0.7  # the smaller one comes first, and still lies on top
    masks[1, 100:500, 100:500] = 1
    picture = proposal_overlay(image, Proposals(masks, torch.ones(2)), alpha=0.5)
    assert picture.shape == (600, 800, 3)
    inner, outer, outside = picture[250, 250], picture[400, 400], picture[50, 700]
    assert len({tuple(colour) for colour in (inner, outer, outside)}) == 3
    assert outside.tolist() == [round((100 + VOID_COLOUR[0]) / 2)] * 3
    rim = picture[100, 300].astype(int)
    np.testing.assert_allclose(outer, (100 + rim) / 2, atol=1, err_msg="the rim has the mask's own colour")
    empty = proposal_overlay(image[:, :10, :10], Proposals(torch.zeros(0, 10, 10), torch.zeros(0)))
    assert empty.shape == (520, 520, 3)
    with pytest.raises(LabelError, match="its proposals"):
        proposal_overlay(image[:, :10], Proposals(masks, torch.ones(2)))
