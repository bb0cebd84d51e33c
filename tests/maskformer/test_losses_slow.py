"""Costs, matching and losses against plain loops over pixels, pairs and queries."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, distributed

from twostage.maskformer.config import MaskFormerError
from twostage.maskformer.criterion import Criterion, LossConfig, mask_count, pixel_cross_entropy
from twostage.maskformer.mask_losses import dice_cost, dice_loss, pixel_cost, pixel_loss
from twostage.maskformer.matcher import Costs, MatchError, match, pair_costs
from twostage.maskformer.network import MaskFormerOutput
from twostage.maskformer.targets import padded_masks, shrink


@dataclass(frozen=True)
class Batch:
    masks: list[Tensor]
    classes: list[Tensor]
    labels: Tensor
    image_ids: list[str]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_focal(logits: list[float], target: list[float]) -> float:
    total = 0.0
    for x, t in zip(logits, target, strict=True):
        s = sigmoid(x)
        total += 0.25 * (1 - s) ** 2 * -math.log(s) if t else 0.75 * s**2 * -math.log(1 - s)
    return total / len(logits)


def slow_bce(logits: list[float], target: list[float]) -> float:
    terms = [
        -math.log(sigmoid(x)) if t else -math.log(1 - sigmoid(x)) for x, t in zip(logits, target, strict=True)
    ]
    return sum(terms) / len(terms)


def slow_dice(logits: list[float], target: list[float]) -> float:
    s = [sigmoid(x) for x in logits]
    overlap = sum(a * b for a, b in zip(s, target, strict=True))
    return 1 - (2 * overlap + 1) / (sum(s) + sum(target) + 1)


SLOW_PIXEL: dict[str, Callable[[list[float], list[float]], float]] = {"focal": slow_focal, "bce": slow_bce}


def example(
    seed: int = 0, masks: int = 3, layers: int = 2, size: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask logits (L, 1, 5, 4, 4), class logits (L, 1, 5, 5), true masks (M, 8, 8) bool, classes (M,)."""
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(layers, 1, 5, size, size, generator=draw)
    classes = 2 * torch.randn(layers, 1, 5, 5, generator=draw)
    truth = torch.rand(masks, 2 * size, 2 * size, generator=draw) > 0.6
    return logits, classes, truth, torch.randperm(4, generator=draw)[:masks]


def output_of(logits: Tensor) -> MaskFormerOutput:
    height, width = logits.shape[-2:]
    return MaskFormerOutput(logits, logits.new_zeros(0), logits.new_zeros(0), None, (2 * height, 2 * width))


@pytest.mark.parametrize("kind", ["focal", "bce"])
def test_terms_and_costs(kind: str) -> None:
    logits, _, truth, _ = example()
    predicted, wanted = logits[0, 0].flatten(1), shrink(truth.float(), (4, 4)).flatten(1)
    pixel, dice = pixel_cost(predicted, wanted, kind), dice_cost(predicted, wanted)
    for q, m in itertools.product(range(5), range(3)):
        x, t = predicted[q].tolist(), wanted[m].tolist()
        assert pixel[q, m].item() == pytest.approx(SLOW_PIXEL[kind](x, t), rel=1e-5)
        assert dice[q, m].item() == pytest.approx(slow_dice(x, t), rel=1e-5)
    # A pair's loss is its cost.
    torch.testing.assert_close(pixel_loss(predicted[:3], wanted, kind), pixel[:3].diagonal())
    torch.testing.assert_close(dice_loss(predicted[:3], wanted), dice[:3].diagonal())


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    wanted = torch.tensor([[0.0, 1.0, 1.0]])
    loss = pixel_loss(logits, wanted, "focal").sum() + dice_loss(logits, wanted).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_pair_costs_add_up_with_the_papers_factors() -> None:
    logits, classes, truth, found = example()
    small = shrink(truth.float(), (4, 4))
    cost = pair_costs(logits[:, 0], classes[:, 0].softmax(-1), small, found, Costs())
    for layer, q, m in itertools.product(range(2), range(5), range(3)):
        x, t = logits[layer, 0, q].flatten().tolist(), small[m].flatten().tolist()
        scores = [math.exp(v) for v in classes[layer, 0, q].tolist()]
        probability = scores[int(found[m])] / sum(scores)
        wanted = 20 * slow_focal(x, t) - probability + slow_dice(x, t)
        assert cost[layer, q, m].item() == pytest.approx(wanted, rel=1e-5)


