"""Class maps that agree with neighbours across even colour: a linear system on a coarse grid of the photo.

The post-processing of PEARL (CVPR 2026), in the form of its released code: sure places keep their value,
unsure ones take it from neighbours that no edge of the photo parts from them.

Shapes: B images, T rows of text of width E, H x W pixels, h x w cells of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError

_GREY = (0.299, 0.587, 0.114)
_TINY = 1e-12


@dataclass(frozen=True)
class Graph:
    """The system (diag c + Laplacian) f = diag(c) f0. own: (B, 1, h, w) c, how much a cell keeps to its own
    value; across: (B, 1, h, w - 1), down: (B, 1, h - 1, w), how much neighbours in a row and in a column
    pull each other.
    """

    own: Tensor
    across: Tensor
    down: Tensor

    def times(self, maps: Tensor) -> Tensor:
        """(B, T, h, w) -> the same times the system's matrix."""
        out = self.own * maps
        for axis, pull in ((3, self.across), (2, self.down)):
            pulled, cells = pull * maps.diff(dim=axis), maps.shape[axis]
            out.narrow(axis, 0, cells - 1).sub_(pulled)
            out.narrow(axis, 1, cells - 1).add_(pulled)
        return out


def propagate(image: Tensor, cosines: Tensor, text: Tensor, grid: int = 80, steps: int = 25) -> Tensor:
    """Maps that are smooth where the photo is.

    image: (B, 3, H, W) float RGB, in any unit; cosines: (B, T, h', w') float, of any size, not scaled: their
    plain softmax says how sure a place is; text: (T, E) float unit rows; grid: cells along the longer side,
    about (a cell is a whole number of pixels); steps: of conjugate gradients, beginning at the maps
    themselves. Returns (B, T, H, W) float32, bilinear from the grid. Memory: a few values a cell and map
    beside the maps at the image's size.

    As released, twenty-five steps stop short of the solution, one step length serves all maps of an image,
    the texts' likeness enters by its diagonal only, and a last row or column that fills no cell is left out.
    That `grid` counts the longer side is our choice.

    Raises:
        TwostageError: grid or steps below 1, another number of images or texts than of maps.
    """
    if grid < 1 or steps < 1:
        raise TwostageError(
            f"propagate: expected a grid of 1 or more cells and 1 or more steps, got {grid} and {steps}."
        )
    if (len(image), len(text)) != tuple(cosines.shape[:2]):
        raise TwostageError(
            f"propagate: expected maps of {len(image)} images and {len(text)} texts, got {cosines.shape[0]} "
            f"and {cosines.shape[1]}: give one map for each text, before synonyms are joined."
        )
    size = (image.shape[-2], image.shape[-1])
    maps = cosines.float()
    if tuple(maps.shape[-2:]) != size:
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    cell = max(1, round(max(size) / grid))
    cell_hw = (min(cell, size[0]), min(cell, size[1]))
    coarse = F.avg_pool2d(maps, cell_hw)
    found = solve(graph(F.avg_pool2d(image.float(), cell_hw), coarse, text), coarse, steps)
    return F.interpolate(found, size=size, mode="bilinear", align_corners=False)


def graph(image: Tensor, cosines: Tensor, text: Tensor) -> Graph:
    """(B, 3, h, w) colours, (B, T, h, w) cosines and (T, E) texts -> the graph of one grid.

    With p = softmax(cosines) and g_ij = sum_t s_t p_it p_jt: own = max(p, 0.05)^2 (1 + g_ii), p the largest;
    pull = exp(-5 |grey_i - grey_j| / mean of it) (1 + g_ij), at most 1, the mean taken for rows and columns
    apart. s is the diagonal of softmax(text text^T / 0.5) + 10 I, its rows brought to sum one.
    """
    alike = (text.float() @ text.float().T / 0.5).softmax(dim=-1).diagonal()
    weighted = (alike + 10) / 11
    p = cosines.softmax(dim=1)
    share = weighted[:, None, None] * p
    sure = p.amax(dim=1, keepdim=True).clamp_min(0.05) ** 2
    grey = (image * image.new_tensor(_GREY)[:, None, None]).sum(dim=1, keepdim=True)
    pulls = []
    for axis in (3, 2):
        cells = p.shape[axis]
        step = grey.diff(dim=axis).abs()
        usual = step.sum(dim=(2, 3), keepdim=True) / max(1, step[0].numel())
        first, second = share.narrow(axis, 0, cells - 1), p.narrow(axis, 1, cells - 1)
        agreeing = 1 + (first * second).sum(dim=1, keepdim=True)
        pulls.append((torch.exp(-5 * step / usual.clamp_min(_TINY)) * agreeing).clamp(0, 1))
    return Graph(sure * (1 + (share * p).sum(dim=1, keepdim=True)), *pulls)


def solve(system: Graph, maps: Tensor, steps: int) -> Tensor:
    """(B, T, h, w) f0 -> f after so many steps of conjugate gradients, an image's maps as one vector."""
    found = maps
    left = system.own * maps - system.times(maps)
    ahead, size = left, _dot(left, left)
    for _ in range(steps):
        turned = system.times(ahead)
        length = _ratio(size, _dot(ahead, turned))
        found = found + length * ahead
        left = left - length * turned
        before, size = size, _dot(left, left)
        ahead = left + _ratio(size, before) * ahead
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 0 where nothing is left to divide by: the maps are solved already."""
    return torch.where(below > 0, above / below.where(below > 0, 1), 0)
