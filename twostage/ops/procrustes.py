"""Turning keys onto queries: the rotation that brings one set of vectors closest to another.

PEARL (2026, section D.7 of its method): attention between queries and rotated keys. Shapes: ... leading axes,
L vectors of width d.
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred(q: Tensor, k: Tensor, skip_first: bool) -> tuple[Tensor, Tensor]:
    """q, k: (..., L, d) -> both with their weighted means taken off; the weights of both are the lengths of
    the queries, and zero for the first one (the class token) where `skip_first`.
    """
    weight = q.norm(dim=-1, keepdim=True)
    if skip_first:
        weight = torch.cat([torch.zeros_like(weight[..., :1, :]), weight[..., 1:, :]], dim=-2)
    weight = weight / weight.sum(dim=-2, keepdim=True).clamp_min(1e-12)
    return q - (weight * q).sum(dim=-2, keepdim=True), k - (weight * k).sum(dim=-2, keepdim=True)


def rotation(q: Tensor, k: Tensor, steps: int = 5) -> Tensor:
    """(..., L, d) centred queries and keys -> (..., d, d) float32 R, so that k R lies closest to q.

    R is the orthogonal part M (M^T M)^(-1/2) of M = k^T q. steps: of Newton and Schulz's iteration for the
    inverse root, as released (five do not converge, so that R is not quite orthogonal); 0: exactly, by
    singular values.
    """
    cross = (k.transpose(-2, -1) @ q).float()
    if steps == 0:
        left, _, right = torch.linalg.svd(cross, full_matrices=False)
        exact: Tensor = left @ right
        return exact
    gram = cross.transpose(-2, -1) @ cross
    size = gram.flatten(-2).norm(dim=-1).clamp_min(1e-12)[..., None, None]
    identity = torch.eye(gram.shape[-1], device=gram.device)
    root, inverse = gram / size + 1e-6 * identity, identity.expand(gram.shape)
    for _ in range(steps):
        turn = 0.5 * (3 * identity - inverse @ root)
        root, inverse = root @ turn, turn @ inverse
    found: Tensor = cross @ inverse / size.sqrt()
    return found