def test_matching_is_the_cheapest_of_all() -> None:
    logits, classes, truth, found = example()
    small = shrink(truth.float(), (4, 4))
    cost = pair_costs(logits[:, 0], classes[:, 0].softmax(-1), small, found, Costs())
    pairs = match(logits, classes, [small], [found], Costs())
    for layer in range(2):
        cheapest = min(
            itertools.permutations(range(5), 3),
            key=lambda q: sum(float(cost[layer, a, m]) for m, a in enumerate(q)),
        )
        queries, masks = pairs[layer][0]
        assert dict(zip(masks.tolist(), queries.tolist(), strict=True)) == dict(enumerate(cheapest))


def test_more_masks_than_queries() -> None:
    logits, classes, _, _ = example()
    truth = torch.rand(7, 4, 4) > 0.5
    pairs = match(logits, classes, [truth.float()], [torch.zeros(7, dtype=torch.long)], Costs())
    assert pairs[0][0][0].tolist() == [0, 1, 2, 3, 4]
    assert len(set(pairs[0][0][1].tolist())) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_costs_that_are_not_numbers(bad: float) -> None:
    logits, classes, truth, found = example()
    classes[1, 0, 2, 0] = bad
    with pytest.raises(MatchError, match=r"image 'photo', decoder layer 1.*diverged"):
        match(logits, classes, [shrink(truth.float(), (4, 4))], [found], Costs(), ["photo"])


def test_nearest_shrinking_and_padding() -> None:
    mask = torch.zeros(1, 6, 5, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 5, 4] = True
    batch = Batch([mask], [torch.tensor([0])], torch.zeros(1, 6, 5), ["a"])
    (padded,) = padded_masks(batch, (8, 8), torch.device("cpu"))
    assert padded.shape == (1, 8, 8)
    assert padded.nonzero().tolist() == [[0, 0, 0], [0, 5, 4]]
    # Of every 4 x 4 square the first pixel speaks.
    assert shrink(padded, (2, 2)).tolist() == [[[1, 0], [0, 0]]]
    assert shrink(padded[:0], (2, 2)).shape == (0, 2, 2)


def slow_losses(
    logits: Tensor, classes: Tensor, truth: Tensor, found: Tensor, resolution: str
) -> dict[str, float]:
    """One layer, one image: the three losses by hand, given the matching."""
    ((queries, masks),) = match(
        logits[None, None], classes[None, None], [shrink(truth.float(), (4, 4))], [found], Costs()
    )[0]
    total, weights = 0.0, 0.0
    for q in range(5):
        wanted = int(found[masks[queries.tolist().index(q)]]) if q in queries else 4
        weight = 0.1 if wanted == 4 else 1.0
        scores = [math.exp(v) for v in classes[q].tolist()]
        total += weight * -math.log(scores[wanted] / sum(scores))
        weights += weight
    focal = dice = 0.0
    for q, m in zip(queries.tolist(), masks.tolist(), strict=True):
        if resolution == "input":
            big = torch.nn.functional.interpolate(
                logits[q][None, None], (8, 8), mode="bilinear", align_corners=False
            )
            x, t = big.flatten().tolist(), truth[m].float().flatten().tolist()
        else:
            x, t = logits[q].flatten().tolist(), shrink(truth.float(), (4, 4))[m].flatten().tolist()
        focal, dice = focal + slow_focal(x, t), dice + slow_dice(x, t)
    return {"loss_ce": total / weights, "loss_mask": 20 * focal / 3, "loss_dice": dice / 3}


@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_losses_of_every_layer(resolution: str) -> None:
    logits, classes, truth, found = example(layers=3)
    batch = Batch([truth], [found], torch.zeros(1, 8, 8), ["a"])
    losses = Criterion(LossConfig(resolution=resolution))(output_of(logits), classes, batch)
    assert len(losses) == 9
    for layer, suffix in enumerate(("_0", "_1", "")):
        for name, value in slow_losses(logits[layer, 0], classes[layer, 0], truth, found, resolution).items():
            assert losses[name + suffix].item() == pytest.approx(value, rel=1e-5), name + suffix


def test_factors_scale_their_term() -> None:
    logits, classes, truth, found = example()
    batch = Batch([truth], [found], torch.zeros(1, 8, 8), ["a"])
    once = Criterion(LossConfig())(output_of(logits), classes, batch)
    twice = Criterion(LossConfig(ce=2, mask=40, dice=2))(output_of(logits), classes, batch)
    for name, value in once.items():
        assert twice[name].item() == pytest.approx(2 * value.item(), rel=1e-6)


