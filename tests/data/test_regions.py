"""Regions: which there are, how they are drawn, and the crops of both recipes against slow, obvious ones."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from twostage.data.errors import DataError
from twostage.data.region_crops import Look, centred, make_cutter, random_window
from twostage.data.region_loader import RegionLoader
from twostage.data.regions import (
    Region,
    RegionBatch,
    RegionPlan,
    cut_regions,
    find_regions,
    some_of_each,
)
from twostage.data.sample import Sample
from twostage.vocabulary import Vocabulary

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LOOK = Look(MEAN, STD, (32, 32))


class Blocks:
    """Noise pictures with block labels of four classes; the last photo of `bare` has no labels."""

    name = "blocks"

    def __init__(self, count: int = 6, bare: bool = False) -> None:
        self.vocabulary = Vocabulary((("a",), ("b",), ("c",), ("d",)), seen=(True, True, False, True))
        self.count, self.bare, self.reads = count, bare, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        rng = np.random.default_rng(index)
        image = torch.from_numpy(rng.integers(0, 256, (3, 24, 36), dtype=np.uint8))
        if self.bare and index == self.count - 1:
            return Sample(image, None, str(index), f"photos/{index}.jpg")
        labels = np.kron(rng.integers(-1, 3, (2, 3)), np.ones((12, 12), dtype=np.int64))
        return Sample(image, torch.from_numpy(labels.astype(np.int32)), str(index))


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


def rectangle(height: int, width: int, y0: int, y1: int, x0: int, x1: int) -> Tensor:
    """True in rows y0..y1-1 and columns x0..x1-1."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_every_class_of_every_photo_once() -> None:
    dataset = Blocks()
    expected = []
    for index in (1, 4, 5):
        labels = dataset[index].labels
        assert labels is not None
        expected += [Region(index, k) for k in range(4) if (labels == k).any()]
    assert find_regions(dataset, [1, 4, 5]) == expected
    assert len(expected) > 5


def test_a_data_set_that_knows_its_classes_is_believed() -> None:
    dataset: Any = Blocks()
    dataset.classes_present = lambda: [(0,), (1, 3), (), (2,), (), ()]
    assert find_regions(dataset, [1, 3]) == [Region(1, 1), Region(1, 3), Region(3, 2)]
    assert dataset.reads == 0


def test_photos_without_labels_are_named() -> None:
    with pytest.raises(DataError, match=r"photos/5.jpg has no labels"):
        find_regions(Blocks(bare=True), range(6))


REGIONS = [Region(photo, 0) for photo in range(10)] + [Region(3, 1), Region(7, 3), Region(8, 3)]


def test_some_regions_of_each_class() -> None:
    chosen = some_of_each(REGIONS, 2, seed=4)
    assert Counter(region.label for region in chosen) == {0: 2, 1: 1, 3: 2}
    assert chosen == sorted(set(chosen))
    assert some_of_each(REGIONS[::-1], 50, seed=4) == sorted(REGIONS)
    assert some_of_each([], 2, seed=4) == []


@pytest.mark.parametrize("fresh", [False, True])
def test_every_class_stands_equally_often_in_a_pass(fresh: bool) -> None:
    plan = RegionPlan(REGIONS, [0, 1, 3], per_class=4, seed=5, fresh=fresh)
    assert len(plan) == 12
    passes = [[plan.at(12 * turn + place) for place in range(12)] for turn in range(3)]
    for one in passes:
        assert Counter(region.label for region in one) == {0: 4, 1: 4, 3: 4}
        assert set(one) <= set(REGIONS)
    same_content = Counter(passes[0]) == Counter(passes[1]) == Counter(passes[2])
    assert same_content == (not fresh)
    assert passes[0] != passes[1], "another order"
    if fresh:
        assert all(len({region for region in one if region.label == 0}) == 4 for one in passes), "none twice"
    again = RegionPlan(REGIONS, [0, 1, 3], per_class=4, seed=5, fresh=fresh)
    assert [again.at(place) for place in (30, 2, 17)] == [plan.at(place) for place in (30, 2, 17)]


def test_paper_draws_with_numpys_generator_and_replacement() -> None:
    plan = RegionPlan(REGIONS, [0], per_class=32, seed=0, fresh=False)
    drawn = Counter(plan.at(place).photo for place in range(32))
    assert drawn == Counter(np.random.default_rng(0).choice(10, 32, replace=True).tolist())


def test_classes_without_regions() -> None:
    plan = RegionPlan(REGIONS, [0, 2], per_class=3, seed=0, fresh=True)
    assert plan.empty == [2]
    assert {plan.at(place).label for place in range(9)} == {0}
    with pytest.raises(DataError, match="none of the classes to learn occurs"):
        RegionPlan(REGIONS, [2], per_class=3, seed=0, fresh=True)
    with pytest.raises(DataError, match="list of classes to learn is empty"):
        RegionPlan(REGIONS, [], per_class=3, seed=0, fresh=True)


