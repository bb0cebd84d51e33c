"""All masks from one pass, against the formulas written out with loops over masks, places and heads.

The blocks before the last few are open_clip's own, called as it calls them.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.classifiers import pooled
from twostage.classifiers.pooled import PooledClassifier
from twostage.clip.model import ClipModel
from twostage.dense.readout import ReadoutDense
from twostage.ops.fusion import pool_logits
from twostage.readout.vit import DenseTowerError
from twostage.types import Proposals, RegionScores, TextBank

LEVELS = ("logits", "features", "values", "attention")
SCALE = 20.0


@pytest.fixture(params=["vit", "resnet"])
def clip(request: pytest.FixtureRequest) -> ClipModel:
    found: ClipModel = request.getfixturevalue(request.param)
    return found


def bank(classes: int = 4, dim: int = 32) -> TextBank:
    """One row a class, and a second one for class 0."""
    rows = F.normalize(torch.randn(classes + 1, dim, generator=torch.Generator().manual_seed(3)), dim=1)
    return TextBank(rows, torch.tensor([*range(classes), 0]), classes, SCALE)


def photo(size_hw: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=draw)


def masks(size_hw: tuple[int, int] = (32, 32)) -> Proposals:
    """A part, an empty one, everything, a single pixel, a soft one across cells."""
    height, width = size_hw
    made = torch.zeros(5, height, width)
    made[0, 2 : height // 2 + 3, 5 : width // 2 + 1] = 1
    made[2] = 1
    made[3, height // 3, width // 2] = 1
    made[4, height // 4 :, : width // 3] = 0.8
    made[4, 0, 0] = 0.3
    return Proposals(made, torch.ones(5))


def classify(clip: ClipModel, image: Tensor, found: Proposals, **options: Any) -> RegionScores:
    classifier = PooledClassifier(PooledClassifier.Config(**options), clip)
    return classifier.classify([image], [found], bank())[0]


def pixels_of(clip: ClipModel, image: Tensor) -> Tensor:
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (clip.mean, clip.std))
    return ((image.float() / 255 - mean) / std)[None]


def slow_shares(found: Proposals, cells: int, cell: int) -> list[list[float]]:
    """The share of each cell's pixels above one half."""
    table = []
    for mask in found.masks:
        row = []
        for y in range(cells):
            for x in range(cells):
                inside = mask[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] > 0.5
                row.append(int(inside.sum()) / cell**2)
        table.append(row)
    return table


def entering(visual: Any, pixels: Tensor) -> list[Tensor]:
    """(L, D) tokens entering each block, by open_clip's own layers."""
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding[None, None], patches], dim=1) + visual.positional_embedding
    tokens = visual.ln_pre(tokens)
    found = []
    for block in visual.transformer.resblocks:
        found.append(tokens[0])
        tokens = block(tokens)
    return found


def slow_logits(vector: Tensor) -> list[float]:
    """SCALE times the cosine, the better of two rows for class 0."""
    cosines = [float(F.normalize(vector, dim=0) @ row) for row in bank().features]
    return [SCALE * one for one in (max(cosines[0], cosines[4]), *cosines[1:4])]


def head_out(visual: Any, token: Tensor) -> Tensor:
    made: Tensor = visual.ln_post(token) @ visual.proj
    return made


def slow_value(visual: Any, tokens: Tensor, row: list[float]) -> Tensor:
    """normalize(ln_post(o_r + MLP(ln_2 o_r)) proj), o_r = W_o sum m_rn v_n + b_o."""
    block, width = visual.transformer.resblocks[-1], tokens.shape[1]
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    total = torch.zeros(width)
    for n, share in enumerate(row):
        total += share / sum(row) * (weight @ block.ln_1(tokens[n + 1]) + bias)
    out = block.attn.out_proj.weight @ total + block.attn.out_proj.bias
    return head_out(visual, out + block.mlp(block.ln_2(out)))


def slow_place(visual: Any, tokens: Tensor, n: int) -> Tensor:
    """MaskCLIP's reading of one patch: its own value, residual and MLP on."""
    block, width = visual.transformer.resblocks[-1], tokens.shape[1]
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    value = weight @ block.ln_1(tokens[n + 1]) + bias
    out = tokens[n + 1] + block.attn.out_proj.weight @ value + block.attn.out_proj.bias
    return head_out(visual, out + block.mlp(block.ln_2(out)))