def test_image_without_masks_teaches_no_object_only() -> None:
    logits, classes, _, _ = example()
    logits.requires_grad_()
    empty = Batch(
        [torch.zeros(0, 8, 8, dtype=torch.bool)], [torch.zeros(0, dtype=torch.long)], torch.zeros(0), ["a"]
    )
    losses = Criterion(LossConfig())(output_of(logits), classes, empty)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    wanted = torch.nn.functional.cross_entropy(classes[-1, 0], torch.full((5,), 4))
    torch.testing.assert_close(losses["loss_ce"], wanted)
    sum(losses.values()).backward()
    assert logits.grad is not None  # distributed training needs every parameter in the graph


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_no_object_weight_zero_leaves_unmatched_queries_out(weight: float) -> None:
    logits, classes, truth, found = example()
    batch = Batch([truth], [found], torch.zeros(1, 8, 8), ["a"])
    losses = Criterion(LossConfig(no_object=weight))(output_of(logits), classes, batch)
    ((queries, masks),) = match(logits, classes, [shrink(truth.float(), (4, 4))], [found], Costs())[-1]
    wanted = torch.nn.functional.cross_entropy(classes[-1, 0, queries], found[masks])
    torch.testing.assert_close(losses["loss_ce"], wanted)
    empty = Batch([truth[:0]], [found[:0]], torch.zeros(0), ["a"])
    assert Criterion(LossConfig(no_object=weight))(output_of(logits), classes, empty)["loss_ce"].item() == 0


def test_mask_without_pixels_is_matched_and_finite() -> None:
    logits, classes, truth, found = example()
    truth[1] = False
    losses = Criterion(LossConfig())(
        output_of(logits), classes, Batch([truth], [found], torch.zeros(1, 8, 8), ["a"])
    )
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("wrong", [4, -1])
def test_class_outside_the_vocabulary(wrong: int) -> None:
    logits, classes, truth, found = example()
    found = torch.tensor([0, 1, wrong])
    with pytest.raises(MaskFormerError, match=r"'a' has classes.*0\.\.3"):
        Criterion(LossConfig())(
            output_of(logits), classes, Batch([truth], [found], torch.zeros(1, 8, 8), ["a"])
        )


@pytest.mark.parametrize(("field", "value"), [("mask_kind", "focl"), ("resolution", "inputs")])
def test_misspelt_options(field: str, value: str) -> None:
    with pytest.raises(MaskFormerError, match="Did you mean"):
        LossConfig(**{field: value})


def test_pixel_loss_ignores_void_and_padding() -> None:
    logits = torch.randn(1, 3, 2, 2)
    labels = torch.full((1, 5, 8), -1)
    labels[0, 0, 0], labels[0, 0, 4] = 2, 1  # the pixels that speak for the upper two squares
    wanted = torch.nn.functional.cross_entropy(logits[0, :, 0].T, torch.tensor([2, 1]))
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, (8, 8)), wanted)
    assert pixel_cross_entropy(logits, torch.full((1, 8, 8), -1), (8, 8)).item() == 0


def test_mask_count_alone() -> None:
    assert mask_count(0, torch.device("cpu")) == 1.0
    assert mask_count(7, torch.device("cpu")) == 7.0


def test_checklist_14_mask_count_is_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As process 0 of two, the other having 8 masks."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda total: total.add_(8))
    assert mask_count(3, torch.device("cpu")) == 5.5


def test_matching_on_averaged_masks() -> None:
    """match_pool changes who is matched, never what the matched pairs cost."""
    logits, classes, truth, found = example(size=8)
    batch = Batch([truth], [found], torch.zeros(1, 16, 16), ["a"])
    got = Criterion(LossConfig(match_pool=4))(output_of(logits), classes, batch)
    pooled = torch.nn.functional.avg_pool2d(logits[:, 0], 4)[:, None]
    small = truth.float()[:, ::8, ::8]
    ((queries, masks),) = match(pooled, classes, [small], [found], Costs())[-1]
    full = torch.nn.functional.interpolate(logits[-1, 0, queries][:, None], size=(16, 16), mode="bilinear")[
        :, 0
    ]
    dice = [
        slow_dice(x.flatten().tolist(), truth[m].float().flatten().tolist())
        for x, m in zip(full, masks, strict=True)
    ]
    assert got["loss_dice"].item() == pytest.approx(sum(dice) / 3, rel=1e-5)