def test_fixed_crops_by_hand() -> None:
    """Mean colour outside the mask, then normalised, cut at an end-exclusive box, squashed by the cubic."""
    image, mask = noise(40, 50), rectangle(40, 50, 5, 40, 10, 50)
    mask[20, 20] = False
    crop = make_cutter("fixed", LOOK).test(image, mask)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    filled = torch.where(mask, image.float(), 255 * mean)
    normal = ((filled / 255 - mean) / std)[:, 5:40, 10:50]
    expected = F.interpolate(normal[None], (32, 32), mode="bicubic", align_corners=False)[0]
    assert crop is not None
    torch.testing.assert_close(crop, expected, rtol=1e-5, atol=1e-5)


def test_fixed_crops_look_at_photos_at_test_size() -> None:
    labels = torch.zeros(24, 36, dtype=torch.int32)
    labels[:12] = 3
    image, small = make_cutter("fixed", Look(MEAN, STD, (8, 8), min_size=12)).at_size(noise(24, 36), labels)
    assert image.shape == (3, 12, 18)
    assert small.shape == (12, 18)
    assert small.dtype == torch.int32
    assert (small[:6] == 3).all()
    assert (small[6:] == 0).all()


def test_fixed_training_crops_vary_within_the_box() -> None:
    image, mask = noise(40, 50), rectangle(40, 50, 5, 25, 10, 40)
    whole = make_cutter("fixed", LOOK).test(image, mask)
    assert whole is not None
    exact = make_cutter("fixed", LOOK, smallest=1.0, flip=0.0)
    same = exact.train(image, mask, np.random.default_rng(0))
    assert same is not None
    assert torch.equal(same, whole)
    mirrored = make_cutter("fixed", LOOK, smallest=1.0, flip=1.0).train(image, mask, np.random.default_rng(0))
    assert mirrored is not None
    assert torch.equal(mirrored, whole.flip(-1))
    varied = make_cutter("fixed", LOOK, smallest=0.3)
    crops = [varied.train(image, mask, np.random.default_rng(seed)) for seed in range(5)]
    assert all(crop is not None and not torch.equal(crop, whole) for crop in crops)


def test_a_thin_mask_is_never_cut_away() -> None:
    mask = torch.eye(40, dtype=torch.bool)
    mask[:, :] &= torch.arange(40) % 39 == 0  # two far corners of a large box
    cutter = make_cutter("fixed", LOOK, smallest=0.1)
    for seed in range(30):
        crop = cutter.train(noise(40, 40), mask, np.random.default_rng(seed))
        assert crop is not None
        assert crop.abs().max() > 0, "something other than the fill is seen"


