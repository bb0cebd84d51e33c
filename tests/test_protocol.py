"""The eight standard evaluations: what each preset gets, written down a second time, and what is expected."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twostage import registry
from twostage.config import Config, ConfigError, load_config
from twostage.data import catalog, vocabularies
from twostage.data.benchmarks import BENCHMARKS as BENCHMARK_ROWS
from twostage.data.image_io import write_label_png
from twostage.dense.readout import ReadoutDense
from twostage.ensembles.per_word import PerWordEnsemble
from twostage.evaluation import expected
from twostage.evaluation.provenance import dense_facts
from twostage.protocol import DATA_SETS, TOLERANCE, published, settled
from twostage.readout import presets, protocols
from twostage.readout.preset import BENCHMARKS
from twostage.runs.ablation_table import read_table
from twostage.runs.evaluation import evaluate

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = {
    "VOC21": "voc21",
    "Context60": "context60",
    "COCO-Object": "coco_object",
    "VOC20": "voc20",
    "Context59": "context59",
    "COCO-Stuff": "coco_stuff",
    "Cityscapes": "cityscapes",
    "ADE20K": "ade20k",
}
# preset: short sides, windows, scales, then probability and area with background; in the order of FILES
SIZES: dict[str, tuple[list[int], list[int], list[int], list[float], float]] = {
    "sclip": (
        [336, 336, 336, 336, 336, 448, 560, 336],
        [224] * 8,
        [65, 50, 50, 40, 40, 40, 40, 40],
        [0.1, 0.1, 0.1],
        0.1,
    ),
    "clearclip": ([448] * 8, [448] * 6 + [224, 448], [50] * 8, [0.5, 0.15, 0.4], 0.0),
    "naclip": ([336] * 6 + [560, 336], [0, 224, 224, 0] + [224] * 4, [40] * 8, [0.1, 0.1, 0.1], 0.0),
    "pearl": ([336] * 6 + [560, 336], [0, 224, 224, 0] + [224] * 4, [40] * 8, [0.1, 0.1, 0.1], 0.0),
    "scclip": (
        [336] * 6 + [560, 336],
        [224] * 8,
        [50, 40, 55, 40, 40, 40, 40, 40],
        [0.15, 0.15, 0.35],
        0.1,
    ),
    "sfp": (
        [336] * 6 + [560, 384],
        [224] * 8,
        [50, 40, 55, 40, 40, 40, 40, 40],
        [0.15, 0.15, 0.35],
        0.1,
    ),
    "cass": ([336] * 6 + [560, 336], [0] + [224] * 7, [40] * 8, [0.1, 0.1, 0.1], 0.0),
    "proxyclip": ([336] * 6 + [448, 448], [336] * 6 + [224, 336], [40] * 8, [0.2, 0.15, 0.25], 0.0),
}


@functools.cache
def config_of(benchmark: str, *words: str) -> Config:
    return load_config(CONFIGS / "dense" / f"{FILES[benchmark]}.yaml", words)


def with_preset(benchmark: str, preset: str) -> Config:
    config = config_of(benchmark)
    options = {**config.dense.options, "preset": preset}
    return replace(config, dense=replace(config.dense, options=options))


def test_every_benchmark_has_a_file_a_table_and_a_data_set() -> None:
    assert tuple(FILES) == BENCHMARKS == tuple(DATA_SETS)
    for folder in ("dense", "ablations/dense"):
        names = {path.stem for path in (CONFIGS / folder).glob("*.yaml")} - {"Base"}
        assert names == set(FILES.values())
    for names in DATA_SETS.values():
        assert set(names) <= set(catalog.names())
    for benchmark in FILES:
        assert config_of(benchmark).test.protocol == benchmark
        assert config_of(benchmark).output_dir == f"output/dense/{FILES[benchmark]}"


@pytest.mark.parametrize("preset", sorted(SIZES))
def test_settings_of_the_public_code(preset: str) -> None:
    shorts, windows, scales, probabilities, area = SIZES[preset]
    for place, benchmark in enumerate(FILES):
        found = protocols.find(preset, benchmark)
        assert (found.short_edge, found.window, found.scale) == (
            shorts[place],
            windows[place],
            scales[place],
        ), benchmark
        background = place < 3
        assert found.probability == (probabilities[place] if background else 0.0)
        assert found.area == (area if benchmark == "VOC21" else 0.0)
        assert found.plain == (preset == "clearclip")
        step = {0: 0, 224: 112, 336: 112, 448: 224}[found.window]
        assert found.stride == step


def test_every_preset_gets_options_that_its_parts_take() -> None:
    for preset in presets.PRESETS:
        for benchmark in FILES:
            full = settled(with_preset(benchmark, preset))
            registry.make_config(ReadoutDense, full.dense.options)
            registry.make_config(PerWordEnsemble, full.ensemble.options)
            assert settled(full) == full, "settling twice adds nothing"


def test_the_published_figure_is_expected() -> None:
    for preset in presets.PRESETS.values():
        for place, benchmark in enumerate(FILES):
            full = settled(with_preset(benchmark, preset.name))
            figure = preset.published.get(benchmark)
            assert published(full) == figure
            [name] = full.datasets.test
            assert name in DATA_SETS[benchmark]
            assert name.endswith("_plain_val") == (
                place in (0, 2, 3) and protocols.find(preset.name, benchmark).plain
            )
            rows = expected.parse(full.test.expected_results, [name], ["ensemble"])
            if figure is None or preset.name in protocols.NOT_EXPECTED:
                assert rows == []
            else:
                [row] = rows
                assert (row.metric, row.percent, row.tolerance) == ("mIoU", figure, 1.5)
    assert TOLERANCE == 1.5


def test_numbers_chosen_for_a_benchmark() -> None:
    """Corners of the papers' tables."""
    more = lambda preset, benchmark: dict(protocols.find(preset, benchmark).more)
    assert more("resclip", "VOC21")["settings"] == {
        "lambda_r": 0.3, "tau_s": 2.2, "lambda_s": 0.7, "temp_thd": 0.5
    }  # fmt: skip
    assert more("resclip", "Cityscapes")["settings"]["lambda_r"] == 0.2
    assert more("cass", "ADE20K")["settings"] == {"class_mix": 0.3, "text_move": 0.05, "text_height": 0.06}
    assert more("cass", "VOC20")["guest"] == more("proxyclip", "VOC20")["guest"]
    assert "dino" in more("proxyclip", "VOC20")["guest"]
    assert more("pearl", "VOC21") == {"post": "propagate"}
    assert more("pearl", "Cityscapes")["post_grid"] == 224
    assert "0.3 * kk_centred" in more("pearl", "ADE20K")["attention"]
    assert more("sclip", "VOC21") == {}


