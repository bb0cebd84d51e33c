"""The networks of a configuration with their weights, each made at most once and only when asked for."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import torch

from twostage.checkpoints import Weights, open_weights
from twostage.clip.model import ClipModel
from twostage.clip.precision import preferred_convolutions
from twostage.clsclip.config import ClsClipNetworkConfig
from twostage.clsclip.network import ClsClipNetwork
from twostage.config import Config, ConfigError
from twostage.engine.distributed import pick_device
from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.lean import make_lean
from twostage.maskformer.network import MaskFormer
from twostage.networks import Trained, fresh, shipped
from twostage.perpixel.config import PerPixelConfig
from twostage.perpixel.network import PerPixelNetwork
from twostage.protocol import settled
from twostage.readout import vit
from twostage.tasks.clsclip import require_same_clip

logger = logging.getLogger(__name__)
INSIDE = "checkpoint"
"""CLIP.PRETRAINED's word for the CLIP that lies in MODEL.WEIGHTS."""
DTYPES: dict[str, Any] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "auto": "auto",
}


class Networks:
    """CLIP, stage one, the per-pixel network and ClsCLIP, as a configuration has them."""

    def __init__(self, config: Config, trained: Trained[MaskFormer] | None = None) -> None:
        """trained: stage one's network where it is at hand already, in place of MODEL.WEIGHTS."""
        self.config = config = settled(config)
        self.device = pick_device(config.model.device)
        if trained is not None:
            self.trained = trained

    @cached_property
    def clip(self) -> ClipModel:
        """The image-text model of CLIP.*, frozen."""
        options = self.config.clip
        if options.pretrained == INSIDE:
            return self._clip_inside(options.model.replace("/", "-"))
        return ClipModel.load(
            options.model,
            options.pretrained or None,
            device=self.device,
            dtype=DTYPES[options.dtype],
            seed=self.config.seed,
        )

    def _clip_inside(self, name: str) -> ClipModel:
        """The CLIP that lies in a published MODEL.WEIGHTS."""
        inside = None if self.weights is None else self.weights.published
        if inside is None or not inside.clip:
            raise ConfigError(
                f"CLIP.PRETRAINED {INSIDE}: there is no CLIP in MODEL.WEIGHTS {self.config.model.weights!r}; "
                "name a published checkpoint there, or a tag or a file here."
            )
        if inside.clip_name != name:
            raise ConfigError(
                f"CLIP.MODEL is {name}, {inside.report.where} holds {inside.clip_name}: set CLIP.MODEL "
                f"{inside.clip_name}."
            )
        where, kind = inside.report.where, DTYPES[self.config.clip.dtype]
        return ClipModel.from_tensors(name, inside.clip, where, device=self.device, dtype=kind)

    @cached_property
    def weights(self) -> Weights | None:
        """MODEL.WEIGHTS, opened and recognised; None where none are named."""
        path = self.config.model.weights
        return open_weights(shipped(path)) if path else None

    @cached_property
    def embedding_dim(self) -> int:
        """Width of the joint space that the embeddings of a trained network have to reach."""
        if self.config.clip.text_features:
            model = self.config.model
            probe = model.mask_former.get("embedding_dim", model.per_pixel.get("embedding_dim"))
            if probe is None:
                raise ConfigError(
                    "CLIP.TEXT_FEATURES is a file, so MODEL.MASK_FORMER.EMBEDDING_DIM has to say how wide "
                    "its rows are (MODEL.PER_PIXEL.EMBEDDING_DIM for a per-pixel network)."
                )
            return int(probe)
        return self.clip.dim

    def network(self) -> MaskFormer:
        """Stage one's network with fresh weights, drawn from SEED."""
        options = {"embedding_dim": self.embedding_dim, **self.config.model.mask_former}
        made = fresh("MASK_FORMER", options, MaskFormer, MaskFormerConfig, self.config.seed)
        return made.to(self.device)

    def pixel_network(self) -> PerPixelNetwork:
        """The per-pixel baseline's network with fresh weights, drawn from SEED."""
        options = {"embedding_dim": self.embedding_dim, **self.config.model.per_pixel}
        made = fresh("PER_PIXEL", options, PerPixelNetwork, PerPixelConfig, self.config.seed)
        return made.to(self.device)

    @cached_property
    def tower_shape(self) -> tuple[int, int]:
        """Width of a token and number of blocks of CLIP's image tower.

        Raises:
            DenseTowerError: it is none whose class token could be replaced.
        """
        vit.require_vit(self.clip.visual)
        visual: Any = self.clip.visual
        return int(visual.class_embedding.shape[0]), len(vit.blocks(visual))

    def clsclip_network(self) -> ClsClipNetwork:
        """ClsCLIP's map and decoder with fresh weights, drawn from SEED."""
        width, depth = self.tower_shape
        given = {"embedding_dim": self.embedding_dim, "width": width, "depth": depth}
        options = {**given, **self.config.model.clsclip}
        made = fresh("CLSCLIP", options, ClsClipNetwork, ClsClipNetworkConfig, self.config.seed)
        return made.to(self.device)

    @cached_property
    def trained(self) -> Trained[MaskFormer]:
        """Stage one's network with the weights of MODEL.WEIGHTS, and what it was trained on."""
        if self.weights is None:
            raise ConfigError(
                "MODEL.WEIGHTS is empty, and untrained proposals mean nothing: name a checkpoint "
                "(OUTPUT_DIR/model_final.pth after training), or another PROPOSALS.NAME."
            )
        network = self.network()
        self.weights.load_into(network)
        return Trained(make_lean(network, self._convolutions()), self.weights.trained_names)

    def _convolutions(self) -> torch.dtype:
        if self.config.model.dtype != "auto":
            found: torch.dtype = DTYPES[self.config.model.dtype]
            return found
        found, reason = preferred_convolutions(self.device)
        logger.info("Stage one: %s", reason)
        return found

    @cached_property
    def trained_pixels(self) -> Trained[PerPixelNetwork]:
        """The per-pixel network with the weights of MODEL.WEIGHTS, and what it was trained on."""
        path = self.config.model.weights
        if not path or "maskformer" in self.config.proposals.names():
            raise ConfigError(
                "A per-pixel network takes its weights from MODEL.WEIGHTS, which "
                + ("are those of PROPOSALS.NAME maskformer here: leave that empty" if path else "is empty")
                + "; name a checkpoint of TASK per_pixel (OUTPUT_DIR/model_final.pth after training)."
            )
        assert self.weights is not None
        network = self.pixel_network()
        self.weights.load_into(network)
        return Trained(network, self.weights.trained_names)

    @cached_property
    def trained_clsclip(self) -> Trained[ClsClipNetwork]:
        """ClsCLIP with its weights, and what it was trained on."""
        model = self.config.model
        path = model.clsclip_weights or model.weights
        others = not model.clsclip_weights and "maskformer" in self.config.proposals.names()
        if not path or others:
            raise ConfigError(
                "ClsCLIP takes its weights from MODEL.CLSCLIP_WEIGHTS, which is empty, or MODEL.WEIGHTS, "
                + ("which are those of PROPOSALS.NAME maskformer here" if path else "which is empty too")
                + "; name a checkpoint of TASK clsclip (OUTPUT_DIR/model_final.pth after training)."
            )
        weights = open_weights(path)
        network = self.clsclip_network()
        weights.load_into(network)
        require_same_clip(weights.content, self.clip, str(path))
        return Trained(network, weights.trained_names)
