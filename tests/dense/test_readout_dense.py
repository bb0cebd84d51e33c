"""The MaskCLIP head: sizes, batches, windows, padding, synonyms, refinements, and the ResNet readout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twostage import registry
from twostage.clip.model import ClipModel
from twostage.dense import _frame
from twostage.dense.readout import ReadoutDense
from twostage.errors import TwostageError
from twostage.interfaces import DenseHead
from twostage.readout import refine
from twostage.readout.engine import read
from twostage.types import TextBank

MODES: list[dict[str, Any]] = [
    {},
    {"fit": "pad", "short_edge": 0},
    {"window": 32, "stride": 16},
    {"window": 30, "short_edge": 0},
    {"settings": {"prompt_denoise": 0.2, "key_smooth": 1.0}},
    {"positions": "bicubic_scale", "residual": False, "ffn": False},
]


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def bank(rows: int = 4, width: int = 32) -> TextBank:
    features = F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(9)), dim=1)
    return TextBank(features, torch.arange(rows), rows)


def head(clip: ClipModel, **options: Any) -> ReadoutDense:
    return ReadoutDense(registry.make_config(ReadoutDense, options), clip)


def test_found_by_name() -> None:
    assert registry.find("dense", "readout") is ReadoutDense
    assert isinstance(ReadoutDense.tiny(), DenseHead)
    with pytest.raises(registry.ComponentError, match="Did you mean 'window'"):
        registry.make_config(ReadoutDense, {"windw": 3})


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("which", ["vit", "resnet"])
def test_a_batch_is_its_members(which: str, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    dense = head(request.getfixturevalue(which), chunk=2, **options)
    images = [photo(45, 70, 1), photo(40, 40, 2), photo(45, 70, 3), photo(1, 1, 4), photo(45, 70, 5)]
    together = dense.predict(images, bank())
    for image, got in zip(images, together, strict=True):
        (alone,) = dense.predict([image], bank())
        assert got.logits.dtype == torch.float32
        assert got.logits.isfinite().all()
        torch.testing.assert_close(got.logits, alone.logits, rtol=1e-5, atol=1e-4)
    assert dense.predict([], bank()) == []


def test_whole_image_logits_are_scaled_cosines(vit: ClipModel) -> None:
    """At the tower's own size nothing is resized: logits = scale x factor x cosine of each patch."""
    dense = head(vit, short_edge=0, logit_factor=0.5)
    image = photo(32, 40)
    batch = (image.float() / 255 - torch.tensor(vit.mean)[:, None, None]) / torch.tensor(vit.std)[
        :, None, None
    ]
    with torch.no_grad():
        got_rows = read(dense.tower, batch[None], dense.knobs)
    assert got_rows.grid == (4, 5)
    rows = got_rows.unit
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(1, 20))
    expected = 50 * torch.einsum("nd,kd->kn", rows[0], bank().features).reshape(4, 4, 5)
    (got,) = dense.predict([image], bank())
    torch.testing.assert_close(got.logits, expected, rtol=1e-5, atol=1e-4)


def test_one_window_is_the_whole_image(vit: ClipModel) -> None:
    image = photo(40, 48)
    (whole,) = head(vit, short_edge=0).predict([image], bank())
    (window,) = head(vit, short_edge=0, window=64).predict([image], bank())
    expected = F.interpolate(whole.logits[None], size=(40, 48), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(window.logits, expected, rtol=1e-5, atol=1e-4)


def test_overlapping_windows_are_averaged(vit: ClipModel) -> None:
    image = photo(32, 48)
    (got,) = head(vit, short_edge=0, window=32, stride=16).predict([image], bank())
    left, right = (
        head(vit, short_edge=0, window=32).predict([image[:, :, s : s + 32].contiguous()], bank())[0].logits
        for s in (0, 16)
    )
    torch.testing.assert_close(got.logits[..., :16], left[..., :16], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got.logits[..., 32:], right[..., 16:], rtol=1e-5, atol=1e-4)
    middle = (left[..., 16:] + right[..., :16]) / 2
    torch.testing.assert_close(got.logits[..., 16:32], middle, rtol=1e-5, atol=1e-4)


def test_padding_is_centred_and_cut_off(vit: ClipModel) -> None:
    padded, box = _frame.pad_to_cells(torch.ones(1, 3, 29, 33), (8, 8))
    assert padded.shape == (1, 3, 32, 40)
    assert box == (1, 3, 30, 36)
    assert padded.sum() == 3 * 29 * 33
    assert padded[0, 0, 1:30, 3:36].all()
    (got,) = head(vit, fit="pad", short_edge=0).predict([photo(29, 33)], bank())
    assert got.logits.shape == (4, 29, 33)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((480, 640), (448, 2048, "round"), (448, 592)),
        ((480, 640), (448, 2048, "pad"), (448, 597)),
        ((640, 480), (448, 2048, "round"), (592, 448)),
        ((100, 2000), (448, 1024, "pad"), (51, 1024)),
        ((50, 70), (0, 2048, "round"), (48, 64)),
        ((1, 1), (0, 2048, "round"), (16, 16)),
        ((1, 1000), (0, 500, "pad"), (1, 500)),
    ],
)
def test_sizes(size: tuple[int, int], options: tuple[Any, ...], expected: tuple[int, int]) -> None:
    short, long, fit = options
    assert _frame.target_size(size, short, long, (16, 16), fit) == expected


