"""Density clustering and what an image is cut into by it: points, their clusters, and votes inside clusters.

Shapes: N points, M values of each, G clusters, h x w grid, H x W pixels, T classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from twostage.errors import TwostageError

NOISE = -1
"""The label of points that belong to no cluster."""
_CHUNK = 16
"""Maps of clusters that are filtered at a time, to bound memory."""


def within(rows: Tensor, radius: float) -> Tensor:
    """(N, M) -> (N, N) bool: who lies at most `radius` apart (L2, in float64); each is near itself."""
    points = rows.double()
    squared = points.square().sum(dim=1)
    distance = (squared[:, None] + squared - 2 * points @ points.T).clamp_min(0).sqrt()
    return (distance <= radius).fill_diagonal_(True)


def density_clusters(near: Tensor, least: int) -> Tensor:
    """Clusters of points by density (DBSCAN, Ester et al., 1996), from who is near whom.

    near: (N, N) bool, symmetric, true on the diagonal; least: near points, itself among them, that make a
    point the core of a cluster. -> (N,) int64, clusters counted from 0 in the order of their first core,
    NOISE elsewhere. A point that is no core belongs to the first cluster that has a core near it, as where
    the algorithm visits points in order.

    Raises:
        TwostageError: near is not a square bool matrix, or least is below one.
    """
    if near.ndim != 2 or near.shape[0] != near.shape[1] or near.dtype != torch.bool:
        raise TwostageError(
            f"density_clusters: near should be a square bool matrix, got {tuple(near.shape)} {near.dtype}; "
            "compare distances with a radius first."
        )
    if least < 1:
        raise TwostageError(f"density_clusters: least should be at least 1, got {least}.")
    core = near.sum(dim=1) >= least
    labels = torch.full((len(near),), NOISE, dtype=torch.int64, device=near.device)
    cores = core.nonzero()[:, 0]
    if len(cores) == 0:
        return labels
    linked = csr_matrix(near[cores][:, cores].cpu().numpy())
    count, part = connected_components(linked, directed=False)
    first = np.unique(part, return_index=True)[1]  # the first core of every part, in the order of parts
    order = np.empty(count, dtype=np.int64)
    order[np.argsort(first)] = np.arange(count)
    labels[cores] = torch.from_numpy(order[part]).to(near.device)
    owner = torch.where(near[:, cores], labels[cores], count).amin(dim=1)
    return torch.where(core, labels, torch.where(owner < count, owner, NOISE))


def median_filter(maps: Tensor, size: int = 7) -> Tensor:
    """(G, h, w) float -> the same, every place the median of the size x size places around it; beyond the
    edge the map is mirrored, edge included.

    Raises:
        TwostageError: size is even or below one.
    """
    if size < 1 or size % 2 == 0:
        raise TwostageError(f"median_filter: size should be odd and at least 1, got {size}.")
    rows, columns = (_mirrored(length, size // 2).to(maps.device) for length in maps.shape[-2:])
    padded = maps[:, rows][:, :, columns]
    around = padded.unfold(1, size, 1).unfold(2, size, 1).flatten(3)
    return around.median(dim=3).values


def _mirrored(length: int, margin: int) -> Tensor:
    """Indices -margin .. length + margin - 1, reflected at the edges of 0 .. length - 1 (edge repeated)."""
    place = torch.arange(-margin, length + margin) % (2 * length)
    return torch.where(place < length, place, 2 * length - 1 - place)


def cluster_regions(
    affinity: Tensor, labels: Tensor, grid: tuple[int, int], size_hw: tuple[int, int]
) -> Tensor | None:
    """Every pixel's cluster: the one whose members, on average, are closest to its place (CLIPtrase).

    affinity: (N, N), what row i's patch has in common with each patch; labels: (N,) clusters from 0, or
    NOISE, whose patches found no map of their own; grid: (h, w), N = h * w. The maps are enlarged four
    times, filtered by their median over 7 x 7, enlarged to size_hw (bilinear) and compared. -> (H, W) int64,
    or None where no cluster is.
    """
    count = int(labels.max()) + 1
    if count == 0:
        return None
    members = F.one_hot(labels.clamp_min(0), count).to(affinity.dtype) * (labels >= 0)[:, None]
    means = (members.T @ affinity) / members.sum(dim=0)[:, None]
    maps = means.unflatten(1, grid)
    best = affinity.new_full(size_hw, -torch.inf)
    owner = torch.zeros(size_hw, dtype=torch.int64, device=affinity.device)
    for start in range(0, count, _CHUNK):
        part = _resized(maps[start : start + _CHUNK], (4 * grid[0], 4 * grid[1]))
        top, index = _resized(median_filter(part), size_hw).max(dim=0)
        owner = torch.where(top > best, index + start, owner)
        best = torch.maximum(best, top)
    return owner


def _resized(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size_hw, mode="bilinear", align_corners=False)[0]


def majority(owner: Tensor, classes: Tensor, count: int) -> Tensor:
    """owner, classes: (H, W) int64, the region and the class of every pixel, classes below `count` -> (H, W):
    the class that most pixels of its region have, the lowest of equals.
    """
    regions = int(owner.max()) + 1
    votes = torch.bincount((owner * count + classes).flatten(), minlength=regions * count)
    winner: Tensor = votes.reshape(regions, count).argmax(dim=1)[owner]
    return winner


def voted(logits: Tensor, winner: Tensor) -> Tensor:
    """(T, H, W) logits and (H, W) classes -> logits whose best class is the voted one at every pixel: there
    it and the pixel's own best change places, so that no value is invented.
    """
    best, own = logits.max(dim=0, keepdim=True)
    theirs = logits.gather(0, winner[None])
    return logits.scatter(0, own, theirs).scatter(0, winner[None], best)
