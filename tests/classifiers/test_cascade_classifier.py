"""A cheap look, then crops where it is in doubt: which masks are cut out, and whose scores each one has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_parts import write_system
from torch import Tensor

from twostage import registry
from twostage.builder import Builder
from twostage.classifiers.cascade import CascadeClassifier, margins
from twostage.classifiers.crops import CropClassifier
from twostage.classifiers.masked_attention import MaskedAttentionClassifier
from twostage.classifiers.pooled import PooledClassifier
from twostage.clip.model import ClipModel
from twostage.config import load_config
from twostage.types import Proposals, RegionScores, TextBank

CROPS = {"image_size": 32, "mode": "antialias"}


def bank(classes: int = 4) -> TextBank:
    rows = F.normalize(torch.randn(classes, 32, generator=torch.Generator().manual_seed(3)), dim=1)
    return TextBank(rows, torch.arange(classes), classes, 30.0)


def photos() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=draw) for size in ((32, 40), (48, 32))
    ]


def masks() -> list[Proposals]:
    """Eight squares of each photo, the third one empty."""
    made = []
    for place, image in enumerate(photos()):
        own = torch.zeros(8, *image.shape[1:])
        for number in range(8):
            own[number, 3 * number : 3 * number + 9, place + number : place + 2 * number + 12] = 1.0
        own[2] = 0
        rows = torch.randn(8, 32, generator=torch.Generator().manual_seed(place))
        made.append(Proposals(own, torch.ones(8), rows))
    return made


def slow_margin(logits: Tensor) -> float:
    top = sorted(logits.softmax(dim=0).tolist())
    return top[-1] - top[-2]


def cheap(clip: ClipModel, temperature: float = 1.0) -> list[RegionScores]:
    found = PooledClassifier(PooledClassifier.Config(level="logits"), clip).classify(
        photos(), masks(), bank()
    )
    return [replace(own, logits=own.logits / temperature) for own in found]


def cropped(clip: ClipModel) -> list[RegionScores]:
    return CropClassifier(CropClassifier.Config(**CROPS), clip).classify(photos(), masks(), bank())  # type: ignore[arg-type]


def cascade(clip: ClipModel, **options: Any) -> CascadeClassifier:
    plain = {"first": "pooled", "temperature": 1.0}
    given = {**plain, "pooled": {"level": "logits"}, "crops": CROPS, **options}
    return CascadeClassifier(CascadeClassifier.Config(**given), clip)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_close_calls_are_cut_out_and_the_others_keep_the_cheap_scores(
    vit: ClipModel, temperature: float
) -> None:
    first, second = cheap(vit, temperature), cropped(vit)
    every = sorted(slow_margin(row) for own in first for row in own.logits[own.valid])
    margin = (every[6] + every[7]) / 2
    classifier = cascade(vit, margin=margin, temperature=temperature)
    scores = classifier.classify(photos(), masks(), bank())
    made = []
    for own, one, two in zip(scores, first, second, strict=True):
        assert own.valid.tolist() == one.valid.tolist() == two.valid.tolist()
        doubtful = [bool(one.valid[n]) and slow_margin(one.logits[n]) < margin for n in range(8)]
        for n, closer in enumerate(doubtful):
            torch.testing.assert_close(
                own.logits[n], (two if closer else one).logits[n], rtol=1e-4, atol=1e-4
            )
        made.append(sum(doubtful))
    assert sum(made) == 7
    assert classifier.crops_made == tuple(made)


def test_the_two_ends(vit: ClipModel) -> None:
    none, every = cascade(vit, margin=0.0), cascade(vit, margin=1.0)
    for own, one in zip(none.classify(photos(), masks(), bank()), cheap(vit), strict=True):
        assert torch.equal(own.logits, one.logits)
    assert none.crops_made == (0, 0)
    for own, two in zip(every.classify(photos(), masks(), bank()), cropped(vit), strict=True):
        torch.testing.assert_close(own.logits, two.logits, rtol=1e-4, atol=1e-4)
    assert every.crops_made == (7, 7)


def test_at_most_so_many_the_closest_first(vit: ClipModel) -> None:
    classifier = cascade(vit, margin=1.0, top=2)
    scores = classifier.classify(photos(), masks(), bank())
    assert classifier.crops_made == (2, 2)
    for own, one, two in zip(scores, cheap(vit), cropped(vit), strict=True):
        order = sorted((slow_margin(one.logits[n]), n) for n in range(8) if one.valid[n])
        for _, n in order[:2]:
            torch.testing.assert_close(own.logits[n], two.logits[n], rtol=1e-4, atol=1e-4)
        for _, n in order[2:]:
            assert torch.equal(own.logits[n], one.logits[n])


def test_only_doubtful_masks_reach_clip(vit: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = cascade(vit, margin=1.0, top=3)
    asked: list[int] = []
    whole = classifier.crops.classify

    def noted(images: Any, proposals: Any, text: Any) -> list[RegionScores]:
        asked.extend(len(own) for own in proposals)
        return whole(images, proposals, text)

    monkeypatch.setattr(classifier.crops, "classify", noted)
    classifier.classify(photos(), masks(), bank())
    assert asked == [3, 3]


def test_the_picture_as_a_whole_is_the_cheap_look_s(vit: ClipModel) -> None:
    scores = cascade(vit, margin=1.0, temperature=2.0).classify(photos(), masks(), bank())[0]
    one = cheap(vit)[0]
    assert scores.image is not None
    assert one.image is not None
    torch.testing.assert_close(scores.image, one.image / 2)


@pytest.mark.parametrize("first", ["masked_attention", "query"])
def test_other_first_looks(vit: ClipModel, first: str) -> None:
    classifier = cascade(vit, first=first, margin=0.0, masked_attention={"itself": False})
    scores = classifier.classify(photos(), masks(), bank())
    if first == "query":
        alone = registry.find("classifiers", "query").tiny().classify(photos(), masks(), bank())  # type: ignore[attr-defined]
    else:
        config = MaskedAttentionClassifier.Config(itself=False)
        alone = MaskedAttentionClassifier(config, vit).classify(photos(), masks(), bank())
    for own, one in zip(scores, alone, strict=True):
        assert torch.equal(own.logits, one.logits)


def test_margins() -> None:
    valid = torch.ones(2, dtype=torch.bool)
    logits = torch.tensor([[0.0, 0.0, -99.0], [1.0, 3.0, -99.0]])
    expected = [0.0, slow_margin(logits[1])]
    assert margins(RegionScores(logits, valid)).tolist() == pytest.approx(expected, abs=1e-6)
    assert margins(RegionScores(logits[:, :1], valid)).tolist() == [1.0, 1.0]


def test_one_class_needs_no_crops(vit: ClipModel) -> None:
    classifier = cascade(vit, margin=1.0)
    assert classifier.classify(photos(), masks(), bank(1))[0].logits.shape == (8, 1)
    assert classifier.crops_made == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": "pool"}, "Did you mean 'pooled'"),
        ({"margin": 1.5}, r"margin must lie in \[0, 1\]"),
        ({"top": -1}, "top must not be negative"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"pooled": {"levle": "logits"}}, "unknown option 'levle'.*'level'"),
        ({"crops": {"mode": "papre"}}, "Did you mean 'paper'"),
        ({"crops": "antialias"}, "crops: expected options by name"),
        ({"query": {"mask_threshold": 2}}, "mask_threshold must lie in"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CascadeClassifier.Config(**options)


def test_options_of_both_come_from_a_configuration(tmp_path: Path) -> None:
    words = ["CLASSIFIER.NAME=cascade", "CLASSIFIER.OPTIONS.CROPS.CHUNK=4", "CLASSIFIER.OPTIONS.FIRST=pooled"]
    words += ["CLASSIFIER.OPTIONS.POOLED.LEVEL=features", "CLASSIFIER.OPTIONS.MARGIN=0.25"]
    config = load_config(write_system(tmp_path), words)
    made = Builder(config).component("classifiers", config.classifier)
    assert isinstance(made, CascadeClassifier)
    assert made.config.margin == 0.25
    assert isinstance(made.crops, CropClassifier)
    assert made.crops.config.chunk == 4
    assert isinstance(made.first, PooledClassifier)
    assert made.first.config.level == "features"
    assert made.first.clip is made.crops.clip


def test_masks_of_another_size_are_refused(vit: ClipModel) -> None:
    with pytest.raises(ValueError, match="CascadeClassifier: the masks of image 0"):
        cascade(vit).classify(photos()[:1], masks()[1:], bank())