@pytest.mark.parametrize("options", MODES[:3], ids=str)
def test_the_best_synonym_speaks(vit: ClipModel, options: dict[str, Any]) -> None:
    rows = bank(5).features
    synonyms = TextBank(rows, torch.tensor([1, 0, 1, 2, 0]), 3)
    dense = head(vit, **options)
    (every,) = dense.predict([photo(40, 64)], bank(5))
    (classes,) = dense.predict([photo(40, 64)], synonyms)
    each = every.logits
    expected = torch.stack([each[[1, 4]].amax(0), each[[0, 2]].amax(0), each[3]])
    torch.testing.assert_close(classes.logits, expected, rtol=1e-5, atol=1e-4)
    twice = TextBank(torch.cat([rows, rows[:1]]), torch.tensor([1, 0, 1, 2, 0, 1]), 3)
    (repeated,) = dense.predict([photo(40, 64)], twice)
    torch.testing.assert_close(repeated.logits, classes.logits)


def test_resnet_is_the_value_projection(resnet: ClipModel) -> None:
    visual: Any = resnet.visual
    dense = head(resnet, short_edge=0)
    batch = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(batch)))))
        pool = visual.attnpool
        as_convolution = F.conv2d(x, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
        out = F.conv2d(as_convolution, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)
    expected = 100 * torch.einsum("bdhw,td->bthw", F.normalize(out, dim=1), bank().features)
    torch.testing.assert_close(dense.logits(batch, bank()), expected, rtol=1e-4, atol=1e-3)


def test_refinements_by_hand() -> None:
    scores = torch.tensor([[[0.30, 0.28, 0.0], [0.20, 0.2005, 0.0]]])
    dropped = refine.denoise_prompts(scores, 0.6)
    assert dropped[0, :, 2].tolist() == [-100.0, -100.0], "reaches 0.6 nowhere"
    assert dropped[0, 0, 1] == -100, "so does the second"
    assert torch.equal(dropped[..., 0], scores[..., 0])
    keys = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    p = (100 * scores).softmax(-1)
    kept = refine.smooth_by_keys(scores, keys, 0.6)
    assert torch.equal(kept[0, 0], p[0, 0]), "sure enough: its own"
    torch.testing.assert_close(kept[0, 1], 0.6 * p[0, 0] + p[0, 1])
    logits = refine.votes_to_logits(kept)
    torch.testing.assert_close(logits.softmax(-1), kept / kept.sum(-1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_bf16_weights_agree(vit: ClipModel) -> None:
    (full,) = head(vit).predict([photo(40, 64)], bank())
    (half,) = head(vit.to_dtype(torch.bfloat16)).predict([photo(40, 64)], bank())
    torch.testing.assert_close(half.logits / 100, full.logits / 100, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit": "padd"}, "Did you mean 'pad'"),
        ({"positions": "cubic"}, "unknown positions"),
        ({"settings": {"key_norm": "token"}}, "Did you mean 'tokens'"),
        ({"short_edge": -1}, "short_edge must be at least 0"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"window": 32, "stride": 33}, "leaves gaps"),
        ({"settings": {"KEYSMOOTH": 1.0}}, "Did you mean 'key_smooth'"),
        ({"settings": {"key_smooth": "yes"}}, "should be a number"),
        ({"preset": "gclop"}, "Did you mean 'gclip'"),
        ({"preset": "gclip", "attention": "qq + [kk"}, "expected"),
        ({"heads": "all"}, "unknown heads"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TwostageError, match=words):
        ReadoutDense.Config(**options)


def test_bad_input(vit: ClipModel) -> None:
    dense = head(vit)
    with pytest.raises(TwostageError, match="expected text features 32 wide, got 8"):
        dense.predict([photo(8, 8)], bank(3, 8))
    with pytest.raises(TwostageError, match="image 1 should be RGB uint8"):
        dense.predict([photo(8, 8), torch.zeros(3, 8, 8)], bank())
    assert replace(dense.config, chunk=1).chunk == 1


@pytest.mark.parametrize("which", ["vit", "resnet"])
@pytest.mark.parametrize("window", [0, 32])
def test_the_image_as_a_whole_is_clips_own_answer(
    which: str, window: int, request: pytest.FixtureRequest
) -> None:
    """At the tower's own size, by open_clip's own forward, whatever the knobs do to the map."""
    clip: ClipModel = request.getfixturevalue(which)
    rows = F.normalize(torch.randn(4, clip.dim, generator=torch.Generator().manual_seed(1)), dim=1)
    text = TextBank(rows, torch.tensor([0, 1, 2, 0]), 3, 20.0)
    size = clip.image_size
    draw = torch.Generator().manual_seed(2)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=draw) for _ in range(3)]
    maps = head(clip, image=True, chunk=2, window=window, logit_factor=0.5).predict(images, text)
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (clip.mean, clip.std))
    for image, found in zip(images, maps, strict=True):
        with torch.no_grad():
            unit = F.normalize(clip.visual(((image / 255 - mean) / std)[None]), dim=1)[0]
        cosines = rows @ unit
        expected = 10 * torch.stack([torch.maximum(cosines[0], cosines[3]), cosines[1], cosines[2]])
        assert found.image is not None
        torch.testing.assert_close(found.image, expected, rtol=1e-4, atol=1e-4)
    assert head(clip).predict(images[:1], text)[0].image is None
