"""Density clustering against the algorithm that visits points one by one, and votes inside clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.clusters import (
    cluster_regions,
    density_clusters,
    majority,
    median_filter,
    voted,
    within,
)


def classic(near: np.ndarray, least: int) -> list[int]:
    """DBSCAN as it is told: every point in order; an unlabelled core grows its cluster to the end."""
    labels = [-1] * len(near)
    cluster = 0
    for start in range(len(near)):
        if labels[start] != -1 or near[start].sum() < least:
            continue
        waiting = [start]
        while waiting:
            point = waiting.pop()
            if labels[point] != -1:
                continue
            labels[point] = cluster
            if near[point].sum() >= least:
                waiting += [int(other) for other in np.nonzero(near[point])[0]]
        cluster += 1
    return labels


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least", [1, 3, 6])
def test_the_same_labels_as_the_algorithm(seed: int, least: int) -> None:
    rows = torch.randn(90, 2, generator=torch.Generator().manual_seed(seed))
    near = within(rows, 0.35)
    expected = classic(near.numpy(), least)
    assert density_clusters(near, least).tolist() == expected
    if least == 3:
        assert min(expected) == -1
        assert max(expected) >= 2, "several clusters and noise, or the test says little"


def test_a_border_point_goes_to_the_first_cluster() -> None:
    """Two groups of four on a line; the point between them is near one of each, and no core itself."""
    line = [4.4, 4.6, 4.8, 5.0, 3.7, 2.4, 2.6, 2.8, 3.0, 9.0]
    rows = torch.tensor(line)[:, None]
    near = within(rows, 0.75)
    assert near[4].sum() == 3
    assert density_clusters(near, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert classic(near.numpy(), 4) == [0, 0, 0, 0, 0, 1, 1, 1, 1, -1]


def test_all_noise_one_point_and_one_cluster() -> None:
    apart = torch.arange(5.0)[:, None] * 10
    assert density_clusters(within(apart, 1), 2).tolist() == [-1] * 5
    assert density_clusters(within(apart[:1], 1), 1).tolist() == [0]
    assert density_clusters(within(apart[:1], 1), 2).tolist() == [-1]
    assert density_clusters(within(apart, 100), 5).tolist() == [0] * 5


def test_who_is_within_a_radius() -> None:
    rows = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.cdist(rows.double(), rows.double()) <= 3.5
    assert torch.equal(within(rows, 3.5), expected)
    assert 40 < int(expected.sum()) < 380
    assert within(torch.tensor([[0.0], [1.0]]), 1.0).all(), "the radius itself is near"


@pytest.mark.parametrize("near", [torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 2), torch.ones(2)])
def test_other_matrices_are_refused(near: Tensor) -> None:
    with pytest.raises(TwostageError, match="square bool matrix"):
        density_clusters(near, 1)


def test_numbers_out_of_range() -> None:
    with pytest.raises(TwostageError, match="at least 1, got 0"):
        density_clusters(torch.ones(2, 2, dtype=torch.bool), 0)
    for size in (0, 4, -3):
        with pytest.raises(TwostageError, match=f"odd and at least 1, got {size}"):
            median_filter(torch.zeros(1, 4, 4), size)


@pytest.mark.parametrize("shape", [(2, 12, 9), (1, 4, 4), (3, 1, 5), (1, 1, 1), (1, 2, 20)])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_median_is_scipys(shape: tuple[int, ...], size: int) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = np.stack([ndimage.median_filter(one, size, mode="reflect") for one in maps.numpy()])
    assert torch.equal(median_filter(maps, size), torch.from_numpy(expected))


def test_regions_by_hand() -> None:
    """Forty clusters of a patch or more, one map at a time."""
    generator = torch.Generator().manual_seed(4)
    affinity = torch.rand(54, 54, generator=generator)
    labels = torch.cat([torch.arange(40), torch.arange(14) - 1])
    owner = cluster_regions(affinity, labels, (6, 9), (48, 72))
    assert owner is not None
    maps = []
    for cluster in range(40):
        mean = affinity[labels == cluster].mean(dim=0).reshape(1, 1, 6, 9)
        four = F.interpolate(mean, scale_factor=4, mode="bilinear", align_corners=False)[0, 0]
        smooth = torch.from_numpy(ndimage.median_filter(four.numpy(), 7))
        full = F.interpolate(smooth[None, None], size=(48, 72), mode="bilinear", align_corners=False)
        maps.append(full[0, 0])
    expected = torch.stack(maps).argmax(dim=0)
    assert (owner != expected).float().mean() < 1e-3, "equal but for rounding of means"
    assert len(owner.unique()) > 10
    assert cluster_regions(affinity, torch.full((54,), -1), (6, 9), (48, 72)) is None


def test_majority_and_votes_by_hand() -> None:
    owner = torch.tensor([[0, 0, 0, 2], [2, 2, 2, 2]])
    classes = torch.tensor([[1, 1, 3, 0], [0, 2, 2, 3]])
    winner = majority(owner, classes, 4)
    assert winner.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]], "of equals the lowest"
    logits = torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(2))
    got = voted(logits, winner)
    assert torch.equal(got.argmax(dim=0), winner)
    assert torch.equal(got.sort(dim=0).values, logits.sort(dim=0).values), "places change, values do not"
    same = logits.argmax(dim=0) == winner
    assert torch.equal(got[:, same], logits[:, same])