def test_paper_training_crops_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Box clamped to W - 1, Pillow to 244 x 224, the raw mean in normalised pixels outside the mask."""
    image, mask = noise(60, 80), rectangle(60, 80, 10, 60, 30, 80)
    mask[20:30, 40:50] = False
    monkeypatch.setattr("twostage.data.region_crops.random_window", lambda *_: (4, 6, 30, 20))
    crop = make_cutter("paper", LOOK, flip=0.0).train(image, mask, np.random.default_rng(0))
    window = (slice(14, 44), slice(36, 56))
    photo = Image.fromarray(image[:, window[0], window[1]].permute(1, 2, 0).numpy())
    pixels = np.asarray(photo.resize((224, 244), Image.Resampling.BILINEAR)).astype(np.float64) / 255
    kept = Image.fromarray(mask[window].numpy().astype(np.uint8)).resize((224, 244), Image.Resampling.NEAREST)
    expected = (pixels - MEAN) / STD
    expected[np.asarray(kept) == 0] = MEAN
    assert crop is not None
    assert crop.shape == (3, 244, 224)
    np.testing.assert_allclose(crop.permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert (np.asarray(kept) == 0).any()


def test_the_papers_box_ends_early_at_the_border_only() -> None:
    cutter = make_cutter("paper", LOOK)
    image = noise(30, 40)
    inner = cutter.test(image, rectangle(30, 40, 5, 25, 5, 35))
    border = cutter.test(image, rectangle(30, 40, 5, 30, 5, 40))
    assert inner is not None
    assert border is not None

    def inside(crop: Tensor) -> tuple[int, int]:
        shown = (crop != torch.tensor(MEAN).view(3, 1, 1)).any(dim=0)
        return int(shown.any(dim=1).sum()), int(shown.any(dim=0).sum())

    assert inside(inner) == (20, 30)
    assert inside(border) == (24, 34)
    assert cutter.test(image, rectangle(30, 40, 5, 25, 39, 40)) is None, "nothing is left of the last column"


def test_paper_test_crops_are_never_resized() -> None:
    image, mask = noise(300, 400), rectangle(300, 400, 10, 280, 20, 320)
    crop = make_cutter("paper", LOOK).test(image, mask)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (image / 255 - mean) / std
    assert crop is not None
    torch.testing.assert_close(crop, expected[:, 33:257, 58:282])
    ring = rectangle(300, 400, 10, 280, 20, 320) & ~rectangle(300, 400, 20, 270, 30, 310)
    assert make_cutter("paper", LOOK).test(image, ring) is None, "the middle shows nothing of the mask"


@pytest.mark.parametrize(
    ("have", "want"), [((5, 8), (3, 4)), ((2, 3), (4, 4)), ((2, 9), (4, 4)), ((4, 4), (4, 4))]
)
def test_centre_crop_and_zeros(have: tuple[int, int], want: tuple[int, int]) -> None:
    planes = torch.arange(1, have[0] * have[1] + 1).reshape(1, *have)
    made = centred(planes, want)
    assert made.shape == (1, *want)
    kept = (min(have[0], want[0]), min(have[1], want[1]))
    top, left = (have[0] - kept[0]) // 2, (have[1] - kept[1]) // 2
    assert made[made > 0].tolist() == planes[0, top : top + kept[0], left : left + kept[1]].flatten().tolist()


def test_windows_have_the_areas_and_ratios_asked_for() -> None:
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        top, left, height, width = random_window((200, 160), 0.08, rng)
        assert top >= 0
        assert left >= 0
        assert top + height <= 200
        assert left + width <= 160
        shares.append(height * width / 32000)
        ratios.append(width / height)
    assert 0.07 < min(shares) < 0.12
    assert 0.8 < max(shares) <= 1.0
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    assert random_window((10, 100), 0.9, rng) == (0, 43, 10, 13), "the centre, no wider than 4 to 3"
    assert random_window((1, 1), 0.08, rng) == (0, 0, 1, 1)


def test_unknown_modes_name_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown mode 'papr'.*'paper'"):
        make_cutter("papr", LOOK)


def test_test_crops_of_chosen_and_of_all_labels() -> None:
    dataset, cutter = Blocks(), make_cutter("fixed", LOOK)
    found = dict(cut_regions(dataset, {2: None, 5: [1]}, cutter))
    expected = [region for region in find_regions(dataset, [2, 5]) if region.photo == 2 or region.label == 1]
    assert list(found) == expected
    for region, crop in found.items():
        sample = dataset[region.photo]
        assert sample.labels is not None
        again = cutter.test(sample.image, sample.labels == region.label)
        assert again is not None
        assert torch.equal(crop, again)


def loader(batch_size: int = 4, **options: Any) -> RegionLoader:
    dataset = Blocks()
    plan = RegionPlan(find_regions(dataset, range(6)), [1, 0], per_class=3, seed=1, fresh=True)
    return RegionLoader(dataset, plan, make_cutter("fixed", LOOK), batch_size, seed=1, **options)


def take(count: int, batch_size: int = 4, **options: Any) -> list[RegionBatch]:
    return list(itertools.islice(loader(batch_size, **options), count))


def test_batches_depend_on_their_number_alone() -> None:
    first = take(6)
    assert first[0].pixels.shape == (4, 3, 32, 32)
    assert first[0].classes.dtype == torch.int64
    for other in (take(6, num_workers=2), first[:2] + take(4, start_iteration=2)):
        for one, two in zip(first, other, strict=True):
            assert torch.equal(one.pixels, two.pixels)
            assert one.image_ids == two.image_ids
    shares = [take(6, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, left, right in zip(first, *shares, strict=True):
        assert torch.equal(whole.pixels, torch.cat([left.pixels, right.pixels]))
        assert torch.equal(whole.classes, torch.cat([left.classes, right.classes]))
    part = first[0][1:3]
    assert len(part) == 2
    assert part.image_ids == first[0].image_ids[1:3]


def test_class_numbers_follow_the_plan() -> None:
    made = loader()
    for place, number in enumerate(next(iter(made)).classes.tolist()):
        assert made.plan.labels[number] == made.plan.at(place).label


def test_a_region_that_vanishes_gives_way_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader()
    real = made.cutter.train
    calls = []

    def sometimes(cutter: Any, image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor | None:
        calls.append(1)
        return None if len(calls) % 2 else real(image, mask, rng)

    monkeypatch.setattr(type(made.cutter), "train", sometimes)
    batch = next(iter(made))
    assert len(batch) == 4
    assert len(calls) == 8
    monkeypatch.setattr(type(made.cutter), "train", lambda *_: None)
    with pytest.raises(DataError, match=r"blocks: 50 regions of '[ab]' gave no crop"):
        next(iter(made))
