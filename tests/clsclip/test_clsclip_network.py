"""ClsCLIP's network: words in the class token's place, blocks before them shared, and what is trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.clsclip import network as module
from twostage.clsclip.config import ClsClipError, ClsClipNetworkConfig, moved
from twostage.clsclip.network import ClsClipNetwork
from twostage.clsclip.training_free import PinvInjection
from twostage.readout import vit

SMALL = ClsClipNetworkConfig(128, 128, 6, decoder_layers=2, decoder_heads=4, head_widths=(16, 8))


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return ClipModel.load("twostage-mini-vit", "random", seed=0)


def make(**options: Any) -> ClsClipNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ClsClipNetwork(replace(SMALL, **options)).eval()


def pixels(count: int = 2, height: int = 40, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def words(count: int) -> Tensor:
    rows = torch.randn(count, 128, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize(
    ("depth", "placed"), [(12, (2, 5)), (24, (5, 10)), (6, (1, 3)), (32, (6, 13)), (3, (0, 2)), (1, (0, 1))]
)
def test_blocks_move_in_proportion(depth: int, placed: tuple[int, int]) -> None:
    assert ClsClipNetworkConfig(depth=depth).placed == placed
    assert [moved(block, 12) for block in range(12)] == list(range(12))


def by_hand(visual: Any, image: Tensor, token_at: dict[int, Tensor]) -> Tensor:
    """(3, H, W) -> (N, D) after the last block: one image, heads one by one, from the spec's formulas."""
    patches = visual.conv1(image[None])[0]
    height, width = patches.shape[1:]
    table = visual.positional_embedding
    native = visual.grid_size
    places = table[1:].T.reshape(1, -1, *native)
    if (height, width) != tuple(native):
        places = torch.nn.functional.interpolate(
            places, (height, width), mode="bilinear", align_corners=False
        )
    rows = [visual.class_embedding + table[0]]
    for y in range(height):
        for x in range(width):
            rows.append(patches[:, y, x] + places[0, :, y, x])
    tokens = visual.ln_pre(torch.stack(rows))
    for number, block in enumerate(visual.transformer.resblocks):
        if number in token_at:
            tokens = torch.cat([token_at[number][None], tokens[1:]])
        attention = block.attn
        normed = block.ln_1(tokens)
        q, k, v = (normed @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
        wide = q.shape[1] // attention.num_heads
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * wide, (head + 1) * wide)
            share = ((q[:, part] @ k[:, part].T) / math.sqrt(wide)).softmax(dim=1)
            heads.append(share @ v[:, part])
        tokens = tokens + attention.out_proj(torch.cat(heads, dim=1))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return tokens[1:]


@pytest.mark.parametrize("per_layer", [False, True])
def test_injection_against_a_loop_over_blocks(clip: ClipModel, per_layer: bool) -> None:
    network, images, rows = make(per_layer=per_layer), pixels(), words(3)
    image_of = torch.tensor([0, 1, 1])
    with torch.no_grad():
        found = network.patches(clip.visual, network.start(clip.visual, images), rows, image_of)
        for pair, image in enumerate(image_of.tolist()):
            tokens = {block: network.maps[block - 1 if per_layer else 0](rows[pair]) for block in (1, 2)}
            expected = by_hand(clip.visual, images[image], tokens)
            torch.testing.assert_close(found[pair], expected, rtol=1e-4, atol=1e-4)
    assert len(network.maps) == (2 if per_layer else 1)


