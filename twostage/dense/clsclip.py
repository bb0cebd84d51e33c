"""ClsCLIP as a dense head: every class is asked for by itself, and each answers with a map of its own.

ClsCLIP+ looks again at the boxes of stage one's masks, enlarged (Wu et al., arXiv 2304.06212; see
`twostage.dense._zoom` for how ours differs).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.clsclip.config import ClsClipError, ClsClipNetworkConfig
from twostage.clsclip.network import ClsClipNetwork, Started
from twostage.clsclip.training_free import PinvInjection
from twostage.dense import _frame, _zoom
from twostage.errors import TwostageError
from twostage.interfaces import ProposalGenerator
from twostage.ops.fusion import class_maps
from twostage.ops.modes import evaluating
from twostage.readout import vit
from twostage.types import DenseScores, TextBank
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)
INJECTIONS = ("learned", "pinv")


class ClsClipDense:
    """Foreground minus background logit of every class at every place of the grid, one image at a time.

    Blocks without a word run once an image, the others once a class: memory grows with `chunk`, not with the
    number of classes.
    """

    @dataclass(frozen=True)
    class Config:
        """image_size: side in pixels of the square that an image is squashed to; 0 keeps its size, rounded to
        whole patches. chunk: pairs of an image and a word in one pass. injection: "learned", the trained map
        and decoder; "pinv", EXPERIMENTAL, a word without training (logits are then cosines times the bank's
        scale, and 0 is no natural threshold). blocks: where "pinv" puts the word, as the trained network's
        option of this name.

        ClsCLIP+: zoom: whether to look at the boxes of PROPOSALS.NAME too; padding: share of a box's side
        added to it, half on each side; crop_size: side of the square that a box is squashed to, 0 for
        image_size, or the tower's own where that is 0 too; max_classes: how many classes are looked for in
        boxes, those with the most in the whole image, the others count as absent; box_score: least mean
        probability of a class inside a mask, by the look at the whole image, for its box to be looked at; 0
        takes all boxes for all classes; absent: the logit of places in no box; min_box: boxes with a shorter
        side, in pixels, are left out.
        """

        image_size: int = 480
        chunk: int = 8
        injection: Literal["learned", "pinv"] = "learned"
        blocks: tuple[int, ...] = (2, 5)
        zoom: bool = False
        padding: float = 0.1
        crop_size: int = 0
        max_classes: int = 10
        box_score: float = 0.5
        absent: float = -10.0
        min_box: int = 8

        def __post_init__(self) -> None:
            if self.injection not in INJECTIONS:
                raise TwostageError(
                    f"ClsClipDense: unknown injection {self.injection!r}."
                    + nearest(str(self.injection), INJECTIONS)
                )
            least = {
                "image_size": 0,
                "chunk": 1,
                "padding": 0,
                "crop_size": 0,
                "max_classes": 1,
                "min_box": 1,
            }
            for name, bound in least.items():
                if getattr(self, name) < bound:
                    raise TwostageError(
                        f"ClsClipDense: {name} must be at least {bound}, got {getattr(self, name)}."
                    )
            if not 0 <= self.box_score <= 1:
                raise TwostageError(
                    f"ClsClipDense: box_score is a probability in [0, 1], got {self.box_score}."
                )
            if self.zoom and self.injection == "pinv":
                raise TwostageError(
                    "ClsClipDense: zoom unites masks, and injection 'pinv' gives no masks, only cosines: "
                    "choose injection learned, or zoom false."
                )
            ClsClipNetworkConfig(blocks=self.blocks)

    def __init__(
        self,
        config: Config,
        clip: ClipModel,
        make_clsclip: Callable[[], ClsClipNetwork],
        make_proposals: Callable[[], ProposalGenerator | None],
    ) -> None:
        """make_clsclip, make_proposals: called where the options need them.

        Raises:
            TwostageError: the image tower is none whose class token could be replaced, or there is nothing
                that finds boxes to zoom into.
        """
        self.config, self.clip = config, clip
        vit.require_vit(clip.visual)
        self.network: Any
        if config.injection == "learned":
            self.network = make_clsclip()
        else:
            logger.warning("ClsCLIP with injection pinv is an experiment that no publication supports")
            depth = len(vit.blocks(clip.visual))
            placed = ClsClipNetworkConfig(blocks=config.blocks, depth=depth).placed
            self.network = PinvInjection(clip.visual, placed)
        self.proposals = make_proposals() if config.zoom else None
        if config.zoom and self.proposals is None:
            raise TwostageError(
                "ClsClipDense: zoom looks at the boxes of stage one's masks, and PROPOSALS.NAME is empty: "
                "name a component that finds masks, or set zoom false."
            )

    @classmethod
    def tiny(cls) -> ClsClipDense:
        """The smallest shipped ViT and a small decoder, both with random weights."""
        options = ClsClipNetworkConfig(128, 128, 6, decoder_layers=1, decoder_heads=4, head_widths=(16, 8))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = ClsClipNetwork(options)
        clip = ClipModel.load("twostage-mini-vit", "random", seed=0)
        return cls(cls.Config(image_size=64), clip, lambda: network, lambda: None)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        """images: RGB uint8 (3, H, W) of any sizes -> (K, h, w) logits each, covering the whole image.

        Raises:
            ClsClipError: the text has another width than the image features, or the network says NaN.
            TwostageError: an image is not RGB uint8.
        """
        if text.dim != self.clip.dim:
            raise ClsClipError(
                f"ClsClipDense: expected text features {self.clip.dim} wide, got {text.dim}. Make them with "
                f"the text tower of {self.clip.name}, which reads the image."
            )
        for position, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise TwostageError(
                    f"ClsClipDense: image {position} should be RGB uint8 (3, H, W), got "
                    f"{tuple(image.shape)} {image.dtype}; give it before any normalisation."
                )
        text = text.to(self.clip.device)
        if isinstance(self.network, ClsClipNetwork):
            with evaluating(self.network):
                return [DenseScores(self._one(image, text).to(image.device)) for image in images]
        return [DenseScores(self._whole(image, text).to(image.device)) for image in images]

    def _one(self, image: Tensor, text: TextBank) -> Tensor:
        maps = self._whole(image, text)
        if not torch.isfinite(maps).all():
            raise ClsClipError(
                "ClsCLIP gives NaN or infinite numbers. The weights are damaged or come from a training that "
                "diverged: use an earlier checkpoint."
            )
        if self.proposals is None:
            return maps
        [found] = self.proposals.propose([image])
        plan = _zoom.plan(maps, found, self.config.max_classes, self.config.box_score, self.config.min_box)
        boxes = _zoom.grown(plan.boxes_xyxy, self.config.padding, (image.shape[1], image.shape[2]))
        canvas = _zoom.Canvas(maps, plan, self.config.absent, (image.shape[1], image.shape[2]))
        for number, box in enumerate(boxes.tolist()):
            classes = plan.classes_of(number)
            left, top, right, bottom = box
            crop = self._pixels(image[:, top:bottom, left:right], self._crop_hw())
            canvas.paste(box, classes, self._maps(crop, text.subset(classes)))
        return canvas.maps

    def _whole(self, image: Tensor, text: TextBank) -> Tensor:
        """(K, h, w) float32 of a look at the whole image."""
        side = self.config.image_size
        own = (image.shape[1], image.shape[2])
        goal = (side, side) if side else own
        return self._maps(self._pixels(image, goal), text)

    def _pixels(self, image: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """RGB uint8 -> (1, 3, H, W) normalised, of this size rounded to whole patches."""
        tall, wide = (int(side) for side in self.clip.visual.patch_size)  # type: ignore[union-attr,arg-type]
        goal = _frame.target_size(size_hw, 0, max(size_hw), (tall, wide), "round")
        pixels = _frame.to_pixels(image.to(self.clip.device), goal, self.clip.mean, self.clip.std)
        return pixels[None].to(self.clip.dtype)

    def _crop_hw(self) -> tuple[int, int]:
        side = self.config.crop_size or self.config.image_size or min(self.clip.image_size)
        return side, side

    def _maps(self, pixels: Tensor, text: TextBank) -> Tensor:
        """(1, 3, H, W) normalised -> (K, h, w) float32, a class with synonyms by its best."""
        started = self.network.start(self.clip.visual, pixels)
        rows = torch.cat([*self._rows(started, text)])
        maps: Tensor = class_maps(rows[None], text.class_of, text.num_classes)[0]
        return maps

    def _rows(self, started: Started, text: TextBank) -> Iterator[Tensor]:
        """(T, h, w) of all text rows, some at a time."""
        visual, chunk = self.clip.visual, self.config.chunk
        for words in text.features.split(chunk):
            image_of = torch.zeros(len(words), dtype=torch.int64, device=words.device)
            if isinstance(self.network, ClsClipNetwork):
                both = self.network.finish(visual, started, words, image_of)
                yield both[:, 1] - both[:, 0]
            else:
                yield text.logit_scale * self.network.logits(visual, started, words, image_of)
