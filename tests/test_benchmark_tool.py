"""`tools/benchmark.py` at tiny sizes: what its reports hold, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.readout.engine import Tower
from twostage.readout.presets import PRESETS

TOOLS = Path(__file__).resolve().parents[1] / "tools"
Said = pytest.CaptureFixture[str]
TINY = ["--model", "twostage-mini-vit", "--dtype", "fp32", "--rounds", "1", "--classes", "4"]


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    try:
        import benchmark  # type: ignore[import-not-found]

        return benchmark
    finally:
        sys.path.remove(str(TOOLS))


def test_dense_takes_every_preset_that_looks_once(tools: ModuleType, tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "dense.json"
    assert tools.main(["dense", *TINY, "--size", "64x32", "--windows", "4", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    able = [p.name for p in PRESETS.values() if p.single_pass and not p.guest and not p.regions]
    result = report["results"]["fp32"]
    assert list(result["presets"]) == able
    for row in result["presets"].values():
        assert set(row) == {
            "median_wall_s",
            "ratio_to_encoder",
            "ratio_to_encoder_cpu_time",
            "ratio_to_native",
            "ratio_to_native_cpu_time",
        }
        assert row["ratio_to_encoder"] == pytest.approx(
            row["median_wall_s"] / result["encoder"]["median_wall_s"]
        )
        assert row["ratio_to_native"] == pytest.approx(
            row["median_wall_s"] / result["native"]["median_wall_s"]
        )
    assert set(result["wall_s"]) == {"open_clip visual()", "Tower.native", *able}
    assert all(len(rounds) == 1 for rounds in result["wall_s"].values())
    cell = Tower(ClipModel.load("twostage-mini-vit", "random", seed=0).visual).cell_hw
    assert report["tokens"] == 1 + (64 // cell[1]) * (32 // cell[0])
    assert report["machine"]["cores"] >= 1
    [memory] = report["memory"]
    assert memory["windows"] == 4
    assert memory["above_model_mib"] >= 0.5 * memory["map_mib"], "the class map itself has to be held"
    assert memory["map_mib"] == 4 * memory["image_size"] ** 2 * 4 / 2**20
    said = capsys.readouterr().out
    assert all(name in said for name in able)
    assert "4 windows of" in said


def test_what_is_asked_for_alone(tools: ModuleType) -> None:
    import bench_dense  # type: ignore[import-not-found]

    options = tools.parse(
        ["dense", *TINY, "--size", "32x32", "--presets", "gclip", "--windows", "--batch", "2"]
    )
    report = options.run(options)
    assert list(report["results"]["fp32"]["presets"]) == ["gclip"]
    assert report["memory"] == []
    assert report["batch"] == 2
    assert "gclip" in bench_dense.table(report)


def test_the_bare_tower_is_open_clips_own(tools: ModuleType) -> None:
    """At the native size it is the unchanged tower; at another it agrees with our own native forward."""
    import bench_dense

    visual = ClipModel.load("twostage-mini-vit", "random", seed=0).visual
    tall, wide = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    before = visual.positional_embedding.detach().clone()
    for size in ((tall, wide), (2 * tall, wide)):
        pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            own = bench_dense.encoder(visual, pixels)(pixels)
            ours = Tower(visual).native(pixels)[:, 0]
        torch.testing.assert_close(own, ours, rtol=1e-4, atol=1e-5)
    assert torch.equal(visual.positional_embedding, before)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--presets", "glcip"], "Did you mean 'gclip'"),
        (["--size", "33x32"], "expected multiples of a patch"),
        (["--memory-presets", "glcip"], "Did you mean 'gclip'"),
    ],
)
def test_mistakes_end_with_one_sentence(tools: ModuleType, capsys: Said, words: list[str], told: str) -> None:
    assert tools.main(["dense", *TINY, "--windows", *words]) == 1
    assert told in capsys.readouterr().err


def test_presets_that_need_more_are_refused(tools: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    import bench_dense

    guest = dataclasses.replace(PRESETS["gclip"], name="with_guest", guest=True)
    monkeypatch.setitem(PRESETS, "with_guest", guest)
    assert "with_guest" not in bench_dense.chosen(None)
    with pytest.raises(TwostageError, match="needs a second model or masks"):
        bench_dense.chosen(["with_guest"])


def test_a_failing_memory_process_says_why(tools: ModuleType) -> None:
    import bench_dense

    options = tools.parse(["dense", *TINY, "--model", "nobody"])
    with pytest.raises(TwostageError, match="nobody"):
        bench_dense._memory(options, "maskclip", "fp32", 4)


def test_stage_two_as_before(tools: ModuleType, capsys: Said) -> None:
    words = ["stage2", *TINY[2:], "--model", "twostage-mini-vit", "--masks", "3", "--size", "64x48"]
    assert tools.main([*words, "--chunk", "2"]) == 0
    assert "stage 2 s" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tools.parse(["stage2", "--size", "large"])
    assert "WIDTHxHEIGHT" in capsys.readouterr().err


SMALL = ["--model", "twostage-mini-vit", "--backbone", "small", "--masks", "12", "--size", "100x80"]
SMALL += ["--short-edge", "96", "--classes", "9", "--rounds", "1"]


def test_the_pipeline_and_its_yardstick_agree(tools: ModuleType, tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "pipeline.json"
    assert tools.main(["pipeline", *SMALL, "--avoiding", "--no-peaks", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    exact = report["modes"]["exact, fp32"]
    assert exact["equal_labels"] > 0.999
    assert report["modes"]["bounded"]["equal_labels"] == report["modes"]["exact, bf16 CLIP"]["equal_labels"]
    assert exact["speedup_over_yardstick"] == pytest.approx(
        report["wall_s"]["yardstick"][0] / report["wall_s"]["exact, fp32"][0]
    )
    assert set(report["stages"]["exact, fp32"]) == {"propose", "classify", "merge", "rest", "total"}
    assert "filled patches left out" in report["modes"]
    assert "stage two over bare CLIP" in capsys.readouterr().out


def test_a_peak_comes_from_a_process_of_its_own(tools: ModuleType) -> None:
    arguments = tools.parse(["pipeline", *SMALL])
    assert 0 <= tools.bench_pipeline._peak_of(arguments, "exact, fp32") < 500


def test_trained_networks_in_the_drawn_world(tools: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "world.json"
    assert tools.main(["world", "--scenes", "2", "--vit", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["modes"]
    assert rows["bounded"]["identical_scenes"] == 2
    assert rows["exact, fp32"]["equal_labels"] > 0.999
    assert 0 < rows["winners of 16 pixels"]["masks_looked_at"] < 1
