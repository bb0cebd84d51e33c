"""Class tokens of masks beside the image, against the whole transformer run once for every mask.

The slow version has the tokens [class, class of the mask, patches] and a matrix that says who may look at
whom; its layers are open_clip's own, called as it calls them.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.classifiers.masked_attention import MaskedAttentionClassifier
from twostage.classifiers.pooled import PooledClassifier
from twostage.clip.model import ClipModel
from twostage.clip.towers import interpolate_positions
from twostage.readout.masked import held_patches
from twostage.readout.vit import DenseTowerError
from twostage.types import Proposals, RegionScores, TextBank

SCALE = 20.0


def bank(classes: int = 4, dim: int = 32) -> TextBank:
    """One row a class, and a second one for class 0."""
    rows = F.normalize(torch.randn(classes + 1, dim, generator=torch.Generator().manual_seed(3)), dim=1)
    return TextBank(rows, torch.tensor([*range(classes), 0]), classes, SCALE)


def photo(size_hw: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=draw)


def masks(size_hw: tuple[int, int] = (32, 32)) -> Proposals:
    """A part, an empty one, everything, a single pixel, a soft one across patches."""
    height, width = size_hw
    made = torch.zeros(5, height, width)
    made[0, 2 : height // 2 + 3, 5 : width // 2 + 1] = 1
    made[2] = 1
    made[3, height // 3, width // 2] = 1
    made[4, height // 4 :, : width // 3] = 0.8
    return Proposals(made, torch.ones(5))


def classify(clip: ClipModel, image: Tensor, found: Proposals, **options: Any) -> RegionScores:
    config = MaskedAttentionClassifier.Config(**{"short_edge": 0, **options})
    return MaskedAttentionClassifier(config, clip).classify([image], [found], bank())[0]


def slow_held(mask: Tensor, grid: tuple[int, int], least: float) -> list[int]:
    """The patches of a mask, by counting its pixels in each patch of 8."""
    counts = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            counts.append(int((mask[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] > 0.5).sum()))
    held = [n for n, count in enumerate(counts) if count >= least * 64]
    return held or [counts.index(max(counts))]


def slow_vector(
    clip: ClipModel, image: Tensor, held: list[int], from_block: int = 0, itself: bool = True
) -> Tensor:
    """(E,) of one mask: tokens 0 (class), 1 (the mask's), 2.. (patches) through every block."""
    visual: Any = clip.visual
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (clip.mean, clip.std))
    patches = visual.conv1(((image.float() / 255 - mean) / std)[None])
    grid = (patches.shape[2], patches.shape[3])
    positions = interpolate_positions(visual.positional_embedding, tuple(visual.grid_size), grid)
    first = visual.class_embedding[None, None]
    tokens = visual.ln_pre(torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + positions)
    tokens = torch.cat([tokens[:, :1], tokens], dim=1)
    length = tokens.shape[1]
    for number, block in enumerate(visual.transformer.resblocks):
        barred = torch.zeros(length, length, dtype=torch.bool)
        barred[:, 1] = True  # nobody sees the token of the mask
        barred[1, 1] = not itself
        barred[1, 0] = True
        for n in range(length - 2):
            barred[1, 2 + n] = n not in held
        if number < from_block:  # the token is the class token still
            barred[1] = barred[0]
        forbidden = torch.zeros(length, length).masked_fill(barred, -math.inf)
        tokens = block(tokens, attn_mask=forbidden)
    made: Tensor = visual.ln_post(tokens[0, 1]) @ visual.proj
    return made


def slow_logits(vector: Tensor) -> list[float]:
    """SCALE times the cosine, the better of two rows for class 0."""
    cosines = [float(F.normalize(vector, dim=0) @ row) for row in bank().features]
    return [SCALE * one for one in (max(cosines[0], cosines[4]), *cosines[1:4])]


@pytest.mark.parametrize("size_hw", [(32, 32), (24, 48)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"itself": False},
        {"from_block": 2},
        {"from_block": 3, "itself": False},
        {"patch_threshold": 0.1, "mask_chunk": 2},
    ],
)
def test_one_pass_gives_what_a_pass_for_every_mask_gives(
    vit: ClipModel, size_hw: tuple[int, int], options: dict[str, Any]
) -> None:
    image, found = photo(size_hw), masks(size_hw)
    scores = classify(vit, image, found, **options)
    assert scores.valid.tolist() == [True, False, True, True, True]
    assert torch.equal(scores.logits[1], torch.zeros(4))
    grid = (size_hw[0] // 8, size_hw[1] // 8)
    least = options.get("patch_threshold", 0.5)
    kept = {name: value for name, value in options.items() if name in ("from_block", "itself")}
    with torch.no_grad():
        for row in (0, 2, 3, 4):
            expected = slow_vector(vit, image, slow_held(found.masks[row], grid, least), **kept)
            torch.testing.assert_close(
                scores.logits[row], torch.tensor(slow_logits(expected)), rtol=1e-4, atol=1e-4
            )


def test_the_image_as_a_whole_is_the_model_s_own(vit: ClipModel) -> None:
    image = photo()
    scores = classify(vit, image, masks())
    assert scores.image is not None
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (vit.mean, vit.std))
    own = vit.encode_images(((image.float() / 255 - mean) / std)[None])[0]
    torch.testing.assert_close(scores.image, torch.tensor(slow_logits(own)), rtol=1e-4, atol=1e-4)


