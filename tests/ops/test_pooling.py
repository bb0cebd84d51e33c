"""Shares, means and attention inside regions against loops and torch's own attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from twostage.ops.pooling import attend_inside, mean_under, region_shares


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_shares_are_the_part_of_a_cell_that_is_held() -> None:
    masks = torch.zeros(3, 8, 12)
    masks[0, 1, 5] = 0.9  # one pixel of cell (0, 1) of sixteen
    masks[1, :, 6:] = 0.4
    masks[2, 4:, :8] = 0.6
    shares, held = region_shares(masks, (2, 3))
    expected = torch.tensor([[0, 1 / 16, 0, 0, 0, 0], [0.0] * 6, [0, 0, 0, 1, 1, 0]])
    torch.testing.assert_close(shares, expected)
    assert held.tolist() == [True, False, True]
    soft, held = region_shares(masks, (2, 3), None)
    torch.testing.assert_close(soft[1], torch.tensor([0, 0.2, 0.4, 0, 0.2, 0.4]))
    assert held.tolist() == [True, True, True]


def test_bool_masks_need_no_threshold() -> None:
    masks = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(1)) > 0.5
    for one, other in zip(region_shares(masks, (3, 3)), region_shares(masks.float(), (3, 3)), strict=True):
        assert torch.equal(one, other)


def test_mean_under_is_a_weighted_mean() -> None:
    rows, shares = draw(6, 4), draw(3, 6).abs()
    shares[1] = 0
    made = mean_under(rows, shares)
    for r in range(3):
        total = float(shares[r].sum())
        for c in range(4):
            value = sum(float(shares[r, n] * rows[n, c]) for n in range(6)) / total if total else 0.0
            assert float(made[r, c]) == pytest.approx(value, abs=1e-6)


def test_tiny_shares_count() -> None:
    shares = torch.tensor([[1e-7, 0.0, 0.0]])
    torch.testing.assert_close(mean_under(draw(3, 2), shares), draw(3, 2)[:1])
    q, k, v = draw(2, 1, 4), draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    torch.testing.assert_close(attend_inside(q, k, v, shares), v[:, :1])


def test_attention_inside_whole_regions_is_attention_over_their_places() -> None:
    """With shares of one and zero: torch's attention over the places of each region, one at a time."""
    q, k, v = draw(2, 3, 4), draw(2, 5, 4, seed=1), draw(2, 5, 4, seed=2)
    shares = torch.tensor([[1.0, 0, 1, 0, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    made = attend_inside(q, k, v, shares)
    own_k, own_v = draw(2, 3, 4, seed=3), draw(2, 3, 4, seed=4)
    with_own = attend_inside(q, k, v, shares, (own_k, own_v))
    for r in range(3):
        inside, one = shares[r] > 0, slice(r, r + 1)
        expected = F.scaled_dot_product_attention(q[:, one], k[:, inside], v[:, inside])
        torch.testing.assert_close(made[:, one], expected)
        keys, values = (
            torch.cat([own[:, one], many[:, inside]], dim=1) for own, many in ((own_k, k), (own_v, v))
        )
        expected = F.scaled_dot_product_attention(q[:, one], keys, values)
        torch.testing.assert_close(with_own[:, one], expected)


@pytest.mark.parametrize("itself", [False, True])
def test_a_place_held_twice_as_much_weighs_twice(itself: bool) -> None:
    """A share of 2 / n is that place listed twice among n."""
    q, k, v = draw(1, 1, 4), draw(1, 2, 4, seed=1), draw(1, 2, 4, seed=2)
    own = (draw(1, 1, 4, seed=3), draw(1, 1, 4, seed=4)) if itself else None
    made = attend_inside(q, k, v, torch.tensor([[1.0, 2.0]]), own)
    twice = [0, 1, 1]
    expected = attend_inside(q, k[:, twice], v[:, twice], torch.ones(1, 3), own)
    torch.testing.assert_close(made, expected)
