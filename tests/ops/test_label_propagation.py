"""Label propagation against recorded numbers, the linear system written out, and cases known by hand."""

from __future__ import annotations

import math

import dense_records as rec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.label_propagation import graph, propagate, solve


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(count: int, seed: int = 5) -> Tensor:
    return F.normalize(draw(count, 8, seed=seed), dim=1)


def written_out(image: Tensor, cosines: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """One image, (3, h, w) and (T, h, w): the system's matrix (N, N) and diag(c), float64, cell by cell."""
    image, cosines, text = image.double(), cosines.double(), text.double()
    rows, columns = image.shape[1:]
    likeness = (text @ text.T / 0.5).softmax(dim=1) + 10 * torch.eye(len(text))
    likeness = likeness / likeness.sum(dim=1, keepdim=True)
    p = cosines.softmax(dim=0)
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]

    def agree(a: tuple[int, int], b: tuple[int, int]) -> float:
        return sum(float(likeness[t, t] * p[t][a] * p[t][b]) for t in range(len(text)))

    count = rows * columns
    own, matrix = torch.zeros(count).double(), torch.zeros(count, count).double()
    for y in range(rows):
        for x in range(columns):
            best = max(float(p[:, y, x].max()), 0.05)
            own[y * columns + x] = best**2 * (1 + agree((y, x), (y, x)))
    for down, across in ((0, 1), (1, 0)):
        pairs = [
            ((y, x), (y + down, x + across)) for y in range(rows - down) for x in range(columns - across)
        ]
        steps = [abs(float(grey[a] - grey[b])) for a, b in pairs]
        mean = sum(steps) / max(1, len(steps))
        for (a, b), step in zip(pairs, steps, strict=True):
            pull = math.exp(-5 * step / mean if mean else 0.0) * (1 + agree(a, b))
            pull = min(max(pull, 0.0), 1.0)
            first, second = a[0] * columns + a[1], b[0] * columns + b[1]
            matrix[first, first] += pull
            matrix[second, second] += pull
            matrix[first, second] -= pull
            matrix[second, first] -= pull
    return matrix + own.diag(), own.diag()


@pytest.mark.golden
@pytest.mark.parametrize("grid", [80, 40])
def test_recorded(grid: int) -> None:
    record = rec.case("tlp", grid=grid)
    inputs = rec.records().inputs
    image = torch.from_numpy(inputs.image((224, 224)))
    maps = torch.from_numpy(inputs.logit_map(10, 224, 224))
    closer = {**record, "tolerance": {"map": 2e-5}}
    rec.compare(closer, "map", propagate(image, maps, rec.text(), grid))


@pytest.mark.parametrize("size", [(4, 5), (6, 3), (1, 7), (2, 1)])
def test_enough_steps_solve_the_system(size: tuple[int, int]) -> None:
    image, maps = draw(2, 3, *size), draw(2, 4, *size, seed=1)
    system = graph(image, maps, words(4))
    got = solve(system, maps, 200)
    for one in range(2):
        matrix, own = written_out(image[one], maps[one], words(4))
        flat = maps[one].flatten(1).T.double()
        multiplied = system.times(maps)[one].flatten(1).T
        torch.testing.assert_close(multiplied, (matrix @ flat).float(), rtol=1e-4, atol=1e-5)
        expected = torch.linalg.solve(matrix, own @ flat).T.reshape(4, *size).float()
        torch.testing.assert_close(got[one], expected, rtol=1e-4, atol=1e-4)


def test_a_step_is_the_textbooks() -> None:
    """Conjugate gradients on the system of all maps together, as one vector, in float64."""
    image, maps = draw(1, 3, 4, 4), draw(1, 3, 4, 4, seed=1)
    matrix, own = written_out(image[0], maps[0], words(3))
    every = torch.block_diag(matrix, matrix, matrix)
    x = maps.flatten().double()
    r = torch.block_diag(own, own, own) @ x - every @ x
    p = r.clone()
    for steps in (1, 2, 3, 4):
        alpha = (r @ r) / (p @ every @ p)
        x, after = x + alpha * p, r - alpha * (every @ p)
        p, r = after + (after @ after) / (r @ r) * p, after
        got = solve(graph(image, maps, words(3)), maps, steps)
        torch.testing.assert_close(got.flatten(), x.float(), rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_members() -> None:
    image, maps = draw(2, 3, 20, 31), draw(2, 3, 20, 31, seed=1)
    together = propagate(image, maps, words(3), 10)
    for one in range(2):
        alone = propagate(image[one : one + 1], maps[one : one + 1], words(3), 10)
        torch.testing.assert_close(together[one : one + 1], alone, rtol=1e-5, atol=1e-6)


def test_the_grid_is_of_whole_pixels() -> None:
    """31 pixels on 10 cells: cells of 3, the last pixel of a row left out; small maps are enlarged first."""
    image, maps = draw(1, 3, 20, 31), draw(1, 3, 5, 8, seed=1)
    large = F.interpolate(maps, size=(20, 31), mode="bilinear", align_corners=False)
    cells, seen = F.avg_pool2d(large, 3), F.avg_pool2d(image, 3)
    assert cells.shape[2:] == (6, 10)
    small = solve(graph(seen, cells, words(3)), cells, 25)
    expected = F.interpolate(small, size=(20, 31), mode="bilinear", align_corners=False)
    torch.testing.assert_close(propagate(image, maps, words(3), 10), expected)


def test_even_photos_are_smoothed_and_edges_hold() -> None:
    maps = 0.1 * draw(1, 2, 16, 16)
    smooth = propagate(torch.full((1, 3, 16, 16), 0.5), maps, words(2), 16)
    assert smooth.isfinite().all()
    assert smooth.std() < 0.5 * maps.std()
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    sides = torch.where(image[:, :1] > 0, 0.2, -0.2).repeat(1, 2, 1, 1)
    torch.testing.assert_close(propagate(image, sides, words(2), 16), sides, rtol=1e-3, atol=1e-4)


def test_smallest_cases() -> None:
    one = torch.tensor([[[[0.3]]]])
    torch.testing.assert_close(propagate(torch.ones(1, 3, 1, 1), one, words(1)), one)
    even = torch.full((1, 1, 9, 7), 0.2)
    torch.testing.assert_close(propagate(draw(1, 3, 9, 7), even, words(1)), even)
    assert propagate(draw(1, 3, 1, 400), draw(1, 2, 1, 400), words(2), 10).isfinite().all()
    zero = torch.zeros(1, 2, 5, 5)
    assert torch.equal(propagate(draw(1, 3, 5, 5), zero, words(2)), zero)


@pytest.mark.parametrize(
    ("shape", "texts", "options", "expected"),
    [
        ((1, 2, 4, 4), 2, {"grid": 0}, "grid of 1 or more cells"),
        ((1, 2, 4, 4), 2, {"steps": 0}, "1 or more steps, got 80 and 0"),
        ((1, 2, 4, 4), 3, {}, "maps of 1 images and 3 texts, got 1 and 2"),
        ((2, 2, 4, 4), 2, {}, "maps of 1 images and 2 texts, got 2 and 2"),
    ],
)
def test_bad_arguments(shape: tuple[int, ...], texts: int, options: dict[str, int], expected: str) -> None:
    with pytest.raises(TwostageError, match=expected):
        propagate(draw(1, 3, 4, 4), draw(*shape), words(texts), **options)