def slow_attention(
    visual: Any, all_tokens: list[Tensor], row: list[float], blocks: int, itself: bool
) -> Tensor:
    """A class token that looks at the patches of its mask, weights m_n exp(q k / sqrt d), block by block."""
    depth = len(visual.transformer.resblocks)
    region = all_tokens[depth - blocks][0]
    for number in range(depth - blocks, depth):
        block, tokens = visual.transformer.resblocks[number], all_tokens[number]
        width, heads = tokens.shape[1], block.attn.num_heads
        d = width // heads
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        q, own_k, own_v = (weight @ block.ln_1(region) + bias).split(width)
        mixed = []
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            weights, values = [], []
            if itself:
                weights.append(math.exp(float(q[part] @ own_k[part]) / math.sqrt(d)))
                values.append(own_v[part])
            for n, share in enumerate(row):
                _, k, v = (weight @ block.ln_1(tokens[n + 1]) + bias).split(width)
                weights.append(share * math.exp(float(q[part] @ k[part]) / math.sqrt(d)))
                values.append(v[part])
            mixed.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
        region = region + block.attn.out_proj(torch.cat(mixed))  # type: ignore[arg-type]
        region = region + block.mlp(block.ln_2(region))
    return head_out(visual, region)


@pytest.mark.parametrize(
    "options",
    [
        {"level": "logits"},
        {"level": "features"},
        {"level": "values"},
        {"level": "attention"},
        {"level": "attention", "blocks": 3},
        {"level": "attention", "itself": True},
        {"level": "attention", "itself": True, "blocks": 4},
    ],
)
@torch.no_grad()
def test_the_formulas_on_a_vision_transformer(vit: ClipModel, options: dict[str, Any]) -> None:
    image, found, visual = photo(), masks(), vit.visual
    made = classify(vit, image, found, short_edge=32, **options)
    tokens = entering(visual, pixels_of(vit, image))
    assert made.valid.tolist() == [True, False, True, True, True]
    assert made.logits[1].tolist() == [0, 0, 0, 0]
    places = [slow_place(visual, tokens[-1], n) for n in range(16)]
    for r, row in enumerate(slow_shares(found, 4, 8)):
        if r == 1:
            continue
        level = options["level"]
        if level == "logits":
            told = torch.tensor([slow_logits(place) for place in places])
            expected = (told * torch.tensor(row)[:, None] / sum(row)).sum(dim=0).tolist()
        elif level == "features":
            mean = sum(w * F.normalize(place, dim=0) for w, place in zip(row, places, strict=True))
            expected = slow_logits(mean)  # type: ignore[arg-type]
        elif level == "values":
            expected = slow_logits(slow_value(visual, tokens[-1], row))
        else:
            blocks, itself = options.get("blocks", 1), options.get("itself", False)
            expected = slow_logits(slow_attention(visual, tokens, row, blocks, itself))
        torch.testing.assert_close(made.logits[r], torch.tensor(expected), rtol=1e-4, atol=1e-3)


