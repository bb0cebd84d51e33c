"""The way back: tensors of this package under the published names, as the released code reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

from twostage.published.errors import PublishedError
from twostage.published.names import (
    ADAPTER,
    CLASS_WEIGHTS,
    CLIP,
    LEARNER,
    published_name,
)
from twostage.published.prompts import SIGNALS, VECTORS
from twostage.published.reading import PIXELS

NO_OBJECT_WEIGHT = 0.1
"""Weight of "no object" in the published class loss."""
HEAD_VERSION = 2
"""The released head renames its tensors unless the state dict says that it is at least this new."""


def to_published(
    stage_one: Mapping[str, Tensor],
    classes: int,
    clip: Mapping[str, Tensor] | None = None,
    prompt: Tensor | None = None,
) -> OrderedDict[str, Tensor]:
    """A state dict by published names: values are the same tensors, unchanged.

    stage_one: a MaskFormer's, by our names; classes: how many it was trained on; clip: by open_clip's names;
    prompt: (n, W), only together with clip.

    Raises:
        PublishedError: the network has parts that the released one lacks, or the prompt lacks its CLIP.
    """
    table = {name: published_name(name) for name in stage_one}
    strange = [name for name, published in table.items() if published is None]
    if strange:
        raise PublishedError(
            f"The released network has no place for {len(strange)} tensors ({', '.join(strange[:3])}, ...): "
            "only networks with the paper's options (MODEL.MASK_FORMER: BACKBONE alone) can be written."
        )
    state = OrderedDict((str(table[name]), tensor) for name, tensor in stage_one.items())
    if classes:
        state[CLASS_WEIGHTS] = torch.tensor([1.0] * classes + [NO_OBJECT_WEIGHT])
    if clip is not None:
        state |= _adapter(clip)
    if prompt is not None:
        if clip is None:
            raise PublishedError("Published prompts stand beside their CLIP: write both or none.")
        state[f"{ADAPTER}{LEARNER}{VECTORS}"] = prompt
        rows = clip["token_embedding.weight"]
        state |= {f"{ADAPTER}{LEARNER}{name}": rows[i : i + 1].clone() for name, i in SIGNALS.items()}
    # What torch keeps of a state dict's versions; without it the released head misnames its pixel decoder.
    versions = OrderedDict([("", {"version": 1}), ("sem_seg_head", {"version": HEAD_VERSION})])
    state._metadata = versions  # type: ignore[attr-defined]
    return state


def _adapter(clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    constants = {
        f"{ADAPTER}{name}": torch.tensor(values).view(1, 3, 1, 1) * 255 for name, values in PIXELS.items()
    }
    return constants | {f"{ADAPTER}{CLIP}{name}": tensor for name, tensor in clip.items()}
