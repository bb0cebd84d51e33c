"""The random field against sums written out in full, and its lattice against the exact Gaussian."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.crf import DenseCrf, mean_field, photo_kernel, place_kernel
from twostage.ops.lattice import Lattice


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(height: int, width: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A disc on a sky above a meadow, RGB uint8 (3, H, W) with some grain, and its labels (H, W)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = (rows > 0.6 * height).long()
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 3.5) ** 2
    labels[disc] = 2
    colours = torch.tensor([[90.0, 140, 220], [70, 150, 60], [210, 80, 60]])
    photo = colours[labels].permute(2, 0, 1) + noise * torch.randn(3, height, width, generator=chance(seed))
    return photo.clamp(0, 255).to(torch.uint8), labels


def noisy_scores(labels: Tensor, blur: float, contrast: float = 4, seed: int = 0) -> Tensor:
    """(P, 3) logits that are right on the whole: blurred truth and grain."""
    truth = torch.nn.functional.one_hot(labels, 3).float().numpy()
    soft = torch.from_numpy(ndimage.gaussian_filter(truth, (blur, blur, 0)))
    return (contrast * soft + torch.randn(soft.shape, generator=chance(seed))).reshape(-1, 3)


def exact_kernels(photo: Tensor, crf: DenseCrf) -> list[tuple[float, Any]]:
    """Both kernels as P x P matrices, float64."""
    rows, columns = np.indices(photo.shape[1:])
    place = np.stack([rows.ravel(), columns.ravel()], 1).astype(float)
    colour = photo.numpy().reshape(3, -1).T.astype(float)
    far = ((place[:, None] - place) ** 2).sum(2)
    unlike = ((colour[:, None] - colour) ** 2).sum(2)
    near = torch.from_numpy(np.exp(-far / (2 * crf.sxy**2)))
    alike = torch.from_numpy(np.exp(-far / (2 * crf.bilateral_sxy**2) - unlike / (2 * crf.bilateral_srgb**2)))
    return [(crf.compat, lambda v: near @ v), (crf.bilateral_compat, lambda v: alike @ v)]


@pytest.mark.parametrize(("dims", "tolerance"), [(1, 0.06), (2, 0.09), (3, 0.14), (5, 0.26)])
def test_the_lattice_is_close_to_the_gaussian(dims: int, tolerance: float) -> None:
    """Weighted means of pure noise, which is as hard as it gets: relative error, and correlation."""
    points = 1000
    features = torch.rand(points, dims, generator=chance()) * 5
    values = torch.randn(points, 3, generator=chance(1))
    kernel = torch.exp(-0.5 * ((features[:, None] - features) ** 2).sum(2))
    exact = kernel @ values / kernel.sum(1, keepdim=True)
    lattice = Lattice(features)
    found = lattice.filter(values) / lattice.filter(torch.ones(points, 1))
    assert float((found - exact).norm() / exact.norm()) < tolerance
    assert float(torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1]) > 0.97


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_lattice_is_symmetric(dims: int) -> None:
    kernel = Lattice(torch.rand(80, dims, generator=chance()) * 6).filter(torch.eye(80))
    torch.testing.assert_close(kernel, kernel.T)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_lattice_is_linear_and_does_not_care_for_the_order(dims: int) -> None:
    features = torch.randn(200, dims, generator=chance()) * 2
    values = torch.rand(200, 4, generator=chance(1))
    lattice = Lattice(features)
    found = lattice.filter(values)
    assert torch.equal(found, Lattice(features).filter(values)), "the same bits each time"
    torch.testing.assert_close(lattice.filter(3 * values), 3 * found)
    torch.testing.assert_close(lattice.filter(values[:, 1:3]), found[:, 1:3])
    order = torch.randperm(200, generator=chance(2))
    torch.testing.assert_close(Lattice(features[order]).filter(values[order]), found[order])
    assert bool((found > 0).all())


def test_points_far_apart_do_not_touch() -> None:
    features = torch.tensor([[0.0, 0, 0], [0, 0, 0], [40, 0, 0], [0, 0, -60]])
    values = torch.tensor([[1.0], [2], [5], [7]])
    found = Lattice(features).filter(values)
    alone = Lattice(features[2:3]).filter(values[2:3])
    assert float(found[0]) == float(found[1])
    torch.testing.assert_close(found[2:3], alone)
    torch.testing.assert_close(found[0] / found[2] * 5, torch.tensor([3.0]), rtol=0.5, atol=0)


def test_a_lattice_that_cannot_be_numbered() -> None:
    with pytest.raises(TwostageError, match="larger standard deviations"):
        Lattice(torch.rand(10, 5, generator=chance()) * 1e6)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 5), (40, 150), (129, 64)])
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_smoothing_by_place_is_exact(size_hw: tuple[int, int], sigma: float) -> None:
    values = torch.rand(size_hw[0] * size_hw[1], 2, generator=chance())
    reach = math.ceil(5 * sigma)
    tap = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    maps = values.numpy().reshape(*size_hw, 2).astype(float)
    for axis in (0, 1):
        maps = ndimage.convolve1d(maps, tap, axis=axis, mode="constant")
    expected = torch.from_numpy(maps.reshape(-1, 2)).float()
    torch.testing.assert_close(place_kernel(size_hw, sigma)(values), expected, rtol=1e-5, atol=1e-5)


def test_the_mean_field_is_that_of_the_paper() -> None:
    """Equation by equation, pixel by pixel, with both kernels normalised on both sides."""
    pixels, classes, steps = 7, 3, 3
    unary = torch.randn(pixels, classes, generator=chance(), dtype=torch.float64)
    places = torch.rand(2, pixels, generator=chance(1), dtype=torch.float64)
    tables = [torch.exp(-((p[:, None] - p) ** 2)) for p in places]
    kernels: list[tuple[float, Any]] = [(3.0, lambda v: tables[0] @ v), (10.0, lambda v: tables[1] @ v)]
    found = mean_field(unary, kernels, steps)
    share = [[math.exp(u) / sum(map(math.exp, row)) for u in row] for row in unary.tolist()]
    for _ in range(steps):
        fresh = []
        for i in range(pixels):
            energy = [
                -float(unary[i, k])
                - sum(
                    strength * float(table[i, j] / (table[i].sum() * table[j].sum()).sqrt()) * share[j][k]
                    for (strength, _), table in zip(kernels, tables, strict=True)
                    for j in range(pixels)
                )
                for k in range(classes)
            ]
            weights = [math.exp(-e) for e in energy]
            fresh.append([w / sum(weights) for w in weights])
        share = fresh
    torch.testing.assert_close(found, torch.tensor(share, dtype=torch.float64))


@pytest.mark.parametrize(
    ("crf", "grain"),
    [(DenseCrf(), 2.0), (DenseCrf(bilateral_sxy=15), 15.0), (DenseCrf(iterations=1, compat=0), 15.0)],
)
def test_the_field_is_close_to_the_exact_one(crf: DenseCrf, grain: float) -> None:
    """Labels of 97 of 100 pixels agree, and probabilities are off by 0.03 on average."""
    photo, labels = scene(30, 40, grain)
    unary = noisy_scores(labels, blur=2.5)
    found = crf.infer(photo, unary)
    exact = mean_field(unary.double(), exact_kernels(photo, crf), crf.iterations).float()
    assert float((found.argmax(1) == exact.argmax(1)).float().mean()) > 0.97
    assert float((found - exact).abs().mean()) < 0.03
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


def test_labels_snap_to_the_edges_of_the_photo() -> None:
    photo, labels = scene(60, 80, 8.0)
    unary = noisy_scores(labels, blur=4, contrast=2)
    before = float((unary.argmax(1) == labels.flatten()).float().mean())
    after = float((DenseCrf().infer(photo, unary).argmax(1) == labels.flatten()).float().mean())
    assert before < 0.9
    assert after > 0.99


@pytest.mark.parametrize("level", [None, 255])
def test_grey_and_plain_photos(level: int | None) -> None:
    """Three equal channels fold the colour axes onto a line; one colour onto a point."""
    photo, labels = scene(40, 50, 0.0)
    grey = photo.float().mean(0, keepdim=True).expand(3, -1, -1).to(torch.uint8)
    grey = grey if level is None else torch.full_like(grey, level)
    unary = noisy_scores(labels, blur=2)
    found = DenseCrf().infer(grey, unary)
    exact = mean_field(unary.double(), exact_kernels(grey, DenseCrf()), 5)
    assert bool(found.isfinite().all())
    assert float((found.argmax(1) == exact.argmax(1)).float().mean()) > 0.95


def test_one_pixel() -> None:
    photo = torch.full((3, 1, 1), 7, dtype=torch.uint8)
    found = DenseCrf().infer(photo, torch.tensor([[0.0, 1.0]]))
    assert found.argmax(1).tolist() == [1]
    assert float(photo_kernel(photo, 80, 13)(torch.ones(1, 1))) > 0


def test_scores_become_probabilities_in_two_ways() -> None:
    scores = torch.tensor([[0.2, 0.0], [0.6, 0.0], [0.0, 0.0]])[:, :, None]
    everyone = torch.arange(3)
    soft = DenseCrf().log_unary(scores, everyone).softmax(0)[:, 0, 0]
    torch.testing.assert_close(soft, torch.tensor([0.2, 0.6, 0.0]).softmax(0))
    shares = DenseCrf(unary="shares").log_unary(scores, everyone).softmax(0)
    torch.testing.assert_close(shares[:, 0, 0], torch.tensor([0.25, 0.75, 0.0]), atol=2e-5, rtol=0)
    torch.testing.assert_close(shares[:, 1, 0], torch.full((3,), 1 / 3))
    some = DenseCrf(unary="shares").log_unary(scores, torch.tensor([1, 0])).exp()
    torch.testing.assert_close(some[:, 0, 0], torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("sxy", 0, "sxy must be above 0"),
        ("bilateral_srgb", -1, "bilateral_srgb must be above 0"),
        ("bilateral_sxy", float("nan"), "bilateral_sxy must be above 0"),
        ("compat", -1, "compat must be 0 or more"),
        ("bilateral_compat", -0.1, "bilateral_compat must be 0 or more"),
        ("iterations", 0, "1 or more iterations"),
        ("max_classes", 1, "2 or more max_classes"),
        ("unary", "share", "unknown unary .share.*shares"),
    ],
)
def test_bad_options(option: str, value: Any, message: str) -> None:
    with pytest.raises(TwostageError, match=message):
        DenseCrf(**{option: value})