def slow_pool(pool: Any, places: Tensor, row: list[float], positions: Tensor) -> Tensor:
    """CLIP's attention pool whose mean and whose keys are those of a mask. places: (N, C)."""
    width, heads = places.shape[1], pool.num_heads
    d = width // heads
    q = pool.q_proj(sum(w / sum(row) * place for w, place in zip(row, places, strict=True)) + positions[0])
    mixed = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        weights, values = [], []
        for n, share in enumerate(row):
            here = places[n] + positions[n + 1]
            k, v = pool.k_proj(here), pool.v_proj(here)
            weights.append(share * math.exp(float(q[part] @ k[part]) / math.sqrt(d)))
            values.append(v[part])
        mixed.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    made: Tensor = pool.c_proj(torch.cat(mixed))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_the_formulas_on_a_resnet(resnet: ClipModel, level: str) -> None:
    image, found, visual = photo((96, 96)), masks((96, 96)), resnet.visual
    made = classify(resnet, image, found, short_edge=96, level=level)
    seen: list[Tensor] = []
    handle = visual.attnpool.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore
    visual(pixels_of(resnet, image))
    handle.remove()
    pool: Any = visual.attnpool
    rows = seen[0][0].flatten(1).T
    places = [pool.c_proj(pool.v_proj(one)) for one in rows]
    for r, row in enumerate(slow_shares(found, 3, 32)):
        if r == 1:
            continue
        if level == "logits":
            told = torch.tensor([slow_logits(place) for place in places])
            expected = (told * torch.tensor(row)[:, None] / sum(row)).sum(dim=0).tolist()
        elif level == "features":
            expected = slow_logits(sum(w * F.normalize(p, dim=0) for w, p in zip(row, places, strict=True)))  # type: ignore[arg-type]
        elif level == "values":  # pooled before the two linear layers
            total = sum(w / sum(row) * one for w, one in zip(row, rows, strict=True))
            expected = slow_logits(pool.c_proj(pool.v_proj(total)))
        else:
            expected = slow_logits(slow_pool(pool, rows, row, pool.positional_embedding))
        torch.testing.assert_close(made.logits[r], torch.tensor(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [None, (64, 96)])
@pytest.mark.parametrize(("tower", "blocks"), [("vit", 1), ("vit", 2), ("vit", 4), ("resnet", 1)])
def test_a_mask_of_everything_that_sees_itself_is_the_image(
    request: pytest.FixtureRequest, tower: str, size: tuple[int, int] | None, blocks: int
) -> None:
    clip: ClipModel = request.getfixturevalue(tower)
    size = clip.image_size if size is None else size
    image = photo(size, 4)
    made = classify(clip, image, masks(size), level="attention", short_edge=0, itself=True, blocks=blocks)
    whole = bank().logits(clip.encode_images(pixels_of(clip, image)))[0]
    torch.testing.assert_close(made.logits[2], whole, rtol=1e-4, atol=1e-3)
    assert made.image is not None
    torch.testing.assert_close(made.image, whole, rtol=1e-4, atol=1e-3)


def test_logits_level_is_the_dense_map_pooled(clip: ClipModel) -> None:
    image, found = photo((40, 56)), masks((40, 56))
    dense = ReadoutDense(ReadoutDense.Config(), clip).predict([image], bank())[0]
    expected, held = pool_logits(dense.logits, found.masks > 0.5)
    made = classify(clip, image, found, level="logits")
    torch.testing.assert_close(made.logits, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(made.valid, held)


@pytest.mark.parametrize("level", LEVELS)
def test_the_tower_runs_once_for_all_masks(clip: ClipModel, level: str) -> None:
    counting = clip.to_dtype(torch.float32)  # a copy, so that hooks stay off the shared one
    calls: list[int] = []
    counting.visual.conv1.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))  # type: ignore
    images = [photo((40, 56), seed) for seed in range(3)] + [photo((64, 33), 3)]
    found = [masks((40, 56))] * 3 + [masks((64, 33))]
    PooledClassifier(PooledClassifier.Config(level=level), counting).classify(images, found, bank())  # type: ignore[arg-type]
    assert calls == [3, 1]
    calls.clear()
    config = PooledClassifier.Config(level=level, chunk=2)  # type: ignore[arg-type]
    PooledClassifier(config, counting).classify(images, found, bank())
    assert calls == [2, 1, 1]


@pytest.mark.parametrize("level", LEVELS)
def test_company_and_chunks_change_nothing(clip: ClipModel, level: str) -> None:
    images = [photo((40, 56)), photo((48, 40), 1), photo((40, 56), 2)]
    found = [masks((40, 56)), masks((48, 40)), masks((40, 56))]
    classifier = PooledClassifier(PooledClassifier.Config(level=level), clip)  # type: ignore[arg-type]
    together = classifier.classify(images, found, bank())
    few = PooledClassifier(PooledClassifier.Config(level=level, mask_chunk=2), clip)  # type: ignore[arg-type]
    for image, own, scores in zip(images, found, together, strict=True):
        for other in (classifier, few):
            alone = other.classify([image], [own], bank())[0]
            torch.testing.assert_close(alone.logits, scores.logits, rtol=1e-4, atol=1e-3)
            assert torch.equal(alone.valid, scores.valid)
            torch.testing.assert_close(alone.image, scores.image, rtol=1e-4, atol=1e-3)


