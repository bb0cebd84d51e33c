"""What the image as a whole says of the words: the class token's opinion, and texts moved towards it.

CASS's object presence prior (Kim et al., 2025). Shapes: B images, N patches, T texts, E joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from twostage.readout import vit
from twostage.readout.engine import Tower
from twostage.readout.record import Record


def image_vector(tower: Tower, record: Record, suppress: tuple[int, ...] = ()) -> Tensor:
    """(B, E) float32 unit rows: the tower's own vector of each image, from what enters its last block.

    Only the class token is carried through the block.
    """
    block, entering = tower.blocks[-1], record.entering
    [query] = vit.project(block, entering[:, :1], "q")
    keys, values = vit.project(block, entering, "kv")
    mixed = F.scaled_dot_product_attention(query, keys, values)
    token = entering[:, :1] + block.ls_1(vit.merge_heads(block, mixed))
    channels = tower.channels(suppress).get(len(tower.blocks) - 1)
    token = token + block.ls_2(vit.feed_forward(block, block.ln_2(token), channels))
    return F.normalize(vit.readout(tower.visual, token)[:, 0].float(), dim=-1)


def text_groups(text: Tensor, height: float) -> Tensor:
    """(T, E) -> (T,) int64, the group of each text from 0: Ward's clustering, cut at a height."""
    if len(text) < 2:
        return torch.zeros(len(text), dtype=torch.long, device=text.device)
    tree = linkage(text.double().cpu().numpy(), method="ward")
    found = fcluster(tree, height, criterion="distance")
    return torch.as_tensor(found - 1, device=text.device, dtype=torch.long)


def moved_texts(text: Tensor, present: Tensor, patches: Tensor, groups: Tensor, share: float) -> Tensor:
    """(T, E) unit texts -> (B, T, E) unit texts of each image: the text of every group that the image speaks
    for most goes `share` of the way to the mean of the two patches most like it.

    present: (B, T), how much the image speaks for each text; patches: (B, N, E) unit rows; groups: (T,).
    """
    count = int(groups.max()) + 1
    index = groups.expand(present.shape)
    best = present.new_full((len(present), count), -torch.inf).scatter_reduce(1, index, present, "amax")
    top = present == best.gather(1, index)
    nearest = (patches @ text.T).topk(min(2, patches.shape[1]), dim=1).indices  # (B, 2, T)
    batch = torch.arange(len(patches), device=patches.device)[:, None, None]
    goal = patches[batch, nearest].mean(dim=1)
    moved = F.normalize((1 - share) * text + share * goal, dim=-1)
    return torch.where(top[..., None], moved, text)
