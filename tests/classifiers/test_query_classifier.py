"""Masks named by stage one's embeddings, against cosines taken one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.classifiers.query import QueryClassifier
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank


def bank(dim: int = 5) -> TextBank:
    """Three classes, the second with two words; the rows are not in order."""
    rows = F.normalize(torch.randn(4, dim, generator=torch.Generator().manual_seed(1)), dim=1)
    return TextBank(rows, torch.tensor([1, 0, 2, 1]), 3, 50.0)


def image() -> Tensor:
    return torch.zeros(3, 6, 8, dtype=torch.uint8)


def found(dim: int = 5) -> Proposals:
    """The second mask is empty; embeddings are not of length one."""
    masks = torch.zeros(3, 6, 8)
    masks[0, :3], masks[1], masks[2, 4, 4] = 0.9, 0.4, 0.6
    rows = torch.randn(3, dim, generator=torch.Generator().manual_seed(2))
    return Proposals(masks, torch.ones(3), rows, source="mine")


def test_cosines_with_the_best_word() -> None:
    scores = QueryClassifier(QueryClassifier.Config(logit_factor=2.0)).classify([image()], [found()], bank())[
        0
    ]
    assert scores.valid.tolist() == [True, False, True]
    assert torch.equal(scores.logits[1], torch.zeros(3))
    embeddings, text = found().embeddings, bank().features
    assert embeddings is not None
    for mask in (0, 2):
        cosine = [float(embeddings[mask] @ row) / float(embeddings[mask].norm()) for row in text]
        expected = [100 * cosine[1], 100 * max(cosine[0], cosine[3]), 100 * cosine[2]]
        assert scores.logits[mask].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_threshold_says_what_is_empty() -> None:
    low = QueryClassifier(QueryClassifier.Config(mask_threshold=0.3))
    assert low.classify([image()], [found()], bank())[0].valid.all()


def test_stage_one_itself_agrees() -> None:
    """With stage one's own text, "no object" aside, the order of classes is stage one's."""
    stage_one = MaskFormerProposals.tiny()
    text = bank(8)
    picture = torch.randint(
        0, 256, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    own = stage_one.propose([picture], text)[0]
    everywhere = replace(own, masks=torch.ones_like(own.masks))
    scores = QueryClassifier.tiny().classify([picture], [everywhere], text)[0]
    assert own.logits is not None
    assert torch.equal(scores.logits.argsort(dim=1), own.logits.logits.argsort(dim=1))


def test_a_source_without_embeddings_is_refused() -> None:
    bare = replace(found(), embeddings=None)
    with pytest.raises(
        ComponentError, match=r"image 1, from mine, have no embeddings .*CLASSIFIER\.NAME crops"
    ):
        QueryClassifier.tiny().classify([image(), image()], [found(), bare], bank())
    none = QueryClassifier.tiny().classify([image()], [bare[[]]], bank())[0]
    assert none.logits.shape == (0, 3)


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(ComponentError, match=r"are 7 wide, the text features 5.*CLIP\.MODEL"):
        QueryClassifier.tiny().classify([image()], [found(7)], bank())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mask_threshold": 1.0}, "mask_threshold must lie in"), ({"logit_factor": 0.0}, "above 0, got 0.0")],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QueryClassifier.Config(**options)