def test_many_masks_are_pooled_a_few_at_a_time(vit: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = pooled.region_shares

    def counted(part: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        sizes.append(len(part))
        return whole(part, *rest)

    monkeypatch.setattr(pooled, "region_shares", counted)
    many = Proposals(torch.rand(150, 32, 32) > 0.5, torch.ones(150))
    assert classify(vit, photo(), many).logits.shape == (150, 4)
    assert sizes == [64, 64, 22]


@pytest.mark.parametrize("level", ["logits", "features"])
def test_a_mask_within_a_patch_is_that_patch(vit: ClipModel, level: str) -> None:
    image, found = photo(), masks()  # mask 3 is pixel (10, 16): patch (1, 2)
    dense = ReadoutDense(ReadoutDense.Config(short_edge=32), vit).predict([image], bank())[0]
    made = classify(vit, image, found, level=level, short_edge=32)
    torch.testing.assert_close(made.logits[3], dense.logits[:, 1, 2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_soft_masks_weigh_by_their_values(clip: ClipModel, level: str) -> None:
    """A mask of .25 everywhere is empty above one half, and everything where values count."""
    size = (64, 64)
    faint = Proposals(torch.full((1, *size), 0.25), torch.ones(1))
    full = Proposals(torch.ones(1, *size), torch.ones(1))
    cut = classify(clip, photo(size), faint, level=level)
    assert cut.valid.tolist() == [False]
    assert cut.logits.abs().max() == 0
    soft = classify(clip, photo(size), faint, level=level, mask_threshold=None)
    whole = classify(clip, photo(size), full, level=level)
    torch.testing.assert_close(soft.logits, whole.logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_one_class_and_no_masks(clip: ClipModel, level: str) -> None:
    classifier = PooledClassifier(PooledClassifier.Config(level=level), clip)  # type: ignore[arg-type]
    one = TextBank(bank().features[:1], torch.tensor([0]), 1)
    made = classifier.classify([photo((40, 56))], [masks((40, 56))], one)[0]
    assert made.logits.shape == (5, 1)
    none = classifier.classify([photo((40, 56))], [masks((40, 56))[[]]], bank())[0]
    assert none.logits.shape == (0, 4)
    assert none.image is not None
    assert classifier.classify([], [], bank()) == []


def test_the_attention_of_the_patches_can_be_changed(vit: ClipModel) -> None:
    """Query-query attention at level values: values are mixed first, then averaged under the mask."""
    image, found = photo(), masks()
    made = classify(vit, image, found, level="values", short_edge=32, attention="qq")
    visual: Any = vit.visual
    with torch.no_grad():
        tokens = entering(visual, pixels_of(vit, image))[-1]
        block, width = visual.transformer.resblocks[-1], 64
        packed = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, _, v = (one.reshape(17, 4, 16).transpose(0, 1) for one in packed.split(width, dim=1))
        mixed = ((q @ q.transpose(1, 2) / 4).softmax(dim=2) @ v)[:, 1:].transpose(0, 1).flatten(1)
        row = torch.tensor(slow_shares(found, 4, 8)[0])
        out = block.attn.out_proj((row / row.sum()) @ mixed)
        expected = slow_logits(head_out(visual, out + block.mlp(block.ln_2(out))))
    torch.testing.assert_close(made.logits[0], torch.tensor(expected), rtol=1e-4, atol=1e-3)
    plain = classify(vit, image, found, level="values", short_edge=32)
    assert (plain.logits[0] - made.logits[0]).abs().max() > 1e-3
    joined = classify(vit, image, found, level="values", short_edge=32, residual=True)
    assert (plain.logits[0] - joined.logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_and_the_weights_as_they_were(clip: ClipModel, level: str) -> None:
    before = clip.digest
    exact = classify(clip, photo((64, 64)), masks((64, 64)), level=level)
    rough = classify(clip.to_dtype(torch.bfloat16), photo((64, 64)), masks((64, 64)), level=level)
    assert rough.logits.dtype == torch.float32
    torch.testing.assert_close(rough.logits, exact.logits, rtol=2e-2, atol=2e-2 * SCALE)
    del clip.__dict__["digest"]
    assert clip.digest == before


def test_the_factor_multiplies_every_logit(vit: ClipModel) -> None:
    one = classify(vit, photo(), masks())
    half = classify(vit, photo(), masks(), logit_factor=0.5)
    torch.testing.assert_close(half.logits, one.logits / 2)
    assert one.image is not None
    torch.testing.assert_close(half.image, one.image / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "feature"}, "Did you mean 'features'"),
        ({"positions": "bicubik"}, "Did you mean 'bicubic'"),
        ({"short_edge": -1}, "short_edge must be at least 0"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"mask_chunk": 0}, "mask_chunk must be at least 1"),
        ({"mask_threshold": 1.0}, "None weighs"),
        ({"logit_factor": 0.0}, "logit_factor must be above 0"),
        ({"attention": "qz"}, "unknown term"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PooledClassifier.Config(**options)


def test_more_blocks_than_there_are(vit: ClipModel) -> None:
    with pytest.raises(DenseTowerError, match="1 to 4, the tower's depth, got 5"):
        PooledClassifier(PooledClassifier.Config(blocks=5), vit)


@pytest.mark.parametrize("options", [{"attention": "qq"}, {"residual": False}, {"ffn": True}, {"blocks": 2}])
def test_a_resnet_has_no_blocks_to_change(resnet: ClipModel, options: dict[str, Any]) -> None:
    with pytest.raises(DenseTowerError, match=f"{next(iter(options))} .* ModifiedResNet has none"):
        PooledClassifier(PooledClassifier.Config(**options), resnet)


def test_what_does_not_fit_is_refused(vit: ClipModel) -> None:
    classifier = PooledClassifier(PooledClassifier.Config(), vit)
    with pytest.raises(ValueError, match="got 0 for 1"):
        classifier.classify([photo()], [], bank())
    with pytest.raises(ValueError, match="32 wide, got 16"):
        classifier.classify([photo()], [masks()], bank(dim=16))
    with pytest.raises(ValueError, match="before any normalisation"):
        classifier.classify([photo().float()], [masks()], bank())
    with pytest.raises(ValueError, match="resize the masks"):
        classifier.classify([photo()], [masks((32, 40))], bank())
