"""Shapes, options, errors and gradients of the whole network."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from twostage.data.sample import TrainBatch
from twostage.maskformer.config import MaskFormerConfig, MaskFormerError
from twostage.maskformer.criterion import Criterion, LossConfig
from twostage.maskformer.network import MaskFormer
from twostage.maskformer.transformer import open_where_positive
from twostage.types import TextBank

SMALL = {
    "backbone": "small",
    "small_widths": (8, 8, 16, 16),
    "pixel_dim": 16,
    "mask_dim": 12,
    "hidden_dim": 24,
    "num_queries": 6,
    "decoder_layers": 4,
    "num_heads": 4,
    "feedforward_dim": 32,
    "embedding_dim": 10,
    "class_hidden_dim": 20,
}
EVERYTHING = {
    "memory": "multi",
    "masked_attention": True,
    "pooled_class": True,
    "pixel_classifier": True,
    "pixel_pool": 2,
    "small_stride": 2,
    "small_blocks": (0, 1, 2, 1),
    "mask_kernel": 1,
}


def make(seed: int = 0, **options: object) -> MaskFormer:
    torch.manual_seed(seed)
    return MaskFormer(MaskFormerConfig(**{**SMALL, **options}))


def text_bank(classes: int = 3, dim: int = 10) -> TextBank:
    features = nn.functional.normalize(
        torch.randn(classes + 1, dim, generator=torch.Generator().manual_seed(1)), dim=1
    )
    return TextBank(features, torch.tensor([*range(classes), 0]), classes)


def pictures(count: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=draw)


def test_timm_backbones() -> None:
    pytest.importorskip("timm")
    network = make(backbone="timm:resnet18")
    assert network.backbone.strides == (4, 8, 16, 32)
    assert network(pictures(1, 40, 70)).mask_logits.shape == (4, 1, 6, 16, 24)
    with pytest.raises(MaskFormerError, match="Did you mean 'resnet18'"):
        make(backbone="timm:resnet18x")
    with pytest.raises(MaskFormerError, match="halve the size"):
        make(backbone="timm:vit_tiny_patch16_224")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MaskFormerError, match=r"pip install 'twostage\[timm-backbones\]'"):
        make(backbone="timm:resnet18")


def test_masked_attention_starts_at_the_second_layer() -> None:
    masked, plain = make(masked_attention=True), make()
    masked.load_state_dict(plain.state_dict())
    masked.eval(), plain.eval()
    with torch.no_grad():
        a, b = masked(pictures(1, 160, 160)), plain(pictures(1, 160, 160))
        torch.testing.assert_close(a.mask_logits[0], b.mask_logits[0])
        assert not torch.allclose(a.mask_logits[1], b.mask_logits[1])


def test_masked_attention_asks_the_layer_before() -> None:
    """The places it opens are those where the averaged full-size logits of the layer before are positive."""
    network = make(masked_attention=True, decoder_layers=2).eval()
    seen: list[Tensor] = []
    layer = network.decoder.layers[1]
    original = layer.forward
    layer.forward = lambda x, positions, memory, allowed: (
        seen.append(allowed),
        original(x, positions, memory, allowed),
    )[1]
    with torch.no_grad():
        output = network(pictures(1, 64, 96))
    averaged = nn.functional.avg_pool2d(output.mask_logits[0], 8)
    assert torch.equal(seen[0], open_where_positive(averaged.flatten(2)))


def test_multi_memory_sizes() -> None:
    network = make(memory="multi").eval()
    sizes: list[int] = []
    for layer in network.decoder.layers:
        layer.cross_attn.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[1].shape[1]))
    network(pictures(1, 64, 64))
    assert sizes == [2 * 2, 4 * 4, 8 * 8, 2 * 2]


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 64)])
def test_any_size(options: dict, size: tuple[int, int]) -> None:
    network = make(**options).eval()
    output = network(pictures(2, *size))
    height, width = (math.ceil(side / 32) * 32 for side in size)
    stride = options.get("small_stride", 4)
    assert output.padded_hw == (height, width)
    assert output.mask_logits.shape == (4, 2, 6, height // stride, width // stride)
    assert output.embeddings.shape == (4, 2, 6, 10)
    assert output.mask_logits.isfinite().all()
    assert output.embeddings.isfinite().all()
    last = network(pictures(2, *size), last_only=True)
    torch.testing.assert_close(last.mask_logits, output.mask_logits[-1:])
    torch.testing.assert_close(last.embeddings, output.embeddings[-1:])


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_images_of_a_batch_do_not_touch(options: dict) -> None:
    network = make(**options).eval()
    both = pictures(2, 64, 96)
    with torch.no_grad():
        together = network(both)
        for index in range(2):
            alone = network(both[index : index + 1])
            torch.testing.assert_close(
                together.mask_logits[:, index], alone.mask_logits[:, 0], rtol=1e-4, atol=1e-4
            )
            torch.testing.assert_close(
                together.embeddings[:, index], alone.embeddings[:, 0], rtol=1e-4, atol=1e-4
            )


def test_prepare_normalises_then_pads_with_zero() -> None:
    network = make()
    images = [pictures(1, 20, 40)[0], pictures(1, 33, 10)[0]]
    batch = network.prepare(images)
    assert batch.shape == (2, 3, 64, 64)
    wanted = (images[1].double() - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / torch.tensor(
        [58.395, 57.12, 57.375]
    )[:, None, None]
    torch.testing.assert_close(batch[1, :, :33, :10], wanted.float())
    assert batch[1, :, 33:].abs().max() == batch[0, :, 20:].abs().max() == 0
    torch.testing.assert_close(network.prepare(images[0][None].float()), network.prepare(images[:1]))
    for wrong in (torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8), []):
        with pytest.raises(MaskFormerError, match=r"expected RGB images"):
            network.prepare(wrong)


def test_class_logits_by_hand() -> None:
    network, text = make(), text_bank()
    embeddings = torch.randn(2, 10)
    got = network.class_logits(embeddings, text)
    assert got.shape == (2, 4)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    for row, embedding in enumerate(embeddings):
        for k in range(3):
            rows = [
                r for r in range(4) if text.class_of[r] == k
            ]  # class 0 has a synonym: its best row counts
            wanted = 100 * max(cosine(embedding, text.features[r]) for r in rows)
            assert got[row, k].item() == pytest.approx(wanted, abs=1e-3)
        nothing = network.class_head.no_object[0].detach()
        assert got[row, 3].item() == pytest.approx(100 * cosine(embedding, nothing), abs=1e-3)
    other = TextBank(text.features, text.class_of, 3, logit_scale=7.0)
    torch.testing.assert_close(network.class_logits(embeddings, other), got)


def test_class_logits_under_autocast_are_exact() -> None:
    network, text = make(), text_bank()
    embeddings = torch.randn(2, 10)
    with torch.autocast("cpu", torch.bfloat16):
        got = network.class_logits(embeddings, text)
    assert torch.equal(got, network.class_logits(embeddings, text))


def test_wrong_words() -> None:
    network = make()
    embeddings = torch.randn(2, 10)
    with pytest.raises(MaskFormerError, match="needs a text bank"):
        network.class_logits(embeddings)
    with pytest.raises(MaskFormerError, match="embedding_dim is 10, the text has 12"):
        network.class_logits(embeddings, text_bank(dim=12))
    with pytest.raises(MaskFormerError, match="pixel_classifier=True"):
        network.pixel_logits(network(pictures(1, 32, 32)), text_bank())
    linear = make(class_head="linear", num_classes=7)
    with pytest.raises(MaskFormerError, match="7 classes"):
        linear.class_logits(torch.randn(2, 24), text_bank())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "multy"}, "Did you mean 'multi'"),
        ({"class_head": "txt"}, "Did you mean 'text'"),
        ({"backbone": "r101"}, "Did you mean 'r101c'"),
        ({"hidden_dim": 30}, "multiple of 4 and of num_heads"),
        ({"class_head": "linear"}, "number of classes"),
        ({"mask_kernel": 2}, "expected 1 or 3"),
        ({"num_queries": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(MaskFormerError, match=message):
        make(**options)


@pytest.mark.parametrize(
    "options",
    [{}, EVERYTHING, {"class_head": "linear", "num_classes": 3}, {"memory": "multi"}],
    ids=["plain", "everything", "linear", "multi"],
)
def test_gradients_reach_every_parameter(options: dict) -> None:
    network = make(**options)
    # Blocks begin as the identity; away from that point everything has to be reached.
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    labels = torch.full((2, 50, 64), -1)
    labels[0, :30, :20], labels[0, 30:], labels[1, :, 40:] = 0, 1, 2
    classes = [torch.tensor([0, 1]), torch.tensor([2])]
    masks = [torch.stack([labels[b] == k for k in found]) for b, found in enumerate(classes)]
    batch = TrainBatch(pictures(2, 50, 64), masks, classes, labels, ["a", "b"])
    output = network(batch.images)
    text = text_bank()
    pixel_logits = network.pixel_logits(output, text) if network.config.pixel_classifier else None
    losses = Criterion(LossConfig())(
        output, network.class_logits(output.embeddings, text), batch, pixel_logits
    )
    assert len(losses) == 3 * 4 + (pixel_logits is not None)
    sum(losses.values()).backward()
    untouched = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


def test_dropout_is_seeded_and_off_in_evaluation() -> None:
    network = make()
    image = pictures(1, 32, 32)

    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return network(image).embeddings

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    network.eval()
    assert torch.equal(once(1), once(2))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors lose more time in waking threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_short_training_finds_the_masks() -> None:
    """Fifty steps on two drawn pictures: the matched masks come to overlap the true ones."""
    network = make(**{**EVERYTHING, "dropout": 0.0, "decoder_layers": 2})
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0, 10:40, 8:30], labels[1, 30:60, 20:60] = 1, 2
    images = torch.tensor([[200, 40, 90], [30, 220, 60], [20, 90, 240]], dtype=torch.uint8)[labels].permute(
        0, 3, 1, 2
    )
    classes = [torch.tensor([0, 1]), torch.tensor([0, 2])]
    masks = [torch.stack([labels[b] == k for k in found]) for b, found in enumerate(classes)]
    batch = TrainBatch(images, masks, classes, labels, ["a", "b"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    config = LossConfig(ce=2.0, mask=5.0, dice=5.0, mask_kind="bce", resolution="logits", match_pool=2)
    criterion, text = Criterion(config), text_bank()
    history = []
    for _ in range(50):
        output = network(batch.images)
        losses = criterion(
            output, network.class_logits(output.embeddings, text), batch, network.pixel_logits(output, text)
        )
        history.append({name: value.item() for name, value in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    for name in ("loss_mask", "loss_dice", "loss_pixel"):
        assert history[-1][name] < 0.25 * history[0][name], name
