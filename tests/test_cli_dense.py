"""`twostage dense list`, `show` and `calibrate`, called as a person would."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_parts import write_photo, write_system

from twostage.cli import main
from twostage.cli.dense import chosen
from twostage.cli.dense_table import needs
from twostage.config import load_config
from twostage.errors import TwostageError
from twostage.predict import System
from twostage.readout.preset import BENCHMARKS
from twostage.readout.presets import PRESETS
from twostage.visualize.dense_layout import Layout

Said = pytest.CaptureFixture[str]
DENSE = """
CLIP: {MODEL: twostage-mini-vit, PRETRAINED: random}
PROPOSALS: {NAME: ''}
CLASSIFIER: {NAME: ''}
DENSE: {NAME: readout, OPTIONS: {SHORT_EDGE: 32}}
ENSEMBLE: {OPTIONS: {DENSE_TEMPERATURE: 4.0}}
"""


def system(folder: Path) -> Path:
    path = folder / "dense.yaml"
    path.write_text(f"_BASE_: {write_system(folder)}\n{DENSE}", encoding="utf-8")
    return path


def show(tmp_path: Path, *words: str, classes: str = "cat, sofa|couch, other") -> int:
    photo = write_photo(tmp_path / "photo.png", (24, 36), 1)
    out = str(tmp_path / "sheet.png")
    model = ["--config-file", str(system(tmp_path))]
    return main(["dense", "show", str(photo), "--classes", classes, *model, "-o", out, *words])


def test_every_preset_is_listed_with_its_figures(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["dense", "list"]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    table, paragraphs = re.split(r"\n *\n", said, maxsplit=1)
    flat = " ".join(paragraphs.split())
    for preset in PRESETS.values():
        [row] = [line for line in table.splitlines() if line.split()[:1] == [preset.name]]
        shown = row.split()
        assert shown[1] == ("once" if preset.single_pass else "more")
        figures = [f"{preset.published[name]:.1f}" for name in BENCHMARKS if name in preset.published]
        assert shown[len(shown) - len(figures) :] == figures
        assert f"{preset.name}: {preset.title}" in flat
        assert preset.source in flat
        assert preset.note in flat


def test_everything_as_json(capsys: Said) -> None:
    assert main(["dense", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == list(PRESETS)
    for one in found:
        preset = PRESETS[one["name"]]
        assert (one["single_pass"], one["guest"], one["regions"]) == (
            preset.single_pass,
            preset.guest,
            preset.regions,
        )
        assert one["published"] == dict(preset.published)
        assert one["knobs"]["attention"] == preset.knobs.attention
        assert set(one["choices"]) <= set(one["settings"]) == set(preset.settings)
    assert next(one for one in found if one["name"] == "vanilla")["changed"] == []


def test_what_a_preset_needs() -> None:
    assert needs({"guest": True, "regions": True}) == "model+masks"
    assert needs({"guest": False, "regions": False}) == ""


def test_a_sheet_of_three(tmp_path: Path, capsys: Said) -> None:
    assert show(tmp_path, "--presets", "maskclip, gclip,naclip,gclip", "--top", "2") == 0
    assert f"3 readouts -> {tmp_path / 'sheet.png'}" in capsys.readouterr().out
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    layout = Layout.of((24, 36), 3, 5)
    assert sheet.shape[1] == layout.width + 2 * layout.gap
    tiles = []
    layout = layout.with_legend(1, 40)
    below = sheet.shape[0] - layout.size_hw[0]
    for row in range(3):
        left, top = layout.tile_xy(row, 2)
        tiles.append(sheet[top + below :, left:][: layout.tile_hw[0], : layout.tile_hw[1]])
    assert not np.array_equal(tiles[0], tiles[1]), "each row shows a readout of its own"
    assert not np.array_equal(tiles[1], tiles[2])


def test_a_ready_made_system_and_its_own_words(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "photo.png", (64, 64), 1)
    out = tmp_path / "deep" / "sheet.png"
    words = ["--set", "CLIP.MODEL=twostage-mini-vit", "MODEL.WEIGHTS=", "PROPOSALS.NAME=", "MODEL.DEVICE=cpu"]
    command = ["dense", "show", str(photo), "--model", "shapes", "--presets", "gclip", "-o", str(out), *words]
    assert main(command) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--presets", "glcip"], "Did you mean 'gclip'"),
        (["--presets", " , "], "--presets is empty"),
        (["--top", "-1"], "expected 0 or more"),
        (["--set", "DENSE.NAME=", "PROPOSALS.NAME=tiny_parts:Strips"], "which has no presets"),
        (["--set", "CLIP.MODEL=twostage-mini-rn"], "maskclip"),
    ],
)
def test_mistakes_end_with_one_sentence(tmp_path: Path, capsys: Said, words: list[str], told: str) -> None:
    presets = [] if "--presets" in words else ["--presets", "gclip"]
    assert show(tmp_path, *presets, *words) == 1
    said = capsys.readouterr().err
    assert told in said
    assert said.startswith("Error: ")
    assert not (tmp_path / "sheet.png").exists()


def test_a_photo_that_is_not_there(tmp_path: Path, capsys: Said) -> None:
    command = ["dense", "show", str(tmp_path / "no.png"), "--classes", "a, b"]
    assert main([*command, "--config-file", str(system(tmp_path))]) == 1
    assert "no.png" in capsys.readouterr().err


def test_without_names_all_that_look_once_and_need_nothing() -> None:
    names = [preset.name for preset in chosen(None)]
    assert "gclip" in names
    for preset in PRESETS.values():
        assert (preset.name in names) == (preset.single_pass and not preset.guest and not preset.regions)


def test_looking_gives_the_labels_of_segment_and_the_logits_it_used(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 24, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = System(load_config(system(tmp_path)))
    other = made.read_with("naclip")
    found, logits = other.look(image, "cat, sofa, other")
    fresh = System(load_config(system(tmp_path), ["DENSE.OPTIONS.PRESET=naclip"]))
    assert torch.equal(found.labels, fresh.segment(image, "cat, sofa, other").labels)
    full = torch.nn.functional.interpolate(logits[None], size=(24, 36), mode="bilinear", align_corners=False)
    assert torch.equal(found.labels.long(), full[0].argmax(dim=0))
    raw = System(load_config(system(tmp_path), ["ENSEMBLE.OPTIONS.DENSE_TEMPERATURE=1"])).read_with("naclip")
    torch.testing.assert_close(raw.look(image, "cat, sofa, other")[1], 4 * logits)
    assert made.config.dense.options.get("preset") is None, "the system that was asked stays as it was"


def test_looking_without_a_dense_head(tmp_path: Path) -> None:
    made = System(load_config(write_system(tmp_path)))
    with pytest.raises(TwostageError, match=r"there is no dense map: set DENSE\.NAME readout"):
        made.look(torch.zeros(3, 8, 8, dtype=torch.uint8), "a, b")


def test_a_readout_that_asks_a_second_model(tmp_path: Path, capsys: Said) -> None:
    assert show(tmp_path, "--presets", "proxyclip", "--guest", "clip") == 0
    assert (tmp_path / "sheet.png").is_file()
    assert show(tmp_path, "--presets", "proxyclip") == 1
    assert "asks a second vision model" in capsys.readouterr().err


def test_a_temperature_without_labels(capsys: Said) -> None:
    config = Path(__file__).resolve().parents[1] / "configs/shapes/zero_shot.yaml"
    words = ["--photos", "2", "--dataset", "shapes_val", "--set", "MODEL.WEIGHTS=package:shapes"]
    assert main(["dense", "calibrate", "--config-file", str(config), *words, "MODEL.DEVICE=cpu"]) == 0
    told = re.search(r"DENSE_TEMPERATURE ([\d.]+)", capsys.readouterr().out)
    assert told is not None
    assert 0.05 < float(told[1]) < 50
    assert main(["dense", "calibrate", "--config-file", str(config), *words, "DENSE.NAME="]) == 1
    assert "DENSE.NAME" in capsys.readouterr().err
