"""SAM proposals against segment_anything's own generator, with a small random network."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from torch import Tensor
from torchvision.ops import box_iou

from twostage.interfaces import ProposalGenerator
from twostage.ops.masks import mask_boxes
from twostage.proposals import sam
from twostage.proposals.sam import SamConfig, SamProposals
from twostage.registry import ComponentError
from twostage.weights import WeightsError


def _image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def _with(**options: Any) -> SamProposals:
    made = SamProposals.tiny()
    made.config = dataclasses.replace(made.config, **options)
    return made


def test_same_masks_as_the_generator_itself() -> None:
    tiny = _with(max_masks=0)
    image = _image(60, 90)
    (found,) = tiny.propose([image])
    generator = SamAutomaticMaskGenerator(
        tiny.network, points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    expected = [r for r in generator.generate(image.permute(1, 2, 0).numpy()) if r["segmentation"].any()]
    expected.sort(key=lambda record: record["predicted_iou"], reverse=True)
    assert len(found) == len(expected) > 1
    assert found.masks.dtype == torch.bool
    assert found.size_hw == (60, 90)
    assert found.source == "sam"
    np.testing.assert_array_equal(found.masks.numpy(), np.stack([r["segmentation"] for r in expected]))
    torch.testing.assert_close(found.scores, torch.tensor([r["predicted_iou"] for r in expected]))


def test_best_masks_are_kept() -> None:
    (every,) = _with(max_masks=0).propose([_image(60, 90)])
    (best,) = _with(max_masks=3).propose([_image(60, 90)])
    assert torch.equal(best.masks, every.masks[:3])
    assert torch.equal(best.scores, every.scores.sort(descending=True).values[:3])


def test_each_image_alone_and_the_same_each_time() -> None:
    images = [_image(60, 90), _image(48, 32, seed=1)]
    together = SamProposals.tiny().propose(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = SamProposals.tiny().propose([image])
        assert torch.equal(alone.masks, found.masks)
        assert torch.equal(alone.scores, found.scores)
        assert found.size_hw == tuple(image.shape[1:])
    assert isinstance(SamProposals.tiny(), ProposalGenerator)
    assert SamProposals.tiny().propose([]) == []


@pytest.mark.parametrize("size_hw", [(1, 1), (2, 2), (3, 100), (1, 200), (300, 1)])
def test_tiny_and_thin_images(size_hw: tuple[int, int]) -> None:
    (found,) = _with(crop_n_layers=2).propose([_image(*size_hw)])
    assert found.size_hw == size_hw
    assert found.masks.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("area", [0, 20])
def test_no_mask_is_good_enough(layers: int, area: int) -> None:
    options = {"pred_iou_thresh": 1e6, "crop_n_layers": layers, "min_mask_region_area": area}
    (found,) = _with(**options).propose([_image(80, 96)])
    assert found.masks.shape == (0, 80, 96)
    assert found.scores.shape == (0,)


@pytest.mark.parametrize(
    ("size_hw", "layers", "looks"),
    [((80, 96), 0, 1), ((80, 96), 1, 5), ((80, 96), 4, 5), ((63, 96), 4, 1), ((128, 128), 4, 21)],
)
def test_crops_are_looked_at_while_they_have_32_pixels(
    size_hw: tuple[int, int], layers: int, looks: int
) -> None:
    made = _with(crop_n_layers=layers, points_per_side=1)
    seen: list[None] = []
    encoder: Any = made.network.image_encoder
    encoder.register_forward_hook(lambda *_: seen.append(None))
    made.propose([_image(*size_hw)])
    assert len(seen) == looks


def test_islands_are_removed() -> None:
    from scipy import ndimage

    (found,) = _with(max_masks=0, min_mask_region_area=30).propose([_image(60, 90)])
    assert len(found)
    for mask in found.masks.numpy():
        pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert count == 1 or (sizes >= 30).all()


def test_images_of_another_form_are_refused() -> None:
    with pytest.raises(ComponentError, match=r"image 1 should be RGB uint8 .* torch.float32"):
        SamProposals.tiny().propose([_image(8, 8), torch.zeros(3, 8, 8)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "vit_x"}, "unknown model 'vit_x'"),
        ({"points_per_side": 0}, "points_per_side must be at least 1, got 0"),
        ({"pred_iou_thresh": -0.1}, "pred_iou_thresh must be at least 0"),
        ({"max_masks": -1}, "max_masks must be at least 0"),
        ({"box_nms_thresh": 1.1}, "box_nms_thresh must be at most 1"),
        ({"crop_nms_thresh": -0.1}, "crop_nms_thresh must be at least 0"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor must be at least 1"),
    ],
)
def test_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ComponentError, match=says):
        SamConfig(**options)


def test_missing_file_is_found_out_at_once(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        SamProposals(SamConfig(weights=str(tmp_path / "none.pth")), "cpu")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ComponentError, match="pip install segment-anything"):
        SamProposals(SamConfig(), "cpu")


def _loaded(content: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> SamProposals:
    """Proposals that read `content` from a file, for the small network in place of ViT-B."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    monkeypatch.setitem(sam_model_registry, "vit_b", sam._tiny_network)
    return SamProposals(SamConfig(weights=str(path)), "cpu")


