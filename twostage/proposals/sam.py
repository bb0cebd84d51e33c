"""Proposals from SAM: a grid of points, each asking for the masks that it lies in.

Kirillov et al., "Segment Anything", ICCV 2023; the network and the mask generator are segment_anything's own.
"""

from __future__ import annotations

import importlib.util
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from twostage import weights
from twostage.clip.checks import explain_mismatch
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank
from twostage.vocabulary import nearest
from twostage.weights import WeightsError

MODELS = ("vit_b", "vit_l", "vit_h")
WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Of the image encoder's tokens, by which weights show whose they are."""


@dataclass(frozen=True)
class SamConfig:
    """model: "vit_b", "vit_l" or "vit_h"; weights: their file, "https://...#sha256=HEX", or "" for the
    published ones, downloaded on first use (375 MB, 1.2 GB, 2.6 GB).

    points_per_side: the grid has this number squared of points, three masks each; points_per_batch: points in
    one pass of the mask decoder, bounds memory. pred_iou_thresh, stability_score_thresh: masks are kept whose
    predicted quality is above the first and whose steadiness under another cut-off reaches the second; 0
    keeps all. box_nms_thresh: of masks whose boxes overlap by more (IoU) the better stays; 1 keeps all.
    crop_n_layers: also look at crops of the photo, for small things: 4 crops, then 16 more, and so
    on (slow); as many layers as leave crops of 32 pixels. crop_nms_thresh: box_nms_thresh between crops;
    crop_n_points_downscale_factor: each layer's grid has this factor fewer points a side.
    min_mask_region_area: islands and holes below this many pixels are removed; 0 leaves them. max_masks: the
    best this many masks; 0 keeps all.
    """

    model: Literal["vit_b", "vit_l", "vit_h"] = "vit_b"
    weights: str = ""
    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    max_masks: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ComponentError(f"SamProposals: unknown model {self.model!r}.{nearest(self.model, MODELS)}")
        for option, least in _LEAST.items():
            if not getattr(self, option) >= least:
                raise ComponentError(
                    f"SamProposals: {option} must be at least {least}, got {getattr(self, option)}."
                )
        for option in ("box_nms_thresh", "crop_nms_thresh"):
            if getattr(self, option) > 1:
                raise ComponentError(
                    f"SamProposals: {option} must be at most 1, got {getattr(self, option)}."
                )


_LEAST: dict[str, int] = {
    "points_per_side": 1,
    "points_per_batch": 1,
    "pred_iou_thresh": 0,
    "stability_score_thresh": 0,
    "box_nms_thresh": 0,
    "crop_n_layers": 0,
    "crop_nms_thresh": 0,
    "crop_n_points_downscale_factor": 1,
    "min_mask_region_area": 0,
    "max_masks": 0,
}