def test_figures_by_hand() -> None:
    """As the papers print them."""
    for preset, benchmark, figure in (
        ("sclip", "VOC21", 59.1),
        ("clearclip", "ADE20K", 16.7),
        ("naclip", "Cityscapes", 35.5),
        ("gclip", "COCO-Stuff", 24.8),
        ("maskclip", "VOC20", 74.9),
        ("pearl", "VOC20", 86.9),
    ):
        full = settled(with_preset(benchmark, preset))
        assert [row[3] for row in full.test.expected_results] == [figure]


@pytest.mark.parametrize(
    "word",
    [
        "DENSE.OPTIONS.WINDOW=336",
        "DENSE.OPTIONS.FFN=false",
        "DENSE.OPTIONS.SCALE=100",
        "ENSEMBLE.OPTIONS.PROBABILITY=0.3",
        "ENSEMBLE.NAME=geometric",
        "CLIP.MODEL=ViT-L-14-quickgelu",
        "CLIP.PRETRAINED=some.pt",
        "CLIP.TEMPLATES=single",
        "DATASETS.TEST=[voc21_plain_val]",
        "INPUT.MIN_SIZE_TEST=512",
        "TEST.AUG.ENABLED=true",
        "TEST.CRF.ENABLED=true",
        "TEST.WINDOW.SIZE=[224]",
        "TEST.SYSTEMS=[dense]",
    ],
)
def test_what_differs_from_the_publication_is_kept_and_no_figure_expected(word: str) -> None:
    given = config_of("VOC21", word)
    full = settled(given)
    assert full.test.expected_results == []
    for name, value in given.dense.options.items():
        assert full.dense.options[name] == value
    for name, value in given.ensemble.options.items():
        assert full.ensemble.options[name] == value
    assert full.datasets.test == (given.datasets.test or ["voc21_val"])


