"""One judge for every component of a kind: whatever stands in the folder is found by name and tried here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from contract_parts import bank, named, photos, same, tiny, width_of
from torch import Tensor

from twostage import registry
from twostage.interfaces import DenseHead, Ensemble, RegionClassifier
from twostage.types import VOID, DenseScores, Evidence, PixelScores, Proposals, RegionScores
from twostage.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
)
def test_it_owns_documented_frozen_options(kind: str, name: str) -> None:
    component: Any = registry.find(kind, name)
    assert dataclasses.is_dataclass(component.Config)
    assert component.Config.__dataclass_params__.frozen, (
        f"{name}: @dataclass(frozen=True), so that options stay put"
    )
    assert component.__doc__, f"{name}: say in a docstring what it does"
    told = component.Config.__doc__ or ""
    untold = [field.name for field in dataclasses.fields(component.Config) if field.name not in told]
    assert not untold, f"{name}.Config: explain in its docstring: {untold}"
    assert isinstance(tiny(kind, name).config, component.Config)


def masks_for(images: Sequence[Tensor]) -> list[Proposals]:
    """A square, an empty mask, everything, one pixel; the second photo's are soft."""
    made = []
    for place, image in enumerate(images):
        masks = torch.zeros(4, *image.shape[1:])
        masks[0, 8:24, 6:26] = 0.9
        masks[2] = 0.8
        masks[3, 3, 5] = 1.0
        made.append(Proposals(masks if place else masks > 0.5, torch.ones(4), source="test"))
    return made


@named("classifiers")
def test_classifiers_keep_every_row(name: str) -> None:
    classifier = tiny("classifiers", name)
    assert isinstance(classifier, RegionClassifier)
    images = photos()
    masks, text = _with_embeddings(masks_for(images), width_of(classifier)), bank(width_of(classifier))
    before = [(image.clone(), found.masks.clone()) for image, found in zip(images, masks, strict=True)]
    scores = classifier.classify(images, masks, text)
    assert len(scores) == 2
    for own, image, found, (image_before, masks_before) in zip(scores, images, masks, before, strict=True):
        assert torch.equal(image, image_before)
        assert torch.equal(found.masks, masks_before)
        assert own.logits.shape == (4, 3)
        assert own.logits.dtype == torch.float32
        assert own.valid.tolist() == [True, False, True, True]
        assert torch.isfinite(own.logits[own.valid]).all()
        assert not torch.isnan(own.logits).any()


@named("classifiers")
def test_classifiers_look_at_each_mask_alone(name: str) -> None:
    classifier, images = tiny("classifiers", name), photos()
    masks, text = _with_embeddings(masks_for(images), width_of(classifier)), bank(width_of(classifier))
    together = classifier.classify(images, masks, text)
    for image, found, own in zip(images, masks, together, strict=True):
        same(own, classifier.classify([image], [found], text)[0])
    order = [3, 0, 2, 1]
    turned = classifier.classify(images[:1], [masks[0][order]], text)[0]
    same(turned, together[0][order])


@named("classifiers")
def test_classifiers_with_nothing_to_do(name: str) -> None:
    classifier, images = tiny("classifiers", name), photos()
    none = [found[[]] for found in _with_embeddings(masks_for(images), width_of(classifier))]
    scores = classifier.classify(images, none, bank(width_of(classifier)))
    assert [own.logits.shape for own in scores] == [(0, 3), (0, 3)]
    assert classifier.classify([], [], bank(width_of(classifier))) == []


def _with_embeddings(found: list[Proposals], dim: int) -> list[Proposals]:
    rows = torch.nn.functional.normalize(
        torch.randn(4, dim, generator=torch.Generator().manual_seed(1)), dim=1
    )
    return [dataclasses.replace(own, embeddings=rows) for own in found]


@named("dense")
def test_dense_heads_cover_the_photo(name: str) -> None:
    head = tiny("dense", name)
    assert isinstance(head, DenseHead)
    images, text = photos(), bank(width_of(head))
    guided = getattr(head, "wants_regions", False)
    masks = masks_for(images)

    def predict(one: Any, of: slice = slice(None)) -> list[DenseScores]:
        rest = (masks[of],) if guided else ()
        return list(head.predict(images[of], one, *rest))

    before = [image.clone() for image in images]
    maps = predict(text)
    assert len(maps) == 2
    for place, (image, kept, own) in enumerate(zip(images, before, maps, strict=True)):
        assert torch.equal(image, kept)
        assert isinstance(own, DenseScores)
        assert own.logits.shape[0] == 3
        assert min(own.logits.shape[1:]) >= 1
        assert own.logits.dtype == torch.float32
        assert torch.isfinite(own.logits).all()
        same(own, predict(text, slice(place, place + 1))[0])
    assert predict(text, slice(0)) == []
    assert predict(bank(width_of(head), classes=1), slice(1))[0].logits.shape[0] == 1


