"""What is done at test time beyond one look at a photo: class maps of many views averaged, a random field.

Neither is part of a system; both work on any ensemble that can give its class map.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.interfaces import Ensemble
from twostage.ops.canvas import Canvas
from twostage.ops.crf import DenseCrf
from twostage.types import VOID, Segmentation
from twostage.views import View, Views

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestTime:
    """views: which views of a photo are averaged; crf: the random field that sharpens the mean, or None;
    maps_bytes: most memory for the class maps of one photo, over all ensembles together, and as much again
    for the field's; maps that do not fit are averaged on a coarser grid.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    views: Views = field(default_factory=Views)
    crf: DenseCrf | None = None
    maps_bytes: int = 2 * 2**30

    @property
    def plain(self) -> bool:
        """Whether one look at the photo is all."""
        return self.views.plain and self.crf is None


def scoring(ensemble: Any) -> Ensemble:
    """The same ensemble giving its class map too.

    Raises:
        TwostageError: it has no option `scores`, so it cannot.
    """
    config = getattr(ensemble, "config", None)
    if config is None or not any(one.name == "scores" for one in dataclasses.fields(config)):
        raise TwostageError(
            f"{type(ensemble).__name__} has no option `scores`, so it gives no class maps, and TEST.AUG, "
            "TEST.WINDOW and TEST.CRF need them: turn these off, or set ENSEMBLE.NAME geometric."
        )
    return type(ensemble)(dataclasses.replace(config, scores=True))  # type: ignore[no-any-return]


class Album:
    """The class maps of all views of one photo, for several ensembles at once."""

    def __init__(
        self,
        options: TestTime,
        ensembles: Mapping[str, Ensemble],
        num_classes: int,
        size_hw: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """size_hw: the photo's own size."""
        self._options, self._asked = options, ensembles
        self.ensembles = {name: scoring(ensemble) for name, ensemble in ensembles.items()}
        share = options.maps_bytes // (len(ensembles) + 1)  # a view's own map exists beside the sums
        self._canvases = {name: Canvas(num_classes, size_hw, share, device) for name in ensembles}
        self._views = dict.fromkeys(ensembles, 0)
        if any(canvas.grid_hw != size_hw for canvas in self._canvases.values()):
            _say_coarser(num_classes, len(ensembles), options.maps_bytes)

    def place(self, view: View) -> tuple[int, int]:
        """Height and width at which an ensemble has to map this view."""
        [grid_hw] = {canvas.grid_hw for canvas in self._canvases.values()}
        top, left, bottom, right = view.place(grid_hw)
        return bottom - top, right - left

    def paste(self, name: str, view: View, made: Segmentation) -> None:
        """One ensemble's answer to a view; where it left pixels void it has no say."""
        assert made.scores is not None
        self._views[name] += 1
        canvas, scores = self._canvases[name], made.scores
        if scores.shape[1:] != made.labels.shape:
            scores = F.interpolate(scores[None], made.labels.shape, mode="bilinear", align_corners=False)[0]
        void = made.labels == VOID
        canvas.add(view.place(canvas.grid_hw), scores, ~void if bool(void.any()) else None, view.mirrored)

    def settle(self, name: str, photo: Tensor) -> Segmentation:
        """The labels that all views of one ensemble come to. photo: RGB uint8 (3, H, W) at its own size."""
        canvas = self._canvases.pop(name)
        config: Any = getattr(self._asked[name], "config", None)
        crf = self._options.crf
        if crf is None:
            made = _labels(canvas, config.scores, getattr(config, "confidence", False))
        else:
            made = _field(canvas, photo, crf, self._options.maps_bytes, config.scores)
        return dataclasses.replace(made, info={"views": self._views[name], "random_field": crf is not None})


@functools.cache
def _say_coarser(num_classes: int, ensembles: int, budget: int) -> None:
    """Once a run; the grid differs from photo to photo."""
    logger.warning(
        "Class maps of %d classes for %d systems do not fit TEST.MAPS_GIB %g on large photos, which are "
        "averaged on a coarser grid; raise it, or measure fewer TEST.SYSTEMS, for the photos' own pixels",
        num_classes,
        ensembles,
        budget / 2**30,
    )


def _labels(canvas: Canvas, keep_scores: bool, keep_confidence: bool) -> Segmentation:
    labels = torch.empty(canvas.size_hw, dtype=torch.int32, device=canvas.device)
    sure = torch.empty(canvas.size_hw, device=canvas.device) if keep_confidence else None
    kept = torch.empty(canvas.num_classes, *canvas.size_hw, device=canvas.device) if keep_scores else None
    for rows, class_map, void in canvas.strips():
        value, best = class_map.max(dim=0)
        labels[rows] = best.int() if void is None else best.int().masked_fill_(void, VOID)
        if sure is not None:
            sure[rows] = value / class_map.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
        if kept is not None:
            kept[:, rows] = class_map
    return Segmentation(labels, kept, sure)


def _field(canvas: Canvas, photo: Tensor, crf: DenseCrf, budget: int, keep_scores: bool) -> Segmentation:
    """Labels after the random field; its probabilities are the confidence, void pixels stay void."""
    pixels = canvas.size_hw[0] * canvas.size_hw[1]
    most = max(2, min(crf.max_classes, budget // (5 * 4 * pixels)))  # `DenseCrf.infer` holds five such arrays
    chosen = leading_classes(canvas, most)
    log_unary = torch.empty(*canvas.size_hw, len(chosen), device=canvas.device)
    silent = torch.zeros(canvas.size_hw, dtype=torch.bool, device=canvas.device)
    for rows, class_map, void in canvas.strips():
        log_unary[rows] = crf.log_unary(class_map, chosen).permute(1, 2, 0)
        if void is not None:
            silent[rows] = void
    probs = crf.infer(photo.to(canvas.device), log_unary.flatten(0, 1)).view_as(log_unary)
    sure, best = probs.max(dim=2)
    kept = None
    if keep_scores:
        kept = torch.zeros(canvas.num_classes, *canvas.size_hw, device=canvas.device)
        kept[chosen] = probs.permute(2, 0, 1)
    return Segmentation(chosen[best].int().masked_fill_(silent, VOID), kept, sure)


def leading_classes(canvas: Canvas, most: int) -> Tensor:
    """(M,) int64, in order, M <= most: all classes, or those that lead in the most cells; among equals,
    those with the largest share of all scores.
    """
    count = canvas.num_classes
    if count <= most:
        return torch.arange(count, device=canvas.device)
    wins = torch.zeros(count, device=canvas.device)
    mass = torch.zeros(count, device=canvas.device)
    for _, class_map, _ in canvas.strips(canvas.grid_hw):
        wins += torch.bincount(class_map.max(dim=0).indices.flatten(), minlength=count)  # see Painter.label
        mass += class_map.sum(dim=(1, 2))
    rank = wins.double() + mass.double() / (mass.sum().double() + 1e-12)
    return rank.topk(most).indices.sort().values