def test_what_changes_no_number_keeps_the_figure() -> None:
    words = ("DENSE.OPTIONS.CHUNK=2", "DENSE.OPTIONS.WINDOW=224", "ENSEMBLE.OPTIONS.CONFIDENCE=true")
    assert len(settled(config_of("VOC21", *words)).test.expected_results) == 1
    own: list[Any] = ["voc21_val", "ensemble", "mIoU", 60.0, 2.0]
    full = settled(config_of("VOC21", "TEST.EXPECTED_RESULTS=[[voc21_val, ensemble, mIoU, 60.0, 2.0]]"))
    assert full.test.expected_results == [own], "one's own figure comes before the published one"


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ConfigError, match=r"TEST\.PROTOCOL: unknown evaluation 'VOC22'\. Did you mean 'VOC2"):
        settled(load_config(None, ["TEST.PROTOCOL=VOC22"]))
    with pytest.raises(ConfigError, match=r"TEST\.PROTOCOL VOC21 is for DENSE\.NAME readout, got ''"):
        settled(load_config(None, ["TEST.PROTOCOL=VOC21"]))
    plain = load_config(None)
    assert settled(plain) is plain


@pytest.mark.parametrize("benchmark", list(FILES))
def test_tables_have_a_row_a_preset_with_its_figure(benchmark: str) -> None:
    table = read_table(CONFIGS / "ablations" / "dense" / f"{FILES[benchmark]}.yaml")
    for row in table.rows:
        figure = presets.find(row.name).published.get(benchmark)
        assert row.paper == ({} if figure is None else {"mIoU": figure})
        assert row.config.dense.options["preset"] == row.name
        assert len(row.config.datasets.test) == 1
    assert {"vanilla", "sclip", "clearclip", "naclip", "gclip"} <= {row.name for row in table.rows}


def test_a_whole_evaluation_records_words_and_reading(tmp_path: Path) -> None:
    """Two photos in VOC's layout, the miniature CLIP: what was filled in is used, and told in the results."""
    for stem, seed in (("a", 1), ("b", 2)):
        draw = np.random.default_rng(seed)
        labels = np.kron(draw.integers(0, 21, (3, 4)), np.ones((10, 10), int))
        folder = BENCHMARK_ROWS["voc21_val"].image_folder(tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(folder / f"{stem}.jpg")
        write_label_png(BENCHMARK_ROWS["voc21_val"].label_folder(tmp_path) / f"{stem}.png", labels)
    words = ["CLIP.MODEL=twostage-mini-vit", "CLIP.PRETRAINED=", "CLIP.TEMPLATES=single", "CLIP.CACHE_DIR="]
    words += [f"DATASETS.ROOT={tmp_path}", f"OUTPUT_DIR={tmp_path / 'out'}", "MODEL.DEVICE=cpu"]
    config = load_config(CONFIGS / "dense" / "voc21.yaml", [*words, "DENSE.OPTIONS.SHORT_EDGE=64"])
    outcomes = evaluate(config)
    assert outcomes["voc21_val"].images == 2
    stored = json.loads((tmp_path / "out" / "inference" / "results.json").read_text(encoding="utf-8"))
    origin = stored["provenance"]
    vocabulary = vocabularies.load("voc21").vocabulary
    assert origin["vocabulary"]["digest"] == vocabulary.digest
    assert origin["vocabulary"]["digest"] != vocabularies.load("voc21_plain").vocabulary.digest
    assert origin["dense"]["preset"] == "sclip"
    assert origin["dense"]["knobs"]["attention"] == "qq + kk"
    assert origin["dense"]["digest"] == presets.find("sclip").facts()["digest"]
    assert "as OpenCV, rounded to grey levels (dense head)" in origin["resize_backend"]
    assert origin["config"]["dense"]["options"]["scale"] == 65.0
    assert origin["config"]["dense"]["options"]["short_edge"] == 64
    assert origin["config"]["ensemble"]["options"] == {"probability": 0.1, "area": 0.1}
    assert stored["expected"] == []


def test_a_digest_follows_knobs_and_settings() -> None:
    own = dense_facts("readout", {"preset": "maskclip"})
    assert own["component"] == "readout"
    assert own["digest"] == dense_facts("readout", {"preset": "maskclip", "window": 224})["digest"]
    others = [
        {"preset": "sclip"},
        {"preset": "maskclip", "ffn": False},
        {"preset": "maskclip", "settings": {"key_smooth": 1.0}},
        {"preset": "maskclip", "suppress": [3]},
    ]
    assert len({own["digest"], *(dense_facts("readout", other)["digest"] for other in others)}) == 5
    assert dense_facts("whole_image", {}) == {"component": "whole_image"}
    assert dense_facts("", {}) == {}
