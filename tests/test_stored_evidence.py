"""Evidence on disk: what comes back, and sweeps over it that equal the pipeline without any network."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_parts import write_system

from twostage.builder import Builder
from twostage.clip.model import ClipModel
from twostage.data import catalog
from twostage.evaluation import runner
from twostage.maskformer.network import MaskFormer
from twostage.ops.fusion import class_maps
from twostage.runs import ablation, stored_evidence
from twostage.runs.ablation import Options, measure
from twostage.runs.ablation_results import evidence_digest
from twostage.runs.ablation_table import Table, read_table
from twostage.runs.remembering import META, remembering
from twostage.runs.stored_evidence import TOLERANCE, StoreError, read_evidence, to_device, write_evidence
from twostage.types import DenseScores, Evidence, Proposals, RegionScores, WordScores

ROOT = Path(__file__).resolve().parents[1]


def soft_masks(stride: int, size_hw: tuple[int, int] = (53, 70)) -> torch.Tensor:
    """As a mask network makes them: logits at a stride, enlarged with the padding, cut, sigmoid."""
    draw = torch.Generator().manual_seed(stride)
    padded = [-(-side // 32) * 32 for side in size_hw]
    logits = 6 * torch.randn(1, 6, padded[0] // stride, padded[1] // stride, generator=draw) - 4
    full = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)[0]
    return full[:, : size_hw[0], : size_hw[1]].sigmoid()


def evidence(masks: torch.Tensor, classes: int = 5) -> Evidence:
    draw = torch.Generator().manual_seed(1)
    count = len(masks)
    valid = torch.arange(count) % 3 > 0
    first = RegionScores(
        torch.randn(count, classes, generator=draw), torch.ones_like(valid), torch.zeros(count)
    )
    second = RegionScores(30 * torch.randn(count, classes, generator=draw), valid)
    proposals = Proposals(masks, torch.rand(count, generator=draw), logits=first, source="test")
    return Evidence(
        (80, 91), proposals, first, second, DenseScores(torch.randn(classes, 4, 5, generator=draw))
    )


def returned(tmp_path: Path, given: Evidence) -> Evidence:
    write_evidence(tmp_path / "one.npz", given)
    return read_evidence(tmp_path / "one.npz")


@pytest.mark.parametrize("count", [0, 6])
def test_hard_masks_and_scores_come_back_exactly(tmp_path: Path, count: int) -> None:
    given = evidence(soft_masks(4)[:count] > 0.5)
    back = returned(tmp_path, given)
    assert back.size_hw == given.size_hw
    assert back.proposals is not None
    assert given.proposals is not None
    assert torch.equal(back.proposals.masks, given.proposals.masks)
    assert torch.equal(back.proposals.scores, given.proposals.scores)
    assert back.proposals.source == "test"
    for name in ("stage_one", "regions"):
        one, other = getattr(back, name), getattr(given, name)
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.valid, other.valid)
        assert (one.no_object is None) == (other.no_object is None)
    assert back.dense is not None
    assert given.dense is not None
    assert torch.equal(back.dense.logits, given.dense.logits)
    assert back.proposals.logits is back.stage_one


def test_what_was_said_of_the_whole_image_comes_back(tmp_path: Path) -> None:
    plain = evidence(soft_masks(4) > 0.5)
    assert plain.regions is not None
    assert plain.dense is not None
    regions, dense = replace(plain.regions, image=torch.rand(5)), replace(plain.dense, image=torch.rand(5))
    given = replace(plain, regions=regions, dense=dense)
    for back in (returned(tmp_path, given), stored_evidence.to_device(given, torch.device("cpu"))):
        for name in ("regions", "dense"):
            assert torch.equal(getattr(back, name).image, getattr(given, name).image)
        assert back.stage_one is not None
        assert back.stage_one.image is None
    unsaid = returned(tmp_path, plain)
    assert unsaid.dense is not None
    assert unsaid.dense.image is None


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_soft_masks_are_kept_at_the_networks_stride(tmp_path: Path, stride: int) -> None:
    masks = soft_masks(stride)
    back = returned(tmp_path, evidence(masks)).proposals
    assert back is not None
    assert float((back.masks - masks).abs().max()) <= TOLERANCE
    with np.load(tmp_path / "one.npz") as stored:
        assert int(stored["stride"]) == stride
        assert stored["coarse"].dtype == np.float16
        assert stored["coarse"].size <= 1.4 * masks.numel() / stride**2


def test_faint_masks_stay_faint(tmp_path: Path) -> None:
    """Their order decides pixels that no mask claims, so a small probability is no zero."""
    masks = torch.full((2, 20, 20), 1e-6)
    masks[1] = 1e-9
    back = returned(tmp_path, evidence(masks)).proposals
    assert back is not None
    torch.testing.assert_close(back.masks, masks, rtol=0.02, atol=0)
    sure = torch.zeros(2, 8, 8)
    sure[0] = 1
    back = returned(tmp_path, evidence(sure)).proposals
    assert back is not None
    torch.testing.assert_close(back.masks, sure, rtol=0, atol=1e-6)


def test_dense_alone(tmp_path: Path) -> None:
    back = returned(tmp_path, Evidence((9, 8), dense=DenseScores(torch.eye(4)[:, :, None])))
    assert (back.proposals, back.stage_one, back.regions) == (None, None, None)
    assert back.dense is not None
    assert back.dense.logits.shape == (4, 4, 1)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    write_evidence(path, evidence(soft_masks(4)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StoreError, match=r"one\.npz: stored evidence is damaged"):
        read_evidence(path)
    buffer = io.BytesIO()
    np.savez(buffer, wrong=np.zeros(1))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(StoreError, match="damaged"):
        read_evidence(path)


def test_per_pixel_maps_are_refused(tmp_path: Path) -> None:
    given = Evidence((9, 8), pixels=DenseScores(torch.zeros(2, 3, 3)))
    with pytest.raises(StoreError, match="PIXELS"):
        write_evidence(tmp_path / "one.npz", given)


SWEEP = """
TITLE: Weights
BASE: {base}
SET: [MODEL.WEIGHTS=package:shapes, 'DATASETS.TEST=[shapes_val]', TEST.MAX_IMAGES=6]
SYSTEM: {system}
COLUMNS: [seen, unseen, hIoU]
SWEEP: {{KEY: ENSEMBLE.OPTIONS.WEIGHT, VALUES: {values}}}
"""


def sweep(folder: Path, values: list[float], system: str = "ensemble") -> Table:
    path = folder / "sweep.yaml"
    base = ROOT / "configs" / "shapes" / "zero_shot.yaml"
    path.write_text(SWEEP.format(base=base, values=values, system=system))
    return read_table(path)


def no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise AssertionError("a network was asked")

    for owner, name in (
        (ClipModel, "load"),
        (ClipModel, "encode_images"),
        (MaskFormer, "forward"),
        (Builder, "text"),
    ):
        monkeypatch.setattr(owner, name, fails)
    for name in ("clip", "weights", "trained"):
        monkeypatch.setattr(Builder, name, property(fails))


def test_a_stored_sweep_is_the_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of the networks but for 0.01; further weights need no network."""
    values, later = [0.4, 0.9], [0.0, 0.6]
    plain = measure(sweep(tmp_path, [*values, *later]), Options(tmp_path / "plain.json"))
    store = tmp_path / "store"
    first = measure(sweep(tmp_path, values), Options(tmp_path / "first.json", store))
    no_networks(monkeypatch)
    second = measure(sweep(tmp_path, later), Options(tmp_path / "second.json", store))
    again = measure(sweep(tmp_path, values), Options(tmp_path / "third.json", store))
    assert len(list(store.glob("*/*.npz"))) == 6
    for name, row in (first.found | second.found).items():
        for column in ("seen", "unseen", "hIoU", "mIoU", "pAcc"):
            assert row[column] == pytest.approx(plain.found[name][column], abs=0.01), (name, column)
    assert len({row["hIoU"] for row in plain.found.values()}) == 4, (
        "weights that change nothing prove nothing"
    )
    for name, row in again.found.items():
        assert row["hIoU"] == first.found[name]["hIoU"], "first and later runs read the same files"


