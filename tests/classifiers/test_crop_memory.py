"""Crops in the memory that there is: budgets, batches that do not fit, patches that are left out."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twostage.classifiers._patience import PatientEncoder
from twostage.classifiers._tiny import TinyImageModel
from twostage.classifiers.crops import CropClassifier
from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.ops.memory import LIVE, activation_bytes, out_of_memory
from twostage.types import Proposals

Config = CropClassifier.Config
MIB = 2**20


class Narrow(TinyImageModel):
    """Takes at most so many crops at once, and remembers the batches that went through."""

    def __init__(self, most: int, error: BaseException) -> None:
        super().__init__()
        self.most, self.error, self.batches = most, error, list[int]()

    def encode_images(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.most:
            raise self.error
        self.batches.append(len(pixels))
        return super().encode_images(pixels)


def photo_and_masks(count: int = 20) -> tuple[Tensor, Proposals]:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=draw)
    masks = torch.zeros(count, 40, 50, dtype=torch.bool)
    for row in range(count):
        masks[row, row : row + 15, row : row + 10 + row] = True
    return image, Proposals(masks, torch.ones(count))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_a_batch_that_does_not_fit_is_halved_and_said(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    image, found = photo_and_masks()
    wide, narrow = CropClassifier(Config(chunk=8), TinyImageModel()), Narrow(3, error)
    with caplog.at_level(logging.WARNING):
        [(features, valid)] = CropClassifier(Config(chunk=8), narrow).features([image], [found])
    assert torch.allclose(features, wide.features([image], [found])[0][0], atol=1e-6)
    assert bool(valid.all())
    assert narrow.batches == [2] * 10  # 8, 4 and then 2 from there on: not tried again with every chunk
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "Out of memory with 8 crops in one batch: going on with 4.",
        "Out of memory with 4 crops in one batch: going on with 2.",
    ]


def test_no_room_for_one_crop_says_what_to_do() -> None:
    image, found = photo_and_masks(3)
    broken = CropClassifier(Config(chunk=8), Narrow(0, torch.OutOfMemoryError("out of memory")))
    with pytest.raises(TwostageError, match=r"single crop.*CLIP.DTYPE"):
        broken.features([image], [found])


def test_other_errors_go_through() -> None:
    assert not out_of_memory(RuntimeError("shape mismatch"))
    image, found = photo_and_masks(3)
    with pytest.raises(RuntimeError, match="shape"):
        CropClassifier(Config(), Narrow(0, RuntimeError("shape mismatch"))).features([image], [found])


def test_nothing_in_nothing_out() -> None:
    encode = PatientEncoder(lambda crops: crops.flatten(1))
    assert encode(torch.ones(3, 2, 2)).shape == (3, 4)


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return ClipModel.load("twostage-mini-vit", "random", seed=0)


def test_a_budget_makes_batches_smaller_and_says_the_least(clip: ClipModel) -> None:
    image, found = photo_and_masks()
    height, width = clip.image_size
    run = lambda: clip.encode_images(torch.zeros(1, 3, height, width))
    each = 12 * height * width + activation_bytes(clip.visual, run)
    fixed = found.masks.numel() + 40 * 50 * (20 + 24)
    roomy = CropClassifier(Config(), clip).features([image], [found])[0][0]
    tight = CropClassifier(Config(), clip, max_memory=fixed + 3 * each + 5)
    sizes = [len(rows) for rows, _ in tight.chunks([image], [found])]
    assert sizes == [3] * 6 + [2]
    assert torch.allclose(tight.features([image], [found])[0][0], roomy, atol=1e-5)
    least = -(-(fixed + each) // MIB)
    with pytest.raises(TwostageError, match=rf"needs at least {least} MiB.*TEST.MEMORY_GIB"):
        CropClassifier(Config(), clip, max_memory=fixed + each - 1).features([image], [found])


def test_the_widest_layer_is_found() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 3))
    assert activation_bytes(network, lambda: network(torch.zeros(1, 4))) == LIVE * 400
    assert not network[0]._forward_hooks


def test_skipping_filled_patches_is_for_transformers_only() -> None:
    with pytest.raises(TwostageError, match="SKIP_FILLED false"):
        CropClassifier(Config(skip_filled=True), TinyImageModel())


def test_filled_patches_are_left_out_whatever_shares_a_batch(clip: ClipModel) -> None:
    """A mask that fills its box is seen as without the option; features do not depend on the company."""
    image, found = photo_and_masks(6)
    ragged = found.masks.clone()
    ragged[:, ::2] &= torch.arange(50) % 17 < 5
    both = Proposals(torch.cat([found.masks, ragged]), torch.ones(12))
    skipping = CropClassifier(Config(skip_filled=True, chunk=12), clip)
    [(together, valid)] = skipping.features([image], [both])
    assert bool(valid.all())
    whole = CropClassifier(Config(), clip).features([image], [found])[0][0]
    assert torch.allclose(together[:6], whole, atol=1e-5)


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_a_crop_with_a_filled_half_keeps_the_other(clip: ClipModel, fill: str) -> None:
    from twostage.ops.crops import cut_region, fill_colour, make_canvas
    from twostage.readout import vit
    from twostage.readout.class_token import ClassTokenEncoder, speaking_patches

    edge = clip.image_size[0]
    tall, wide = clip.visual.patch_size
    image = torch.randint(
        1, 256, (3, edge, edge), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mask = torch.zeros(edge, edge, dtype=torch.bool)
    mask[:, : edge // 2] = True
    canvas = make_canvas(image, clip.mean, clip.std, fill)
    crop = cut_region(canvas, mask, [0, 0, edge, edge])[None]
    colour = fill_colour(clip.mean, clip.std, fill)
    speaking = speaking_patches(crop, colour, (tall, wide))
    columns = torch.arange(edge // wide) * wide < edge // 2
    assert torch.equal(speaking[0].view(-1, edge // wide), columns.expand(edge // tall, -1))
    # Independent: all tokens are computed, the filled ones are hidden from every other by an attention mask.
    tokens, _ = vit.embed(clip.visual, crop)
    seen = torch.cat([torch.ones(1, dtype=torch.bool), speaking[0]])
    for block in vit.blocks(clip.visual):
        q, k, v = vit.project(block, tokens)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[None, None, None])
        tokens = tokens + block.ls_1(vit.merge_heads(block, mixed))
        tokens = tokens + block.ls_2(vit.feed_forward(block, block.ln_2(tokens)))
    wanted = torch.nn.functional.normalize(vit.readout(clip.visual, tokens)[:, 0], dim=-1)
    assert torch.allclose(ClassTokenEncoder(clip, True, colour)(crop), wanted, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_class_token_alone_says_what_the_whole_tower_says(clip: ClipModel, factor: int) -> None:
    from twostage.readout.class_token import ClassTokenEncoder, reads_class_token

    assert reads_class_token(clip.visual)
    edge = clip.image_size[0] * factor
    crops = torch.randn(5, 3, edge, edge, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ClassTokenEncoder(clip)(crops), clip.encode_images(crops), atol=1e-5)
    half = clip.to_dtype(torch.bfloat16)
    cosine = (ClassTokenEncoder(half)(crops) * half.encode_images(crops)).sum(dim=1)
    assert bool((cosine > 0.9995).all())


def test_other_towers_are_asked_as_they_are() -> None:
    from twostage.readout.class_token import reads_class_token

    assert not reads_class_token(ClipModel.load("twostage-mini-rn", "random", seed=0).visual)


def test_compiled_towers_get_batches_of_one_size(clip: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from twostage.readout.class_token import ClassTokenEncoder

    sizes: list[int] = []

    def recording(plain: Callable[[Tensor], Tensor], **options: object) -> Callable[[Tensor], Tensor]:
        return lambda batch: (sizes.append(len(batch)), plain(batch))[1]

    monkeypatch.setattr(torch, "compile", recording)
    image, found = photo_and_masks(5)
    plain = CropClassifier(Config(chunk=3), clip).features([image], [found])[0][0]
    compiled = CropClassifier(Config(chunk=3), clip, compiled=True)
    assert torch.allclose(compiled.features([image], [found])[0][0], plain, atol=1e-5)
    assert sizes == [3, 3]  # the last two crops are filled up
    assert ClassTokenEncoder(clip, skip_filled=True, compiled=True)._features.__name__ == "_plain"


def test_what_cannot_be_compiled_runs_as_it_is(
    clip: ClipModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(plain: Callable[[Tensor], Tensor], **options: object) -> Callable[[Tensor], Tensor]:
        def run(batch: Tensor) -> Tensor:
            raise RuntimeError("InvalidCxxCompiler: no working compiler found")

        return run

    image, found = photo_and_masks(5)
    plain = CropClassifier(Config(chunk=3), clip).features([image], [found])[0][0]
    monkeypatch.setattr(torch, "compile", failing)
    compiled = CropClassifier(Config(chunk=3), clip, compiled=True)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(compiled.features([image], [found])[0][0], plain)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["CLIP.COMPILE: not compiled (InvalidCxxCompiler: no working compiler found)."]


def test_other_towers_are_not_compiled_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CropClassifier(Config(), TinyImageModel(), compiled=True)
    assert "only VisionTransformers" in caplog.text