ALL_PARTS = ("stage_one", "regions", "dense", "pixels")


def evidence(classes: int, count: int = 4, size_hw: tuple[int, int] = (20, 30)) -> Evidence:
    """Every part present, masks at half size, one mask empty."""
    draw = torch.Generator().manual_seed(classes + count)
    masks = torch.rand(count, 10, 15, generator=draw)
    masks[1:2] = 0
    valid = masks.flatten(1).amax(dim=1) > 0
    first = RegionScores(
        torch.randn(count, classes, generator=draw), torch.ones(count, dtype=torch.bool), torch.zeros(count)
    )
    second = RegionScores(torch.randn(count, classes, generator=draw), valid)
    dense = DenseScores(torch.randn(classes, 5, 7, generator=draw))
    pixels = PixelScores(
        torch.randn(classes, 3, 4, generator=draw),
        stride=4,
        image_hw=(10, 15),
        embeddings=torch.randn(6, 3, 4, generator=draw),
    )
    return Evidence(size_hw, Proposals(masks, torch.ones(count), source="test"), first, second, dense, pixels)


def snapshot(item: Any) -> list[Tensor]:
    """Copies of all tensors below an item, in order."""
    if isinstance(item, Tensor):
        return [item.clone()]
    if dataclasses.is_dataclass(item):
        return [
            tensor for field in dataclasses.fields(item) for tensor in snapshot(getattr(item, field.name))
        ]
    return []


@named("ensembles")
@pytest.mark.parametrize("classes", [1, 3, 300])
@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize(
    "parts",
    [
        ("stage_one", "regions", "dense"),
        ("regions",),
        ("stage_one",),
        ("dense",),
        ("pixels", "dense"),
        ("pixels",),
    ],
)
def test_ensembles_label_every_pixel(name: str, classes: int, count: int, parts: tuple[str, ...]) -> None:
    ensemble = tiny("ensembles", name)
    assert isinstance(ensemble, Ensemble)
    given = evidence(classes, count)
    given = dataclasses.replace(given, **{p: None for p in ALL_PARTS if p not in parts})
    before = snapshot(given)
    seen = tuple(position % 2 == 0 for position in range(classes))
    vocabulary = Vocabulary(tuple((f"class {position}",) for position in range(classes)), seen)
    if not set(parts) & set(getattr(ensemble, "weighs", ALL_PARTS)):
        with pytest.raises(ValueError, match="evidence"):
            ensemble.merge(given, vocabulary)
        return
    merged = ensemble.merge(given, vocabulary)
    assert merged.labels.shape == (20, 30)
    assert merged.labels.dtype == torch.int32
    assert VOID <= int(merged.labels.min()) <= int(merged.labels.max()) < classes
    for old, new in zip(before, snapshot(given), strict=True):
        assert torch.equal(old, new), f"{name} changed the evidence"
    same(merged, ensemble.merge(given, vocabulary))


@named("ensembles")
def test_ensembles_need_something_to_weigh(name: str) -> None:
    with pytest.raises(ValueError, match="evidence"):
        tiny("ensembles", name).merge(Evidence((4, 5)), Vocabulary.from_words("a, b"))


@named("ensembles")
def test_a_sure_mask_gets_its_class(name: str) -> None:
    """Left half class 2, right half class 0, said by everyone: no sensible merge has another answer."""
    masks = torch.zeros(2, 8, 8)
    masks[0, :, :4], masks[1, :, 4:] = 1, 1
    sure = torch.tensor([[-9.0, -9.0, 9.0], [9.0, -9.0, -9.0]])
    valid = torch.ones(2, dtype=torch.bool)
    dense = (masks[:, :, :, None] * sure[:, None, None, :]).sum(0).permute(2, 0, 1)
    given = Evidence(
        (8, 8),
        Proposals(masks, torch.ones(2)),
        RegionScores(sure, valid),
        RegionScores(sure, valid),
        DenseScores(dense),
        DenseScores(dense),
    )
    labels = tiny("ensembles", name).merge(given, Vocabulary.from_words("a, b, c")).labels
    assert torch.equal(labels, (masks[0] * 2).int())