def test_label_maps_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = sweep(tmp_path, [0.5])
    builder = Builder(table.rows[0].config)
    dataset = catalog.get("shapes_val")
    real, words = builder.segmenter(), builder.words(dataset.vocabulary)
    images = [dataset[index].image for index in range(4)]
    expected = [real.segment([image], words)[0].labels for image in images]
    folder = tmp_path / "store"
    ensemble = builder.component("ensembles", builder.config.ensemble)
    kept, own = remembering(folder, ensemble, builder.device, lambda: (real, words))
    kept.gather(images, own)
    no_networks(monkeypatch)
    assert own.vocabulary == words.vocabulary
    got = [found.labels for found in kept.segment(images, own)]
    different = sum(int((one != other).sum()) for one, other in zip(got, expected, strict=True))
    assert different <= sum(labels.numel() for labels in expected) / 10_000
    assert {path.name for path in folder.iterdir()} >= {META}
    with pytest.raises(StoreError, match="oracle of masks"):
        kept.gather(images[:1], own, [Proposals(torch.zeros(0, 4, 4), torch.zeros(0))])


def test_an_interrupted_store_asks_for_the_rest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_system(tmp_path)
    path = tmp_path / "table.yaml"
    path.write_text(
        "BASE: system.yaml\n"
        "SET: ['DATASETS.TEST=[shapes_val]', TEST.MAX_IMAGES=5, MODEL.MASK_FORMER.BACKBONE=small]\n"
        "SWEEP: {KEY: ENSEMBLE.OPTIONS.WEIGHT, VALUES: [0.5]}\n"
    )
    store, written = tmp_path / "store", list[str]()
    real = stored_evidence.write_evidence

    def noted(file: Path, found: Evidence) -> None:
        written.append(file.name)
        real(file, found)

    monkeypatch.setattr("twostage.runs.remembering.write_evidence", noted)
    few = measure(read_table(path, ["TEST.MAX_IMAGES=2"]), Options(tmp_path / "r.json", store))
    digests = {evidence_digest(read_table(path, [f"TEST.MAX_IMAGES={n}"]).rows[0].config) for n in (2, 5)}
    assert len(digests) == 1, "one store serves any number of photos"
    assert len(written) == 2
    all_five = measure(read_table(path), Options(tmp_path / "r.json", store))
    assert len(written) == len(set(written)) == 5
    assert few.found["0.5"]["images"] == 2
    plain = measure(read_table(path), Options(tmp_path / "plain.json"))
    assert all_five.found["0.5"]["mIoU"] == plain.found["0.5"]["mIoU"], "hard masks: exactly"


