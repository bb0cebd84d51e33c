"""Networks of the hub against transformers itself, each read through the real path from a folder."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from small_hub import OF_POINTS, OF_QUERIES, sam2_video, saved, transformers
from torch import Tensor

from twostage.proposals import _hf_models, _hf_points, _hf_queries
from twostage.proposals._hf_frame import Frame
from twostage.proposals._hf_models import IMAGENET
from twostage.proposals.hf import HfConfig, HfProposals
from twostage.registry import ComponentError
from twostage.weights import WeightsError

LENIENT = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every network, saved once."""
    root = tmp_path_factory.mktemp("hub")
    return {name: saved(make, root / name) for name, make in {**OF_QUERIES, **OF_POINTS}.items()}


@pytest.fixture(scope="module")
def sources(folders: dict[str, Path]) -> dict[str, HfProposals]:
    """Every network, read once."""
    return {name: HfProposals(HfConfig(str(folder), **LENIENT), "cpu") for name, folder in folders.items()}


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, 4, 5), generator=draw).float()
    return F.interpolate(coarse, (height, width), mode="nearest")[0].to(torch.uint8)


def normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return (image[None].float() / 255 - mean) / std


def with_options(made: HfProposals, **options: Any) -> HfProposals:
    changed = HfProposals(dataclasses.replace(made.config, **options), "cpu")
    changed._model = made.model
    return changed


@pytest.mark.parametrize("name", OF_QUERIES)
def test_queries_as_the_network_itself_gives_them(name: str, sources: dict[str, HfProposals]) -> None:
    """A photo of the very size that the network sees: no resizing, no padding, every step by hand."""
    source, image = with_options(sources[name], size=64), photo(64, 64)
    (found,) = source.propose([image])
    network: Any = source.model.network
    more = {}
    if name == "oneformer":
        more["task_inputs"] = torch.zeros(1, 77, dtype=torch.long)
        more["task_inputs"][0, :7] = torch.tensor(_hf_queries.TASKS["panoptic"])
    with torch.no_grad():
        output = network(pixel_values=normalised(image), **more)
    logits, classes = output.masks_queries_logits[0], output.class_queries_logits[0].numpy()
    masks = F.interpolate(logits[None], (64, 64), mode="bilinear", align_corners=False)[0].sigmoid()
    nothing = np.exp(classes[:, -1]) / np.exp(classes).sum(axis=1)
    scores = []
    for query, chance in zip(logits.sigmoid().numpy(), nothing, strict=True):
        inside = query[query > 0.5]
        scores.append((1 - chance) * (inside.mean() if inside.size else 0.0))
    order = np.argsort(-np.array(scores), kind="stable")
    assert len(found) == len(order) >= 4
    np.testing.assert_allclose(found.scores, np.array(scores)[order], rtol=1e-5)
    torch.testing.assert_close(found.masks, masks[order.copy()])
    assert found.masks.std() > 0.01, "all masks alike show nothing"
    assert found.source == "hf"
    assert found.logits is None


@pytest.mark.parametrize("name", OF_QUERIES)
def test_every_query_network_gives_its_last_states(name: str, sources: dict[str, HfProposals]) -> None:
    source = with_options(sources[name], size=64)
    states: list[Tensor] = []
    heads = {"maskformer": "class_predictor", "mask2former": "class_predictor", "oneformer": ""}
    head = heads.get(name, "class_predictor")
    network: Any = source.model.network
    hook = None
    if head:
        hook = getattr(network, head).register_forward_hook(lambda _, given, __: states.append(given[0]))
    (found,) = source.propose([photo(40, 30)])
    assert found.embeddings is not None
    torch.testing.assert_close(found.embeddings.norm(dim=1), torch.ones(len(found)))
    if hook is not None:
        hook.remove()
        last = F.normalize(states[-1].reshape(len(found), -1), dim=1)
        cosines = found.embeddings @ last.T
        torch.testing.assert_close(cosines.amax(dim=1), torch.ones(len(found)))


def test_options_of_queries(sources: dict[str, HfProposals]) -> None:
    source, image = with_options(sources["mask2former"], size=64), photo(48, 80)
    (every,) = source.propose([image])
    assert torch.equal(every.scores, every.scores.sort(descending=True).values)
    (best,) = with_options(source, max_masks=2).propose([image])
    assert torch.equal(best.masks, every.masks[:2])
    bound = float(every.scores[3])
    (sure,) = with_options(source, min_score=bound).propose([image])
    assert torch.equal(sure.scores, every.scores[:4])
    (none,) = with_options(source, min_score=2.0).propose([image])
    assert none.masks.shape == (0, 48, 80)
    assert none.embeddings is not None
    assert none.embeddings.shape[0] == 0


