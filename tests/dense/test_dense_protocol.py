"""SCLIP's evaluation as recorded: windows, stitching, words, thresholds; and how photos are fitted."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import cv2
import dense_records as rec
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.dense import _frame
from twostage.dense.readout import ReadoutDense
from twostage.ensembles.per_word import PerWordEnsemble
from twostage.errors import TwostageError
from twostage.ops.fusion import class_maps
from twostage.types import Evidence, TextBank, WordScores
from twostage.vocabulary import Vocabulary


@cache
def recorded_clip() -> Any:
    """What a dense head asks of a ClipModel, around the tower that the records belong to."""
    visual = rec.recorded_tower().visual
    device, dtype = torch.device("cpu"), torch.float32
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return SimpleNamespace(visual=visual, device=device, dtype=dtype, dim=64, mean=mean, std=std)


def words(query_idx: list[int]) -> tuple[TextBank, Vocabulary]:
    class_of = torch.tensor(query_idx)
    count = int(class_of.max()) + 1
    names = tuple(tuple(f"word {row}" for row, k in enumerate(query_idx) if k == one) for one in range(count))
    return TextBank(rec.text(), class_of, count), Vocabulary(names, background=0)


def evaluated(record: dict[str, Any]) -> tuple[Evidence, Vocabulary]:
    """The record's photo through head and ensemble."""
    own = record["options"]
    bank, vocabulary = words(own["query_idx"])
    size = tuple(int(side) for side in record["size"].split("x"))
    config = ReadoutDense.Config(
        preset="sclip",
        window=own["crop"],
        stride=own["stride"] if own["crop"] else 0,
        fit="floor",
        scale=own["logit_scale"],
    )
    with torch.no_grad():
        [rows] = ReadoutDense(config, recorded_clip()).rows([rec.image(size)[0]], bank)
    scores = WordScores(class_maps(rows[None], bank.class_of, bank.num_classes)[0], rows, bank.class_of)
    return Evidence(tuple(own["output_hw"]), dense=scores), vocabulary


@pytest.mark.golden
@pytest.mark.parametrize(
    ("method", "size"), [("sclip_eval_plain", "336x448"), ("sclip_eval_whole", "336x400")]
)
def test_recorded_evaluations(method: str, size: str) -> None:
    record = rec.case(method, size)
    evidence, vocabulary = evaluated(record)
    assert record["options"]["area_thd"] is None
    plain = PerWordEnsemble(PerWordEnsemble.Config(scores=True)).merge(evidence, vocabulary)
    assert plain.scores is not None
    rec.compare(record, "probabilities", plain.scores)
    probability = record["options"]["prob_thd"]
    found = PerWordEnsemble(PerWordEnsemble.Config(probability)).merge(evidence, vocabulary)
    labels, expected = found.labels.numpy(), record["maps"]["labels"]
    assert list(labels.shape) == expected["shape"]
    counts = np.bincount(labels.reshape(-1), minlength=10)
    assert np.abs(counts - np.array(expected["counts"])).sum() <= 0.005 * labels.size
    every_8th = labels[::8, ::8].reshape(-1)
    assert (every_8th != np.array(expected["values_every_8th"])).mean() <= 0.005


def test_a_resize_without_antialias_is_opencvs() -> None:
    image = torch.randint(0, 256, (3, 90, 121), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    for size in ((40, 54), (67, 90), (120, 161)):
        got = _frame.to_pixels(image, size, (0, 0, 0), (1, 1, 1), antialias=False) * 255
        expected = cv2.resize(array, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        off = (got.permute(1, 2, 0) - torch.from_numpy(expected).float()).abs()
        assert float(off.max()) <= 1.001, "OpenCV's weights have eleven bits"
        assert float(off.mean()) < 0.2
        torch.testing.assert_close(got, got.round(), rtol=0, atol=1e-3)
    smooth = _frame.to_pixels(image, (40, 54), (0, 0, 0), (1, 1, 1)) * 255
    rough = _frame.to_pixels(image, (40, 54), (0, 0, 0), (1, 1, 1), antialias=False) * 255
    assert float((smooth - rough).abs().mean()) > 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (336, 448)),
        ((500, 375), (448, 336)),
        ((333, 500), (336, 505)),  # 504.504...
        ((200, 3000), (137, 2048)),  # the long side decides: 136.53
        ((64, 71), (336, 373)),  # 372.75
    ],
)
def test_the_protocols_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert _frame.target_size(size, 336, 2048, (16, 16), "floor") == expected


def test_what_is_less_than_a_patch_is_not_read(vit: ClipModel) -> None:
    """Patches of 8: of 29 x 35 pixels, 24 x 32 are read, and the map is stretched over all."""
    photo = torch.randint(0, 256, (3, 29, 35), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    bank = TextBank(F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(2)), dim=1),
                    torch.arange(3), 3)  # fmt: skip
    head = ReadoutDense(ReadoutDense.Config(fit="floor", short_edge=0, window=64), vit)
    [got] = head.predict([photo], bank)
    [whole] = ReadoutDense(ReadoutDense.Config(fit="floor", short_edge=0), vit).predict([photo], bank)
    part = ReadoutDense(ReadoutDense.Config(short_edge=0), vit)
    [grid] = part.predict([photo[:, :24, :32].contiguous()], bank)
    assert grid.logits.shape == (3, 3, 4)
    torch.testing.assert_close(whole.logits, grid.logits, rtol=1e-5, atol=1e-4)
    expected = F.interpolate(grid.logits[None], (29, 35), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(got.logits, expected, rtol=1e-5, atol=1e-4)
    [tiny] = head.predict([photo[:, :5, :9].contiguous()], bank)
    assert tiny.logits.shape == (3, 5, 9), "less than one patch is padded"


def test_the_scale_replaces_that_of_the_text(vit: ClipModel) -> None:
    photo = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    rows = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(2)), dim=1)
    bank = TextBank(rows, torch.arange(3), 3)

    def logits(**options: Any) -> Tensor:
        [made] = ReadoutDense(ReadoutDense.Config(short_edge=0, **options), vit).predict([photo], bank)
        return made.logits

    torch.testing.assert_close(logits(scale=40.0), logits() * 0.4, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(scale=40.0, logit_factor=0.5), logits() * 0.2, rtol=1e-5, atol=1e-5)
    with pytest.raises(TwostageError, match="scale must be above 0, got 0"):
        ReadoutDense.Config(scale=0.0)


def test_words_are_handed_over_beside_classes(vit: ClipModel) -> None:
    photo = torch.randint(0, 256, (3, 32, 48), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    rows = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(2)), dim=1)
    for options in ({}, {"window": 32, "stride": 16}):
        head = ReadoutDense(ReadoutDense.Config(short_edge=0, **options), vit)
        [each] = head.predict([photo], TextBank(rows, torch.arange(5), 5))
        assert each.rows is each.logits or torch.equal(each.rows, each.logits)
        [both] = head.predict([photo], TextBank(rows, torch.tensor([1, 0, 1, 2, 0]), 3))
        torch.testing.assert_close(both.rows, each.rows)
        assert both.class_of.tolist() == [1, 0, 1, 2, 0]
        torch.testing.assert_close(both.logits[0], torch.maximum(each.logits[1], each.logits[4]))