def test_what_is_not_stored_is_measured_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_system(tmp_path)
    path = tmp_path / "table.yaml"
    path.write_text(
        "BASE: system.yaml\nCOLUMNS: [mIoU]\n"
        "SET: ['DATASETS.TEST=[shapes_val]', TEST.MAX_IMAGES=2, MODEL.MASK_FORMER.BACKBONE=small]\n"
        "ROWS:\n- {NAME: truth, SYSTEM: oracle masks}\n- {NAME: mirrored, SET: [TEST.AUG.ENABLED=true]}\n"
    )
    measured = measure(read_table(path), Options(tmp_path / "r.json", tmp_path / "store"))
    assert set(measured.found) == {"truth", "mirrored"}
    assert "recall_50" in measured.found["mirrored"]
    assert "recall_50" not in measured.found["truth"], "the recall would be that of other masks"
    assert not (tmp_path / "store").exists()


def test_a_damaged_description(tmp_path: Path) -> None:
    (tmp_path / META).write_text("{}")
    with pytest.raises(StoreError, match=r"store\.json: the store's description is damaged"):
        remembering(tmp_path, None, torch.device("cpu"), lambda: pytest.fail("not asked"))  # type: ignore[arg-type]


def test_stores_know_their_rows(tmp_path: Path) -> None:
    """Other scores need another folder; other weights of the ensemble do not."""
    table = sweep(tmp_path, [0.1, 0.2])
    assert len({evidence_digest(row.config) for row in table.rows}) == 1
    other = read_table(table.path, ["CLIP.TEMPLATES=vild"])
    assert evidence_digest(other.rows[0].config) != evidence_digest(table.rows[0].config)
    assert runner is ablation.runner


@pytest.mark.parametrize("class_of", [[0, 1, 1, 2], [0, 1, 2, 3]])
def test_the_words_of_a_dense_map_come_back(tmp_path: Path, class_of: list[int]) -> None:
    rows, index = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1)), torch.tensor(class_of)
    maps = class_maps(rows[None], index, max(class_of) + 1)[0]
    whole = torch.arange(float(len(maps)))
    back = returned(tmp_path, Evidence((9, 8), dense=WordScores(maps, rows, index, image=whole)))
    for dense in (back.dense, to_device(back, torch.device("cpu")).dense):
        assert isinstance(dense, WordScores)
        assert torch.equal(dense.logits, maps)
        assert torch.equal(dense.rows, rows)
        assert dense.image is not None
        assert torch.equal(dense.image, whole)
        assert dense.class_of.tolist() == class_of
