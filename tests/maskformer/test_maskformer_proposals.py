"""The proposal component around the network."""

import pytest
import torch
from torch import nn

from twostage.interfaces import ProposalGenerator
from twostage.maskformer.config import MaskFormerError
from twostage.maskformer.network import MaskFormer
from twostage.ops.modes import evaluating
from twostage.proposals.maskformer import MaskFormerProposals, mean_inside
from twostage.registry import find
from twostage.systems import names_masks
from twostage.types import TextBank


def bank(classes: int = 3) -> TextBank:
    draw = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(classes, 8, generator=draw), dim=1)
    return TextBank(features, torch.arange(classes), classes)


def photos() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=draw)
        for hw in ((33, 47), (64, 32), (1, 1))
    ]


def test_is_the_component_of_its_file() -> None:
    assert find("proposals", "maskformer") is MaskFormerProposals
    assert isinstance(MaskFormerProposals.tiny(), ProposalGenerator)


def test_masks_are_the_upsampled_logits() -> None:
    generator = MaskFormerProposals.tiny()
    for image, found in zip(photos(), generator.propose(photos()), strict=True):
        assert found.size_hw == tuple(image.shape[1:])
        assert len(found) == 5
        with torch.no_grad():
            output = generator.network.eval()(image[None])
        full = nn.Upsample(size=output.padded_hw, mode="bilinear", align_corners=False)(
            output.mask_logits[-1]
        )
        wanted = full[0, :, : image.shape[1], : image.shape[2]].sigmoid()
        torch.testing.assert_close(found.masks, wanted)
        torch.testing.assert_close(found.embeddings, nn.functional.normalize(output.embeddings[-1, 0], dim=1))


def test_scores_with_and_without_words() -> None:
    generator = MaskFormerProposals.tiny()
    (named, *_), (nameless, *_) = generator.propose(photos(), bank()), generator.propose(photos())
    assert named.logits is not None
    every = torch.cat([named.logits.logits, named.logits.no_object[:, None]], dim=1).softmax(dim=1)
    torch.testing.assert_close(named.scores, every[:, :3].amax(dim=1))
    assert named.logits.valid.all()
    assert nameless.logits is None
    torch.testing.assert_close(nameless.scores, mean_inside(nameless.masks))
    torch.testing.assert_close(named.masks, nameless.masks)


def test_mean_inside() -> None:
    masks = torch.tensor([[[0.9, 0.7, 0.2]], [[0.1, 0.5, 0.2]]])
    torch.testing.assert_close(mean_inside(masks), torch.tensor([0.8, 0.0]))


def test_low_scores_can_be_dropped() -> None:
    generator = MaskFormerProposals.tiny()
    every = generator.propose(photos(), bank())[0]
    bar = float(every.scores.median())
    some = MaskFormerProposals(MaskFormerProposals.Config(min_score=bar), generator.network).propose(
        photos(), bank()
    )[0]
    assert torch.equal(some.scores, every.scores[every.scores >= bar])
    assert len(some) == 3


def test_linear_head_names_its_own_classes() -> None:
    config = MaskFormerProposals.tiny().network.config
    options = {**config.__dict__, "class_head": "linear", "num_classes": 4}
    network = MaskFormer(type(config)(**options))
    found = MaskFormerProposals(MaskFormerProposals.Config(), network).propose(photos()[:1])[0]
    assert found.logits is not None
    assert found.logits.logits.shape == (5, 4)


def test_modes_come_back_even_after_an_error() -> None:
    network = MaskFormerProposals.tiny().network.train()
    network.backbone.eval()
    before = [part.training for part in network.modules()]
    MaskFormerProposals(MaskFormerProposals.Config(), network).propose(photos())
    assert [part.training for part in network.modules()] == before

    def fail() -> None:
        with evaluating(network):
            assert not network.training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [part.training for part in network.modules()] == before


def test_tiny_is_the_same_each_time_and_leaves_the_seed_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = MaskFormerProposals.tiny()
    assert torch.equal(torch.rand(1), wanted)
    second = MaskFormerProposals.tiny()
    for a, b in zip(first.propose(photos(), bank()), second.propose(photos(), bank()), strict=True):
        assert torch.equal(a.masks, b.masks)
        assert torch.equal(a.scores, b.scores)


def test_weights_that_are_not_finite_are_refused() -> None:
    generator = MaskFormerProposals.tiny()
    nn.init.constant_(generator.network.pixel_decoder.mask_features.weight, float("nan"))
    with pytest.raises(MaskFormerError, match=r"NaN or infinite.*earlier checkpoint"):
        generator.propose([torch.zeros(3, 32, 32, dtype=torch.uint8)])


def test_masks_alone_of_a_network_that_speaks_another_language() -> None:
    """The class head may belong to another CLIP; masks do not depend on it, and nothing is named."""
    named = MaskFormerProposals.tiny()
    silent = MaskFormerProposals(MaskFormerProposals.Config(names_masks=False), named.network)
    image = torch.randint(0, 255, (3, 40, 50), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    other = torch.nn.functional.normalize(torch.randn(3, named.network.config.embedding_dim + 5), dim=1)
    found = silent.propose([image], TextBank(other, torch.arange(3), 3))[0]
    assert found.logits is None
    assert torch.equal(found.masks, named.propose([image])[0].masks)
    assert not names_masks(silent)
