"""Agreement of places that look alike, after stitching and before synonyms are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage import registry
from twostage.clip.model import ClipModel
from twostage.dense.readout import ReadoutDense
from twostage.errors import TwostageError
from twostage.ops.label_propagation import propagate
from twostage.ops.pamr import pamr
from twostage.types import TextBank

PAMR: dict[str, Any] = {"post": "pamr", "post_iterations": 3, "post_dilations": [2, 4]}
PROPAGATE: dict[str, Any] = {"post": "propagate", "post_grid": 12}
POSTS = pytest.mark.parametrize("post", [PAMR, PROPAGATE], ids=["pamr", "propagate"])


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def bank(classes: list[int]) -> TextBank:
    draw = torch.randn(len(classes), 32, generator=torch.Generator().manual_seed(9))
    return TextBank(F.normalize(draw, dim=1), torch.tensor(classes), max(classes) + 1)


def head(clip: ClipModel, **options: Any) -> ReadoutDense:
    return ReadoutDense(registry.make_config(ReadoutDense, options), clip)


def normalised(clip: ClipModel, image: Tensor) -> Tensor:
    mean, std = (torch.tensor(one)[:, None, None] for one in (clip.mean, clip.std))
    return (image.float() / 255 - mean) / std


def after(options: dict[str, Any], pixels: Tensor, rows: Tensor, text: TextBank) -> Tensor:
    """The step on (T, H, W) logits at scale 100."""
    if options["post"] == "pamr":
        return pamr(pixels[None], rows[None], options["post_iterations"], options["post_dilations"])[0]
    return propagate(pixels[None], rows[None] / 100, text.features, options["post_grid"])[0] * 100


@POSTS
def test_it_follows_the_resize_and_precedes_synonyms(vit: ClipModel, post: dict[str, Any]) -> None:
    text, image = bank([0, 1, 1, 2]), photo(32, 48)
    (got,) = head(vit, short_edge=0, **post).predict([image], text)
    dense, pixels = head(vit, short_edge=0), normalised(vit, image)
    rows = F.interpolate(dense.logits(pixels[None], text), (32, 48), mode="bilinear", align_corners=False)[0]
    found = after(post, pixels, rows, text)
    expected = torch.stack([found[0], found[1:3].amax(dim=0), found[3]])
    torch.testing.assert_close(got.logits, expected, rtol=1e-5, atol=1e-4)


@POSTS
def test_it_follows_stitching(vit: ClipModel, post: dict[str, Any]) -> None:
    text, image = bank([0, 1, 2]), photo(40, 56)
    window = {"window": 32, "stride": 16, "short_edge": 0}
    (stitched,) = head(vit, **window).predict([image], text)
    (got,) = head(vit, **window, **post).predict([image], text)
    expected = after(post, normalised(vit, image), stitched.logits, text)
    torch.testing.assert_close(got.logits, expected, rtol=1e-5, atol=1e-4)


@POSTS
def test_padding_takes_no_part(vit: ClipModel, post: dict[str, Any]) -> None:
    text, image = bank([0, 1]), photo(29, 33)
    padded = {"fit": "pad", "short_edge": 0}
    (before,) = head(vit, **padded).predict([image], text)
    (got,) = head(vit, **padded, **post).predict([image], text)
    expected = after(post, normalised(vit, image), before.logits, text)
    torch.testing.assert_close(got.logits, expected, rtol=1e-5, atol=1e-4)


@POSTS
@pytest.mark.parametrize("options", [{}, {"fit": "pad", "short_edge": 0}, {"window": 32}], ids=str)
@pytest.mark.parametrize("which", ["vit", "resnet"])
def test_a_batch_is_its_members(
    which: str, options: dict[str, Any], post: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    dense = head(request.getfixturevalue(which), chunk=2, **options, **post)
    images = [photo(45, 70, 1), photo(40, 40, 2), photo(45, 70, 3), photo(1, 1, 4)]
    for image, got in zip(images, dense.predict(images, bank([0, 1, 0])), strict=True):
        (alone,) = dense.predict([image], bank([0, 1, 0]))
        assert got.logits.isfinite().all()
        torch.testing.assert_close(got.logits, alone.logits, rtol=1e-5, atol=1e-4)


@POSTS
def test_one_class_and_an_even_photo(vit: ClipModel, post: dict[str, Any]) -> None:
    even = torch.full((3, 24, 40), 128, dtype=torch.uint8)
    (got,) = head(vit, short_edge=0, **post).predict([even], bank([0]))
    assert got.logits.shape == (1, 24, 40)
    assert got.logits.isfinite().all()


def test_the_scale_of_logits_does_not_matter_to_propagation(vit: ClipModel) -> None:
    image, text = photo(32, 40), bank([0, 1, 2])
    (full,) = head(vit, short_edge=0, **PROPAGATE).predict([image], text)
    (half,) = head(vit, short_edge=0, logit_factor=0.5, **PROPAGATE).predict([image], text)
    torch.testing.assert_close(half.logits * 2, full.logits, rtol=1e-4, atol=1e-4)


def test_synonyms_reach_a_method_that_labels(vit: ClipModel) -> None:
    """Duplicated words of one class change no label of ResCLIP's first look, hence nothing it feeds back."""
    options: dict[str, Any] = {"preset": "resclip", "short_edge": 0, "settings": {"temp_thd": 0.0}}
    rows = bank([0, 1, 2])
    twice = TextBank(torch.cat([rows.features, rows.features]), torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    dense, image = head(vit, **options), photo(32, 48)
    (once,) = dense.predict([image], rows)
    (again,) = dense.predict([image], twice)
    torch.testing.assert_close(again.logits, once.logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"post": "pamer"}, "unknown post 'pamer'. Did you mean 'pamr'"),
        ({"post": "pamr", "post_iterations": 0}, "post_iterations must be at least 1, got 0"),
        ({"post_grid": 0}, "post_grid must be at least 1"),
        ({"post_dilations": ()}, "post_dilations should be distances of 1 pixel or more"),
        ({"post_dilations": (8, 0)}, r"got \(8, 0\)"),
        ({"post": "propagate", "logit_factor": 0.0}, "needs a logit_factor above 0, got 0.0"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TwostageError, match=words):
        ReadoutDense.Config(**options)
