"""The dense readout with a second vision model, and along the masks of stage one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_parts import Strips
from torch import Tensor

from twostage import registry
from twostage.clip.model import ClipModel
from twostage.dense import _frame
from twostage.dense.readout import ReadoutDense
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.errors import TwostageError
from twostage.interfaces import DenseHead, RegionDenseHead
from twostage.segmenter import Segmenter, Words
from twostage.types import Proposals, TextBank
from twostage.views import TestSize
from twostage.vocabulary import Vocabulary

MODES: list[dict[str, Any]] = [
    {},
    {"fit": "pad", "short_edge": 0},
    {"window": 32, "stride": 16},
    {"window": 30, "short_edge": 0},
]
HERE = "tests.dense.test_readout_guest"


def colours(rgb: Tensor) -> Tensor:
    """A guest: colours and their squares at half the size."""
    small = F.avg_pool2d(rgb, 2) - 0.5
    return torch.cat([small, 4 * small**2 - 0.3], dim=1)


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw)


def bank(rows: int = 4, width: int = 32) -> TextBank:
    features = F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(9)), dim=1)
    return TextBank(features, torch.arange(rows), rows)


def head(clip: ClipModel, **options: Any) -> ReadoutDense:
    return ReadoutDense(registry.make_config(ReadoutDense, options), clip)


def masks(image: Tensor, count: int, soft: bool = False) -> Proposals:
    """Upright strips of the left part, the last mask empty."""
    found = torch.zeros(count, *image.shape[1:])
    for at in range(count - 1):
        found[at, :, 10 * at : 10 * at + 10] = 0.8
    return Proposals(found if soft else found > 0.5, torch.ones(count))


@pytest.mark.parametrize("guest", ["clip", f"{HERE}:colours"])
@pytest.mark.parametrize("preset", ["proxyclip", "cass"])
def test_a_batch_is_its_members(vit: ClipModel, preset: str, guest: str) -> None:
    for options in ({}, {"window": 32, "stride": 16}):
        dense = head(vit, preset=preset, guest=guest, chunk=2, **options)
        assert isinstance(dense, DenseHead)
        assert not dense.wants_regions
        images = [photo(45, 70, 1), photo(40, 40, 2), photo(45, 70, 3)]
        for image, found in zip(images, dense.predict(images, bank()), strict=True):
            assert found.logits.isfinite().all()
            [alone] = dense.predict([image], bank())
            torch.testing.assert_close(found.logits, alone.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_every_image_has_its_own_masks(vit: ClipModel, options: dict[str, Any]) -> None:
    dense = head(vit, preset="corrclip", guest=f"{HERE}:colours", chunk=2, **options)
    assert isinstance(dense, RegionDenseHead)
    assert dense.wants_regions
    images = [photo(45, 70, 1), photo(40, 40, 2), photo(45, 70, 3), photo(45, 70, 1)]
    given = [masks(images[0], 5), masks(images[1], 3, soft=True), masks(images[2], 2), masks(images[3], 0)]
    before = [one.masks.clone() for one in given]
    found = dense.predict(images, bank(), given)
    assert all(torch.equal(one.masks, kept) for one, kept in zip(given, before, strict=True))
    for image, own, got in zip(images, given, found, strict=True):
        [alone] = dense.predict([image], bank(), [own])
        assert got.logits.isfinite().all()
        torch.testing.assert_close(got.logits, alone.logits, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[0].logits, found[3].logits, atol=1e-2), "the masks make a difference"
    assert dense.predict([], bank(), []) == []


def test_masks_go_where_their_pixels_go() -> None:
    """A mask painted into an image ends where the image's own paint ends, resized and padded."""
    image = torch.zeros(3, 30, 50, dtype=torch.uint8)
    image[:, 6:22, 10:33] = 255
    mask = image[:1] > 0
    for size in ((30, 50), (45, 61), (16, 24)):
        pixels = _frame.to_pixels(image, size, (0, 0, 0), (1, 1, 1))[None]
        padded, inside = _frame.pad_to_cells(pixels, (8, 8))
        moved = _frame.to_masks(mask, size, torch.device("cpu"))
        assert (moved.dtype == torch.bool) == (size == (30, 50))
        found = _frame.pad_masks([moved], (padded.shape[-2], padded.shape[-1]), inside)
        assert found is not None
        torch.testing.assert_close(found[0].float(), padded[0, :1], rtol=0, atol=1e-5)
    assert _frame.to_masks(mask[:0], (8, 9), torch.device("cpu")).shape == (0, 8, 9)
    assert _frame.pad_masks(None, (8, 8), (0, 0, 8, 8)) is None


def test_the_whole_flow(vit: ClipModel) -> None:
    dense = head(vit, preset="corrclip", guest="clip")
    words = Words(Vocabulary.from_words("a, b, c, d"), bank())
    flow = Segmenter(GeometricEnsemble.tiny(), Strips(Strips.Config(3)), dense=dense, size=TestSize(0))
    image = photo(40, 56)
    [evidence] = flow.gather([image], words)
    assert evidence.proposals is not None
    assert evidence.dense is not None
    [expected] = dense.predict([image], bank(), [evidence.proposals])
    torch.testing.assert_close(evidence.dense.logits, expected.logits)
    with pytest.raises(TwostageError, match=r"DENSE.NAME: ReadoutDense .* set PROPOSALS.NAME"):
        Segmenter(GeometricEnsemble.tiny(), dense=dense)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"preset": "proxyclip"},
            "proxyclip asks a second vision model, and guest is empty: set it to 'clip'",
        ),
        ({"preset": "naclip", "guest": "clip"}, "naclip asks no second vision model, got guest 'clip'"),
        ({"preset": "proxyclip", "guest": "clip", "settings": {"grid": "guests"}}, "Did you mean 'guest'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TwostageError, match=words):
        ReadoutDense.Config(**options)


def test_bad_input(vit: ClipModel) -> None:
    with pytest.raises(TwostageError, match="Guest 'clap': expected"):
        head(vit, preset="cass", guest="clap")
    dense = head(vit, preset="corrclip", guest="clip")
    images = [photo(40, 40), photo(40, 48)]
    with pytest.raises(
        TwostageError, match="corrclip looks along stage one's masks, a set an image, got none"
    ):
        dense.predict(images, bank())
    with pytest.raises(TwostageError, match="got 1 for 2 images"):
        dense.predict(images, bank(), [masks(images[0], 2)])
    with pytest.raises(TwostageError, match=r"image 1 is \(40, 48\) pixels, its masks \(40, 40\)"):
        dense.predict(images, bank(), [masks(images[0], 2)] * 2)