def test_weights_are_read_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = SamProposals.tiny().network.state_dict()
    made = _loaded(expected, tmp_path / "sam.pth", monkeypatch)
    assert made._network is None
    for name, value in made.network.state_dict().items():
        assert torch.equal(value, expected[name])
    assert not made.network.training


def test_weights_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {
        key: value
        for key, value in SamProposals.tiny().network.state_dict().items()
        if not key.startswith("mask_decoder.iou")
    }
    made = _loaded(state, tmp_path / "sam.pth", monkeypatch)
    with pytest.raises(
        WeightsError, match=r"do not fit SAM's vit_b: missing: .*mask_decoder.iou_token \(1\)"
    ):
        made.propose([_image(8, 8)])


@pytest.mark.parametrize(("width", "size"), [(1024, "vit_l"), (1280, "vit_h")])
def test_weights_of_another_size_say_which(
    width: int, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first tensor is of that width; the network of the wrong size is not even built."""
    first = "image_encoder.patch_embed.proj.weight"
    state = {**SamProposals.tiny().network.state_dict(), first: torch.zeros(width, 3, 16, 16)}
    made = _loaded(state, tmp_path / "sam.pth", monkeypatch)
    monkeypatch.setitem(sam_model_registry, "vit_b", None)
    with pytest.raises(
        WeightsError, match=rf"sam\.pth: these are weights of {size}, not of vit_b: set model: {size}\."
    ):
        made.propose([_image(8, 8)])
    monkeypatch.setitem(sam_model_registry, size, sam._tiny_network)
    fitting = SamProposals(SamConfig(model=size, weights=str(tmp_path / "sam.pth")), "cpu")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=f"do not fit SAM's {size}: other shapes: {first}"):
        fitting.propose([_image(8, 8)])


def test_sizes_are_told_by_the_networks_themselves() -> None:
    """On the device that stores nothing, so that even the largest costs no memory."""
    for size in sam.MODELS:
        with torch.device("meta"):
            state = sam_model_registry[size]().state_dict()
        assert sam.size_of(state) == size
    assert sam.size_of(SamProposals.tiny().network.state_dict()) is None
    assert sam.size_of({}) is None


def test_boxes_that_overlap() -> None:
    """The generator drops none at 1, and at 0 leaves masks whose boxes lie apart."""
    (every,) = _with(max_masks=0, box_nms_thresh=1.0).propose([_image(60, 90)])
    (some,) = _with(max_masks=0).propose([_image(60, 90)])
    (apart,) = _with(max_masks=0, box_nms_thresh=0.0).propose([_image(60, 90)])
    assert len(every) > len(some) >= len(apart) >= 1
    boxes = mask_boxes(apart.masks).float()
    assert not (box_iou(boxes, boxes).fill_diagonal_(0) > 0.05).any()


@pytest.mark.parametrize(("factor", "points"), [(1, [4, 4]), (2, [4, 2])])
def test_points_of_crops(factor: int, points: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    import segment_anything

    grids: list[list[int]] = []

    class Watched(SamAutomaticMaskGenerator):
        def generate(self, image: Any) -> Any:
            grids.append([round(len(grid) ** 0.5) for grid in self.point_grids])
            return []

    monkeypatch.setattr(segment_anything, "SamAutomaticMaskGenerator", Watched)
    _with(crop_n_layers=1, crop_n_points_downscale_factor=factor).propose([_image(80, 96)])
    assert grids == [points]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>", "cannot be read as weights"),
        ({"model": {}}, "expected SAM's tensors"),
        ([1, 2], "expected SAM's tensors"),
    ],
)
def test_files_that_are_no_weights(
    content: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _loaded(content, tmp_path / "sam.pth", monkeypatch)
    with pytest.raises(WeightsError, match=says):
        made.propose([_image(8, 8)])