def test_blocks_before_the_words_run_once_an_image(clip: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    network, ran = make(), []
    blocks = vit.blocks(clip.visual)

    def counted(block: Any, tokens: Tensor, *rest: Any) -> Tensor:
        ran.append((blocks.index(block), len(tokens)))
        return run(block, tokens, *rest)

    run = vit.run_block
    monkeypatch.setattr(module.vit, "run_block", counted)
    with torch.no_grad():
        started = network.start(clip.visual, pixels(1))
        for part in words(7).split(3):
            network.finish(clip.visual, started, part, torch.zeros(len(part), dtype=torch.int64))
    assert [entry for entry in ran if entry[0] == 0] == [(0, 1)]
    for block in range(1, 6):
        assert [count for number, count in ran if number == block] == [3, 3, 1]


def test_shapes_and_pairs_are_independent(clip: ClipModel) -> None:
    network, images, rows = make(), pixels(2, 48, 72), words(2)
    with torch.no_grad():
        both = network(clip.visual, images, rows)
        assert both.shape == (2, 2, 6, 9)
        assert both.dtype == torch.float32
        for number in range(2):
            alone = network(clip.visual, images[number : number + 1], rows[number : number + 1])
            torch.testing.assert_close(both[number : number + 1], alone, rtol=1e-4, atol=1e-5)
        other = network(clip.visual, images, rows.flip(0))
    assert float((both - other).abs().max()) > 1e-4, "another word is another answer"


def test_gradient_reaches_the_map_and_the_decoder_alone(clip: ClipModel) -> None:
    network = make().train()
    before = {name: tensor.clone() for name, tensor in clip.visual.state_dict().items()}
    network(clip.visual, pixels(), words(2)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    assert all(parameter.grad is None for parameter in clip.visual.parameters())
    assert not any(name.startswith("visual") for name in network.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.visual.state_dict().items())


def test_what_does_not_fit(clip: ClipModel) -> None:
    network = make()
    started = network.start(clip.visual, pixels(1))
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ClsClipError, match=r"of one word or more, got \(0, 128\)"):
        network.finish(clip.visual, started, words(1)[:0], none)
    with pytest.raises(ClsClipError, match=r"expected text features \(P, 128\).*text tower"):
        network.finish(clip.visual, started, torch.ones(1, 64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ClsClipError, match="made for tokens 128 wide and 12 blocks, the image tower has"):
        make(depth=12).start(clip.visual, pixels(1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 0}, "width: expected 1 or more, got 0"),
        ({"decoder_layers": -1}, "decoder_layers of 0 or more"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"blocks": (5, 2)}, r"0 <= first < end <= 12, got \(5, 2\)"),
        ({"blocks": (2, 13)}, "counted in a tower of 12"),
        ({"decoder_heads": 3}, "3 heads cannot share a width of 128"),
        ({"head_widths": ()}, "one or more channels"),
        ({"positions": "bilinar"}, "Did you mean 'bilinear'"),
    ],
)
def test_options_that_make_no_network(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ClsClipError, match=told):
        replace(SMALL, **options)


def test_without_training_against_a_loop(clip: ClipModel) -> None:
    """x0 := c + |c| * unit(T proj^+), c the image's own class token there; then MaskCLIP's last block."""
    visual: Any = clip.visual
    free, images, rows = PinvInjection(visual, (1, 3)), pixels(1), words(2)
    with torch.no_grad():
        started = free.start(visual, images)
        found = free.logits(visual, started, rows, torch.zeros(2, dtype=torch.int64))
        for pair in range(2):
            back = torch.linalg.lstsq(visual.proj.T, rows[pair][:, None], driver="gelsd").solution[:, 0]
            own, tokens = vit.embed(visual, images, "bilinear")[0], vit.embed(visual, images, "bilinear")[0]
            for number, block in enumerate(vit.blocks(visual)[:-1]):
                if number in (1, 2):
                    length = own[0, 0].norm()
                    tokens[0, 0] = own[0, 0] + length * back / back.norm()
                tokens, own = vit.run_block(block, tokens), vit.run_block(block, own)
            last = visual.transformer.resblocks[-1]
            values = (
                last.ln_1(tokens[0, 1:]) @ last.attn.in_proj_weight[256:].T + last.attn.in_proj_bias[256:]
            )
            patches = tokens[0, 1:] + last.attn.out_proj(values)
            patches = visual.ln_post(patches + last.mlp(last.ln_2(patches))) @ visual.proj
            cosines = torch.nn.functional.cosine_similarity(patches, rows[pair][None], dim=1)
            torch.testing.assert_close(found[pair].flatten(), cosines, rtol=1e-3, atol=1e-4)


def test_without_training_there_are_limits(clip: ClipModel) -> None:
    with pytest.raises(ClsClipError, match="would reach the last one"):
        PinvInjection(clip.visual, (3, 6))

    class Bare:
        proj = None

    with pytest.raises(ClsClipError, match="no projection that could be inverted"):
        PinvInjection(Bare(), (1, 2))