def test_another_task_gives_other_masks(sources: dict[str, HfProposals]) -> None:
    source, image = with_options(sources["oneformer"], size=64), photo(64, 64)
    one, other = (
        with_options(source, task=task).propose([image])[0].masks for task in ("panoptic", "semantic")
    )
    assert not torch.allclose(one, other)


def test_tasks_are_spelt_in_the_tokens_of_clip() -> None:
    rows = open_clip.get_tokenizer("ViT-B-16")([f"the task is {task}" for task in _hf_queries.TASKS])
    assert [tuple(row[row > 0].tolist()) for row in rows] == list(_hf_queries.TASKS.values())


def test_a_network_of_one_size(sources: dict[str, HfProposals]) -> None:
    with pytest.raises(ComponentError, match="see 64 x 64 pixels, not 80: leave size at 0"):
        with_options(sources["eomt"], size=80).propose([photo(8, 8)])


def test_damaged_weights_are_found_out(sources: dict[str, HfProposals]) -> None:
    source = with_options(sources["maskformer"])
    source._model = copy.deepcopy(source.model)
    next(source.model.network.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match="NaN"):
        source.propose([photo(32, 32)])


def slow_points(source: HfProposals, image: Tensor, frame: Frame) -> list[tuple[float, float, Tensor]]:
    """One point at a time, the photo encoded anew each time: (quality, steadiness, logits) of every mask."""
    network: Any = source.model.network
    height, width = frame.inner_hw
    seen = F.interpolate(
        image[None].float(), frame.inner_hw, mode="bilinear", align_corners=False, antialias=True
    )
    pixels = torch.zeros(1, 3, *frame.padded_hw)
    pixels[:, :, :height, :width] = normalised(seen[0])
    count, found = source.config.points_per_side, []
    for row in range(count):
        for column in range(count):
            point = torch.tensor([[(column + 0.5) * width / count, (row + 0.5) * height / count]])
            with torch.no_grad():
                output = network(pixel_values=pixels, input_points=point[None, None], multimask_output=True)
            for logits, quality in zip(output.pred_masks[0, 0], output.iou_scores[0, 0], strict=True):
                cells = [-(-n * inner // 64) for n, inner in zip(logits.shape, frame.inner_hw, strict=True)]
                part = logits[: cells[0], : cells[1]]
                high, low = int((part > 1).sum()), int((part > -1).sum())
                found.append((float(quality), high / max(low, 1), logits))
    return found


def gaps(values: list[float], count: int = 3) -> list[float]:
    """The middles of the widest gaps above 0, so that no threshold depends on the last digit."""
    ranked = sorted(value for value in values if value > 0)
    widest = sorted(pairwise(ranked), key=lambda pair: pair[0] - pair[1])[:count]
    return [(low + high) / 2 for low, high in widest]


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_points_like_one_at_a_time(name: str, sources: dict[str, HfProposals]) -> None:
    image = photo(24, 64)
    source = with_options(sources[name], points_per_side=3, points_per_batch=2, box_nms_thresh=1.0)
    frame = Frame.in_square((24, 64), 64) if name == "sam" else Frame.squashed((24, 64), 64)
    expected = sorted(slow_points(source, image, frame), key=lambda one: -one[0])
    thresholds = [(0.0, 0.0)]
    thresholds += [(value, 0.0) for value in gaps([one[0] for one in expected])]
    thresholds += [(0.0, value) for value in gaps([one[1] for one in expected])]
    counts = set()
    for iou, stability in thresholds:
        options = {"pred_iou_thresh": iou, "stability_score_thresh": stability}
        (found,) = with_options(source, **options).propose([image])
        kept = [one for one in expected if (one[0] > iou or iou == 0) and one[1] >= stability]
        masks = [frame.enlarged(one[2][None])[0] > 0 for one in kept]
        wanted = [(one[0], mask) for one, mask in zip(kept, masks, strict=True) if mask.any()]
        assert len(found) == len(wanted)
        counts.add(len(found))
        scores = torch.tensor([score for score, _ in wanted])
        torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-5)
        assert found.masks.dtype == torch.bool
        for mask, (_, other) in zip(found.masks, wanted, strict=True):
            assert float((mask ^ other).float().mean()) < 0.01
    assert len(counts) > 3, "thresholds that change nothing show nothing"


@pytest.mark.parametrize("name", OF_POINTS)
def test_of_masks_with_one_box_the_better_stays(name: str, sources: dict[str, HfProposals]) -> None:
    image = photo(64, 64)
    (every,) = with_options(sources[name], box_nms_thresh=1.0).propose([image])
    (few,) = with_options(sources[name], box_nms_thresh=0.5).propose([image])
    assert 0 < len(few) < len(every)
    assert float(few.scores[0]) == float(every.scores[0])


def test_the_tracker_holds_the_network_for_images(folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    whole = transformers.Sam2VideoModel.from_pretrained(folders["sam2_video"]).state_dict()
    model = _hf_models.load(str(folders["sam2_video"]))
    assert model.kind == "sam2_video"
    assert sam2_video is OF_POINTS["sam2_video"]
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("name", [*OF_QUERIES, *OF_POINTS])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 90), (70, 2), (33, 47)])
def test_photos_of_any_size(name: str, size_hw: tuple[int, int], sources: dict[str, HfProposals]) -> None:
    square = name[:4] == "eomt" or name in OF_POINTS
    source = with_options(sources[name], points_per_side=2, size=0 if square else 64)
    (found,) = source.propose([photo(*size_hw)])
    assert found.size_hw == size_hw
    assert torch.isfinite(found.scores).all()
    (again,) = source.propose([photo(*size_hw)])
    assert torch.equal(found.masks, again.masks)