class SamProposals:
    """Bool masks of the image's size, on the image's device, best first; they may overlap.

    Scores are SAM's own estimate of a mask's IoU with what was meant. Text is ignored: SAM names nothing.

    Raises:
        ComponentError: segment_anything is not installed.
        WeightsError: no such weights file (at once); no network, or a file that does not fit (at first use).
    """

    Config = SamConfig

    def __init__(self, config: SamConfig, device: torch.device | str) -> None:
        if importlib.util.find_spec("segment_anything") is None:
            raise ComponentError(
                "SamProposals needs the package segment-anything: pip install segment-anything."
            )
        weights.resolve(self._source(config))
        self.config = config
        self.device = torch.device(device)
        self._network: nn.Module | None = None

    @classmethod
    def tiny(cls) -> SamProposals:
        """A random network of a few thousand weights, the same each time, that finds masks all the same."""
        config = cls.Config(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, max_masks=8)
        made = cls(config, "cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made._network = _tiny_network()
        return made

    @property
    def network(self) -> nn.Module:
        """segment_anything's Sam in evaluation mode; its weights are fetched and read on first use."""
        if self._network is None:
            self._network = _read(self.config.model, self._source(self.config)).to(self.device)
        return self._network

    @torch.no_grad()
    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W), resized by SAM itself -> masks (N, H, W) bool, scores (N,) float32.

        N is 0 for an image so long and thin that nothing of it is left at SAM's size.
        """
        for position, image in enumerate(images):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
                raise ComponentError(
                    f"SamProposals: image {position} should be RGB uint8 (3, H, W), got {tuple(image.shape)} "
                    f"{image.dtype}; give it before any normalisation."
                )
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> Proposals:
        records = self._records(image)
        records = [record for record in records if record["area"] > 0]
        records.sort(key=lambda record: -record["predicted_iou"])
        records = records[: self.config.max_masks or None]
        masks = np.zeros((len(records), *image.shape[1:]), dtype=bool)
        for mask, record in zip(masks, records, strict=True):
            mask[:] = record["segmentation"]
        scores = torch.tensor([record["predicted_iou"] for record in records], dtype=torch.float32)
        found = Proposals(torch.from_numpy(masks), scores, source="sam")
        return found.to(image.device)

    def _records(self, image: Tensor) -> list[dict[str, Any]]:
        """What segment_anything's generator finds, in its own words."""
        from segment_anything import SamAutomaticMaskGenerator

        config, network = self.config, typing.cast(Any, self.network)
        short, long = sorted(image.shape[1:])
        if short * network.image_encoder.img_size * 2 < long:
            return []
        layers = config.crop_n_layers
        while layers and short >> layers < 32:
            layers -= 1
        options = {name: getattr(config, name) for name in _LEAST if name != "max_masks"}
        generator: Any = SamAutomaticMaskGenerator(network, **{**options, "crop_n_layers": layers})
        process = generator._process_crop

        def with_boxes(*arguments: Any) -> Any:
            # segment-anything 1.0 gives a crop without masks boxes of shape (0,) and fails on them later.
            found = process(*arguments)
            found["crop_boxes"] = found["crop_boxes"].reshape(-1, 4)
            return found

        generator._process_crop = with_boxes
        records: list[dict[str, Any]] = generator.generate(image.permute(1, 2, 0).cpu().numpy())
        return records

    @staticmethod
    def _source(config: SamConfig) -> str:
        return config.weights or f"sam_{config.model}"


def _read(model: str, source: str) -> nn.Module:
    """The network with its weights, in evaluation mode on the CPU."""
    from segment_anything import sam_model_registry

    path = weights.fetch(source)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read as weights ({reason}). Is the file damaged?") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path}: expected SAM's tensors by name, got something else; is it a whole checkpoint?"
        )
    meant = size_of(state)
    if meant not in (None, model):
        raise WeightsError(f"{path}: these are weights of {meant}, not of {model}: set model: {meant}.")
    network: nn.Module = sam_model_registry[model]()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = explain_mismatch(network.state_dict(), state)
        raise WeightsError(f"{path}: these weights do not fit SAM's {model}: {reason}.") from error
    return network.eval().requires_grad_(False)


def size_of(state: Mapping[str, Tensor]) -> str | None:
    """Which of MODELS these weights belong to, by the width of their tokens; None for no known one."""
    patches = state.get("image_encoder.patch_embed.proj.weight")
    return None if patches is None or patches.ndim != 4 else WIDTHS.get(len(patches))


def _tiny_network() -> nn.Module:
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    width, edge, grid = 16, 64, 4
    encoder = ImageEncoderViT(
        img_size=edge,
        patch_size=edge // grid,
        embed_dim=width,
        depth=1,
        num_heads=2,
        out_chans=width,
        use_rel_pos=True,
        global_attn_indexes=(0,),
    )
    prompts = PromptEncoder(
        embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(edge, edge), mask_in_chans=4
    )
    transformer = TwoWayTransformer(depth=1, embedding_dim=width, mlp_dim=32, num_heads=2)
    decoder = MaskDecoder(
        transformer_dim=width, transformer=transformer, iou_head_depth=2, iou_head_hidden_dim=16
    )
    network: nn.Module = Sam(encoder, prompts, decoder)
    return network.eval().requires_grad_(False)
