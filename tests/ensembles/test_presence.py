"""The presence prior and class pruning against loops, smaller vocabularies and the plain ensemble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.ensembles._presence import class_presence, kept_classes
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.types import VOID, DenseScores, Evidence, Proposals, RegionScores, Segmentation
from twostage.vocabulary import Vocabulary

N, K, H, W = 4, 5, 6, 7
FLAGGED = Vocabulary(Vocabulary.from_words("ant,bee,cat,dog,eel").names, (True, False, True, False, False))


def evidence(image: str = "dense", seed: int = 0) -> Evidence:
    """Masks (one empty), both opinions, a dense map; `image`: which parts speak of the whole image."""
    draw = torch.Generator().manual_seed(seed)
    masks = torch.rand(N, H, W, generator=draw)
    masks[2] = 0
    valid = torch.tensor([True, True, False, True])
    whole = 2 * torch.randn(K, generator=draw)
    one = RegionScores(torch.randn(N, K, generator=draw), torch.ones_like(valid), torch.zeros(N))
    two = RegionScores(
        2 * torch.randn(N, K, generator=draw), valid, image=whole if "regions" in image else None
    )
    dense = DenseScores(torch.randn(K, 3, 4, generator=draw), image=whole if "dense" in image else None)
    return Evidence((H, W), Proposals(masks, torch.ones(N)), one, two, dense)


def merge(found: Evidence, words: Vocabulary = FLAGGED, **options: Any) -> Segmentation:
    return GeometricEnsemble(GeometricEnsemble.Config(scores=True, **options)).merge(found, words)


def scores_of(found: Evidence, words: Vocabulary = FLAGGED, **options: Any) -> Tensor:
    made = merge(found, words, **options).scores
    assert made is not None
    return made


def mixed(logits: Tensor, image: Tensor, gamma: float) -> Tensor:
    """(1 - gamma) S + gamma c, number by number; logits: (rows, K)."""
    table = [
        [(1 - gamma) * row[k].item() + gamma * image[k].item() for k in range(len(image))] for row in logits
    ]
    return torch.tensor(table)


@pytest.mark.parametrize("gamma", [0.1, 0.4, 1.0])
def test_the_prior_is_a_share_of_every_place(gamma: float) -> None:
    """CASS on the dense map alone: softmax(((1 - gamma) S + gamma c) / T)."""
    found = evidence()
    assert found.dense is not None
    assert found.dense.image is not None
    table = mixed(found.dense.logits.flatten(1).T, found.dense.image, gamma)
    told = table.T.reshape(K, 3, 4)[None]
    expected = (F.interpolate(told, (H, W), mode="bilinear", align_corners=False)[0] / 2).softmax(dim=0)
    made = scores_of(found, use=("dense",), presence=gamma, dense_temperature=2.0)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    if gamma == 1:
        assert merge(found, use=("dense",), presence=1.0).labels.unique().tolist() == [
            int(found.dense.image.argmax())
        ]


@pytest.mark.parametrize("image", ["dense", "regions", "dense regions"])
def test_the_prior_is_a_share_of_every_region(image: str) -> None:
    """The same numbers whichever part looked at the whole image, and the same as giving it mixed logits."""
    found = evidence(image)
    whole = evidence("dense").dense
    assert whole is not None
    assert whole.image is not None
    assert found.regions is not None
    assert found.dense is not None
    crops = RegionScores(mixed(found.regions.logits, whole.image, 0.3), found.regions.valid)
    dense = DenseScores(mixed(found.dense.logits.flatten(1).T, whole.image, 0.3).T.reshape(K, 3, 4))
    told = replace(found, regions=crops, dense=dense)
    options = {"dense_weight": 0.4, "dense_pixel_weight": 0.2, "dense_temperature": 1.5}
    torch.testing.assert_close(
        scores_of(found, presence=0.3, **options), scores_of(told, **options), rtol=1e-5, atol=1e-6
    )


def test_each_part_prefers_its_own_look_at_the_image() -> None:
    found = evidence("dense regions")
    assert found.regions is not None
    other = replace(found, regions=replace(found.regions, image=torch.tensor([9.0, 0, 0, 0, 0])))
    crops = merge(other, use=("regions",), presence=1.0)
    assert crops.labels.unique().tolist() == [0]
    dense = merge(other, use=("dense",), presence=1.0)
    assert torch.equal(dense.labels, merge(found, use=("dense",), presence=1.0).labels)


def test_no_prior_is_what_there_was() -> None:
    assert torch.equal(scores_of(evidence("")), scores_of(evidence("dense"), presence=0.0))


@pytest.mark.parametrize("options", [{"presence": 0.2}, {"prune": "image", "prune_top": 2}])
def test_somebody_has_to_look_at_the_image(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"DENSE\.OPTIONS\.IMAGE true \(readout\), or CLASSIFIER\.NAME pooled"
    ):
        merge(evidence(""), **options)


@pytest.mark.parametrize(
    ("above", "top", "sure", "expected"),
    [
        (0.15, 0, 0.0, [1, 3]),
        (0.0, 2, 0.0, [1, 3]),
        (0.15, 1, 0.0, [1]),
        (0.04, 3, 0.0, [1, 2, 3]),
        (0.3, 2, 0.0, [1]),
        (0.15, 0, 0.61, None),  # not even the best is sure
        (0.15, 0, 0.59, [1, 3]),
        (0.7, 0, 0.0, None),  # none passes
        (0.01, 0, 0.0, None),  # all pass
        (0.0, 5, 0.0, None),
        (0.0, 9, 0.0, None),
    ],
)
def test_which_classes_are_kept(above: float, top: int, sure: float, expected: list[int] | None) -> None:
    kept = kept_classes(torch.tensor([0.05, 0.6, 0.1, 0.2, 0.05]), above, top, sure)
    assert (None if kept is None else kept.tolist()) == expected


def test_nothing_shown_is_nothing_dropped() -> None:
    assert kept_classes(torch.zeros(5), 0.0, 2, 0.0) is None


def test_where_a_class_may_show_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evidence()
    assert found.dense is not None
    assert found.dense.image is not None
    assert found.regions is not None
    torch.testing.assert_close(class_presence(found, "image", 3.0), found.dense.image.softmax(dim=0))
    places = [(found.dense.logits[:, y, x] / 3).softmax(dim=0) for y in range(3) for x in range(4)]
    expected = torch.stack(places).max(dim=0).values
    torch.testing.assert_close(class_presence(found, "dense", 3.0), expected)
    monkeypatch.setattr("twostage.ensembles._presence.PLACES_BYTES", 4 * K * 5)  # five places at a time
    torch.testing.assert_close(class_presence(found, "dense", 3.0), expected)
    valid = [found.regions.logits[r].softmax(dim=0) for r in (0, 1, 3)]
    torch.testing.assert_close(class_presence(found, "regions", 1.0), torch.stack(valid).max(dim=0).values)
    nothing = replace(found, regions=replace(found.regions, valid=torch.zeros(N, dtype=torch.bool)))
    assert class_presence(nothing, "regions", 1.0).tolist() == [0.0] * K


@pytest.mark.parametrize("source", ["image", "dense", "regions"])
@pytest.mark.parametrize(
    "more", [{"prune_above": 1e-6}, {"prune_top": K}, {"prune_above": 0.1, "prune_sure": 1.0}]
)
def test_where_no_class_is_dropped_nothing_changes(source: str, more: dict[str, Any]) -> None:
    found = evidence()
    made, plain = merge(found, prune=source, **more), merge(found)
    assert torch.equal(made.labels, plain.labels)
    assert made.scores is not None
    assert plain.scores is not None
    assert torch.equal(made.scores, plain.scores)
    assert made.info == plain.info


@pytest.mark.parametrize("presence", [0.0, 0.3])
@pytest.mark.parametrize("top", [1, 2, 3])
def test_pruning_is_asking_about_fewer_words(top: int, presence: float) -> None:
    """The same labels as evidence and a vocabulary without the dropped classes, by their own numbers."""
    found = evidence()
    assert found.dense is not None
    assert found.dense.image is not None
    assert found.regions is not None
    assert found.stage_one is not None
    kept = sorted(found.dense.image.argsort(descending=True)[:top].tolist())
    few = Evidence(
        found.size_hw,
        found.proposals,
        RegionScores(found.stage_one.logits[:, kept], found.stage_one.valid, found.stage_one.no_object),
        RegionScores(found.regions.logits[:, kept], found.regions.valid),
        DenseScores(found.dense.logits[kept], image=found.dense.image[kept]),
    )
    assert FLAGGED.seen is not None
    words = Vocabulary(tuple(FLAGGED.names[k] for k in kept), tuple(FLAGGED.seen[k] for k in kept))
    expected = merge(few, words, presence=presence, confidence=True)
    made = merge(found, prune="image", prune_top=top, presence=presence, confidence=True)
    assert made.labels.dtype == torch.int32
    assert torch.equal(made.labels.long(), torch.tensor(kept)[expected.labels.long()])
    assert made.scores is not None
    assert expected.scores is not None
    assert torch.equal(made.scores[kept], expected.scores)
    assert made.scores.shape == (K, H, W)
    dropped = [k for k in range(K) if k not in kept]
    assert made.scores[dropped].abs().max() == 0
    assert torch.equal(made.confidence, expected.confidence)  # type: ignore[arg-type]
    assert made.info["classes"] == top


def test_void_stays_void_among_fewer_classes() -> None:
    found = evidence()
    masks = torch.zeros(1, H, W, dtype=torch.bool)
    masks[0, :3, :4] = True
    sure = RegionScores(torch.tensor([[0.0, 0, 0, 9, 0]]), torch.ones(1, dtype=torch.bool))
    told = Evidence(found.size_hw, Proposals(masks, torch.ones(1)), None, sure, found.dense)
    made = merge(told, use=("regions",), prune="regions", prune_above=0.5, uncovered="void").labels
    assert torch.equal(made, torch.where(masks[0], 3, VOID).int())


def test_a_large_vocabulary_is_painted_with_few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[int] = []
    whole = GeometricEnsemble._label

    def counted(self: GeometricEnsemble, found: Evidence, parts: Any, words: Vocabulary) -> Segmentation:
        painted.append(len(words))
        return whole(self, found, parts, words)

    monkeypatch.setattr(GeometricEnsemble, "_label", counted)
    draw = torch.Generator().manual_seed(1)
    classes = 847
    found = Evidence(
        (40, 50),
        Proposals(torch.rand(6, 20, 25, generator=draw), torch.ones(6)),
        None,
        RegionScores(torch.randn(6, classes, generator=draw), torch.ones(6, dtype=torch.bool)),
        DenseScores(torch.randn(classes, 5, 6, generator=draw), image=torch.randn(classes, generator=draw)),
    )
    words = Vocabulary(tuple((f"class {k}",) for k in range(classes)))
    made = merge(found, words, prune="image", prune_top=50)
    assert painted == [50]
    assert found.dense is not None
    assert found.dense.image is not None
    likely = set(found.dense.image.topk(50).indices.tolist())
    assert set(made.labels.unique().tolist()) <= likely


def test_the_evidence_is_not_changed() -> None:
    found, again = evidence(), evidence()
    merge(found, presence=0.3, prune="dense", prune_top=2)
    for part in ("stage_one", "regions", "dense"):
        assert torch.equal(getattr(found, part).logits, getattr(again, part).logits)


@pytest.mark.parametrize("source", ["dense", "regions"])
def test_pruning_by_what_is_not_there(source: str) -> None:
    found = replace(evidence(), **{source: None})
    with pytest.raises(ValueError, match=f"prune '{source}' needs what the evidence does not have"):
        merge(found, prune=source, prune_top=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": "images", "prune_top": 1}, "Did you mean 'image'"),
        ({"presence": 1.5}, "presence must lie in \\[0, 1\\]"),
        ({"prune": "image", "prune_above": -0.1}, "prune_above must lie in"),
        ({"prune_sure": 2.0}, "prune_sure must lie in"),
        ({"prune_top": -1}, "prune_top must not be negative"),
        ({"prune": "dense"}, "would drop nothing"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeometricEnsemble.Config(**options)