def test_frames() -> None:
    assert Frame.by_edge((480, 640), 800, 1333, 32) == Frame((480, 640), (800, 1067), (800, 1088))
    assert Frame.by_edge((100, 640), 800, 1333, 32) == Frame((100, 640), (208, 1333), (224, 1344))
    assert Frame.by_edge((1, 4000), 800, 1333, 32).padded_hw == (32, 1344)
    assert Frame.in_square((300, 150), 64) == Frame((300, 150), (64, 32), (64, 64))
    assert Frame.squashed((300, 150), 64) == Frame((300, 150), (64, 64), (64, 64))


@pytest.mark.parametrize(
    "frame",
    [Frame.by_edge((90, 60), 48, 80, 32), Frame.in_square((90, 60), 64), Frame.squashed((90, 60), 64)],
)
def test_what_the_network_marks_lies_there_on_the_photo(frame: Frame) -> None:
    """The photo's left third is white: its pixels, taken for logits, come back as the left third."""
    image = torch.zeros(3, 90, 60, dtype=torch.uint8)
    image[:, :, :20] = 255
    zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    pixels = frame.pixels(image, zero, one)
    assert pixels.shape == (1, 3, *frame.padded_hw)
    logits = F.avg_pool2d(pixels, 4)[0, :1] - 0.5
    masks = frame.hard_masks(logits.expand(20, -1, -1))
    assert masks.shape == (20, 90, 60)
    assert masks[:, :, :18].all()
    assert not masks[:, :, 22:].any()
    soft = frame.soft_masks(logits)
    torch.testing.assert_close(soft, frame.enlarged(logits).sigmoid())
    assert torch.equal(soft > 0.5, masks[:1])


def test_pixels_as_the_published_processor_makes_them() -> None:
    processor = transformers.Mask2FormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 200}, size_divisor=0, do_pad=False
    )
    image = photo(100, 130)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    frame = Frame.by_edge((100, 130), 64, 200, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    found = frame.pixels(image, mean, std)
    height, width = expected.shape[2:]
    assert abs(height - frame.inner_hw[0]) <= 1
    assert abs(width - frame.inner_hw[1]) <= 1
    rows, columns = min(height, frame.inner_hw[0]), min(width, frame.inner_hw[1])
    near = (found[..., :rows, :columns] - expected[..., :rows, :columns]).abs()
    assert float(near.mean()) < 0.02
    assert not found[..., frame.inner_hw[0] :, :].any()


def test_points_lie_in_the_middle_of_their_cells() -> None:
    points = _hf_points.grid(Frame((9, 9), (32, 64), (64, 64)), 2)
    assert points.tolist() == [[16, 8], [48, 8], [16, 24], [48, 24]]


def test_images_of_another_form_are_refused() -> None:
    with pytest.raises(ComponentError, match=r"image 0 should be RGB uint8 .* torch.float32"):
        HfProposals.tiny().propose([torch.zeros(3, 8, 8)])
