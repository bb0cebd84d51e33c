"""The batch of an iteration is a function of seed, iteration, rank and world size, and of nothing else."""

from __future__ import annotations

import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch

from twostage.data.errors import DataError, ImageReadError
from twostage.data.loader import TrainLoader, class_map, cut_masks, training_vocabulary
from twostage.data.sample import Sample, TrainBatch
from twostage.data.transforms import TrainTransformConfig
from twostage.vocabulary import Vocabulary

CONFIG = TrainTransformConfig(short_edges=(16, 20), crop_size_hw=(16, 16))


class Noise:
    """Random pictures with random labels of five classes, two of them unseen; some may be unreadable."""

    name = "noise"

    def __init__(self, count: int = 7, broken: tuple[int, ...] = ()) -> None:
        names = (("a",), ("b",), ("c",), ("d",), ("e",))
        self.vocabulary = Vocabulary(names, seen=(True, False, True, False, True))
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise ImageReadError(f"photos/{index}.jpg: broken")
        rng = np.random.default_rng(index)
        image = torch.from_numpy(rng.integers(0, 256, (3, 18, 24), dtype=np.uint8))
        labels = np.kron(rng.integers(-1, 5, (3, 4)), np.ones((6, 6), dtype=np.int64))
        return Sample(image, torch.from_numpy(labels.astype(np.int32)), str(index))


def take(count: int, batch_size: int = 3, dataset: Noise | None = None, **options: int) -> list[TrainBatch]:
    options.setdefault("seed", 0)
    loader = TrainLoader(dataset or Noise(), batch_size, transform_config=CONFIG, **options)
    return list(itertools.islice(loader, count))


def assert_same(left: TrainBatch, right: TrainBatch) -> None:
    assert left.image_ids == right.image_ids
    assert torch.equal(left.images, right.images)
    assert torch.equal(left.labels, right.labels)
    for ours, theirs in zip([*left.masks, *left.classes], [*right.masks, *right.classes], strict=True):
        assert torch.equal(ours, theirs)


def test_shapes_and_kinds() -> None:
    (batch,) = take(1)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.shape == (3, 16, 16)
    assert batch.labels.dtype == torch.int64
    for masks, classes in zip(batch.masks, batch.classes, strict=True):
        assert masks.dtype == torch.bool
        assert masks.shape == (len(classes), 16, 16)
        assert classes.dtype == torch.int64


def test_workers_change_nothing() -> None:
    for alone, with_workers in zip(take(5), take(5, num_workers=2), strict=True):
        assert_same(alone, with_workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_where_it_stopped(workers: int) -> None:
    whole = take(9)
    for expected, resumed in zip(whole[4:], take(5, start_iteration=4, num_workers=workers), strict=True):
        assert_same(expected, resumed)


def test_processes_share_the_batch_of_one_process() -> None:
    together = take(4, batch_size=4)
    parts = [take(4, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, first, second in zip(together, *parts, strict=True):
        assert whole.image_ids == first.image_ids + second.image_ids
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))


def test_every_epoch_visits_each_sample_once_in_another_order() -> None:
    ids = [name for batch in take(14, batch_size=3) for name in batch.image_ids]
    epochs = [ids[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == sorted(map(str, range(7))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_seeds_differ_and_a_sample_is_cropped_anew_each_time() -> None:
    assert [b.image_ids for b in take(3)] != [b.image_ids for b in take(3, seed=1)]
    single = take(6, batch_size=1, dataset=Noise(count=1))
    assert len({batch.images.numpy().tobytes() for batch in single}) == 6


def test_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    take(2)
    take(2, num_workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_unseen_classes_become_void_and_masks_match_the_labels() -> None:
    loader = TrainLoader(Noise(), 4, 0, CONFIG)
    assert loader.vocabulary.shown == ("a", "c", "e")
    counted: Counter[int] = Counter()
    for batch in itertools.islice(loader, 5):
        for labels, masks, classes in zip(batch.labels, batch.masks, batch.classes, strict=True):
            assert classes.tolist() == sorted({int(v) for v in labels.flatten().tolist()} - {-1})
            for mask, number in zip(masks, classes, strict=True):
                assert torch.equal(mask, labels == number)
                counted[int(number)] += 1
    assert set(counted) == {0, 1, 2}


def test_an_image_without_classes_has_no_masks() -> None:
    labels = torch.tensor([[[-1, -1]], [[2, 0]]])
    batch = cut_masks(torch.zeros((2, 3, 1, 2), dtype=torch.uint8), labels, ["x", "y"])
    assert batch.masks[0].shape == (0, 1, 2)
    assert batch.classes[0].tolist() == []
    assert batch.classes[1].tolist() == [0, 2]
    assert batch.masks[1].tolist() == [[[False, True]], [[True, False]]]


def test_class_map_without_flags_keeps_all() -> None:
    vocabulary = Vocabulary((("a",), ("b",)))
    assert class_map(vocabulary).tolist() == [0, 1]
    assert class_map(Noise().vocabulary).tolist() == [0, -1, 1, -1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_stops_with_its_name_alone(workers: int) -> None:
    with pytest.raises(ImageReadError, match=r"^photos/3\.jpg: broken$"):
        take(3, dataset=Noise(broken=(3,)), num_workers=workers)


def test_unreadable_samples_can_be_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loader = TrainLoader(Noise(broken=(3, 4)), 7, 0, CONFIG, on_error="next")
        ids = next(iter(loader)).image_ids
    assert sorted(ids) == ["0", "1", "2", "5", "5", "5", "6"]
    assert "photos/3.jpg" in caplog.text
    with pytest.raises(DataError, match="not one of its 2 samples"):
        next(iter(TrainLoader(Noise(2, broken=(0, 1)), 1, 0, CONFIG, on_error="next")))


def test_impossible_loaders_are_refused() -> None:
    with pytest.raises(DataError, match="noise: the training data set has no images"):
        TrainLoader(Noise(count=0), 1, 0, CONFIG)
    unseen = Noise()
    unseen.vocabulary = Vocabulary((("a",),), seen=(False,))
    with pytest.raises(DataError, match="every class is marked unseen"):
        training_vocabulary(unseen)
    for wrong in ({"batch_size": 0}, {"rank": 2, "world_size": 2}, {"start_iteration": -1}, {"seed": -1}):
        with pytest.raises(DataError, match="TrainLoader: expected"):
            take(1, **wrong)