def test_pictures_together_are_pictures_alone(vit: ClipModel) -> None:
    """Of one size with different numbers of masks, none among them, in chunks or not."""
    images = [photo(seed=1), photo(seed=2), photo((24, 40), 3), photo(seed=4)]
    found = [masks(), masks()[[0, 1]], masks((24, 40)), masks()[[]]]
    classifier = MaskedAttentionClassifier(MaskedAttentionClassifier.Config(chunk=2), vit)
    together = classifier.classify(images, found, bank())
    for image, own, scores in zip(images, found, together, strict=True):
        alone = classifier.classify([image], [own], bank())[0]
        torch.testing.assert_close(scores.logits, alone.logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(scores.valid, alone.valid)
    assert len(together[3]) == 0


def test_what_lies_outside_a_mask_reaches_it_through_the_patches_alone(vit: ClipModel) -> None:
    """A token that looks in the last block only sees patches that have seen the image; its own choice of
    patches still matters.
    """
    image, found = photo(), masks()
    first, last = (classify(vit, image, found, from_block=block).logits for block in (0, 3))
    assert not torch.allclose(first, last)
    other = Proposals(found.masks.flip(2), found.scores)
    assert not torch.allclose(first[0], classify(vit, image, other).logits[0])


def test_hard_patches_of_the_pooled_neighbour(vit: ClipModel) -> None:
    """On whole patches it is what `pooled` gives at level "attention" through all blocks."""
    whole = torch.zeros(2, 32, 32)
    whole[0, 8:24, :16] = 1
    whole[1] = 1
    found = Proposals(whole, torch.ones(2))
    config = PooledClassifier.Config(level="attention", blocks=4, itself=True, short_edge=0)
    pooled = PooledClassifier(config, vit).classify([photo()], [found], bank())[0]
    torch.testing.assert_close(classify(vit, photo(), found).logits, pooled.logits, rtol=1e-4, atol=1e-4)


def test_a_resnet_looks_with_its_attention_pool(resnet: ClipModel) -> None:
    image, found = photo((96, 128)), masks((96, 128))
    scores = classify(resnet, image, found)
    cells = torch.stack([m[:96, :128].unflatten(0, (3, 32)).unflatten(2, (4, 32)) for m in found.masks > 0.5])
    shares = cells.float().mean(dim=(2, 4)).flatten(1)
    hard = torch.zeros_like(shares)
    for row, own in enumerate(shares):
        held = [n for n, share in enumerate(own.tolist()) if share >= 0.5] or [int(own.argmax())]
        hard[row, held] = 1.0
    soft = hard.unflatten(1, (3, 4)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    config = PooledClassifier.Config(level="attention", itself=True, short_edge=0)
    cut = Proposals(soft, torch.ones(5))
    pooled = PooledClassifier(config, resnet).classify([image], [cut], bank())[0]
    assert scores.valid.tolist() == [True, False, True, True, True]
    torch.testing.assert_close(scores.logits[scores.valid], pooled.logits[scores.valid], rtol=1e-4, atol=1e-4)


def test_patches_of_a_mask() -> None:
    shares = torch.tensor([[0.6, 0.5, 0.4], [0.1, 0.3, 0.3], [0.0, 0.0, 0.0]])
    assert held_patches(shares, 0.5).tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, False],
    ]
    assert held_patches(shares[:0], 0.5).shape == (0, 3)


def test_the_tower_runs_once_for_all_masks(vit: ClipModel) -> None:
    """The image's 17 tokens go through every block once, with a token a mask beside them."""
    rows: list[int] = []
    visual: Any = vit.visual
    hooks = [
        block.mlp.c_fc.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[1]))
        for block in visual.transformer.resblocks
    ]
    try:
        many = Proposals(masks().masks.repeat(20, 1, 1), torch.ones(100))
        classify(vit, photo(), many)
    finally:
        for hook in hooks:
            hook.remove()
    assert rows == [117, 117, 117, 101]


def test_half_precision() -> None:
    rows = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    text = TextBank(F.normalize(rows, dim=1), torch.arange(3), 3, SCALE)
    low, high = (
        MaskedAttentionClassifier(
            MaskedAttentionClassifier.Config(),
            ClipModel.load("twostage-mini-vit", "random", seed=0, dtype=dtype),
        ).classify([photo()], [masks()], text)[0]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert low.logits.dtype == torch.float32
    torch.testing.assert_close(low.logits, high.logits, rtol=2e-2, atol=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_block": -1}, "from_block must be at least 0"),
        ({"short_edge": -1}, "short_edge must be at least 0"),
        ({"long_edge": 0}, "long_edge must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"mask_chunk": 0}, "mask_chunk must be at least 1"),
        ({"patch_threshold": 0.0}, "patch_threshold must lie above 0"),
        ({"mask_threshold": 1.0}, "mask_threshold must lie in"),
        ({"logit_factor": 0.0}, "logit_factor must be above 0"),
        ({"positions": "bicubik"}, "Did you mean 'bicubic'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedAttentionClassifier.Config(**options)


def test_blocks_that_are_not_there(vit: ClipModel, resnet: ClipModel) -> None:
    with pytest.raises(DenseTowerError, match="0 to 3, a block of test-small-vit, got 4"):
        MaskedAttentionClassifier(MaskedAttentionClassifier.Config(from_block=4), vit)
    with pytest.raises(DenseTowerError, match="a ModifiedResNet has none"):
        MaskedAttentionClassifier(MaskedAttentionClassifier.Config(from_block=1), resnet)


def test_what_does_not_fit_is_refused(vit: ClipModel) -> None:
    classifier = MaskedAttentionClassifier(MaskedAttentionClassifier.Config(), vit)
    with pytest.raises(ValueError, match="got 0 for 1"):
        classifier.classify([photo()], [], bank())
    with pytest.raises(ValueError, match="32 wide, got 16"):
        classifier.classify([photo()], [masks()], bank(dim=16))
    with pytest.raises(ValueError, match="resize the masks"):
        classifier.classify([photo()], [masks((32, 40))], bank())
