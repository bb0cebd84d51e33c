"""What a weights file is, from the names in it; kinds that cannot be used are refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from twostage.published.errors import PublishedError
from twostage.published.names import ADAPTER, LEARNER, PIXEL_DECODER, PREDICTOR

TWICE = f"{PIXEL_DECODER}pixel_decoder."
"""Where the pixel decoder ends up when the released code re-reads a checkpoint that lost its version."""


class Kind(Enum):
    """Files that can be used. The value is what to call them."""

    OURS = "a checkpoint of this package"
    ZERO_SHOT = "a published zero-shot checkpoint"
    SUPERVISED = "a published checkpoint of a supervised MaskFormer"
    PROMPTS = "published prompts alone"
    BACKBONE = "ImageNet weights of a backbone, in Detectron2's names"

    @property
    def has_stage_one(self) -> bool:
        """Whether a published file of this kind holds stage one's network."""
        return self in (Kind.ZERO_SHOT, Kind.SUPERVISED)


_OWN_ENTRIES = ("network", "vocabulary", "config")
_OWN_NAMES = (
    "pixel_decoder.",
    "decoder.",
    "class_head.",
    "memory_projections.",
    "query_embed.",
    "mask_embed.",
)
_BLOCK = re.compile(r"res[2-5]\.\d+\.conv[123]\.(weight|norm\.)")
_OLD_ERA = re.compile(r"(.*\.)?clip_helper\.")
_CONVERSION = "take Detectron2's conversion of torchvision's, whose names begin with stem. and res2."
_STRANGERS = (
    (r"image_encoder\.", "Segment Anything: choose PROPOSALS.NAME sam and name the file in its options"),
    (r"visual\.|transformer\.resblocks\.|token_embedding\.", "a CLIP: name it in CLIP.PRETRAINED"),
    (r"module\.", "saved from inside DataParallel: every name begins with 'module.'"),
    (r"conv1_w|res\d_\d_branch", f"ImageNet weights in Caffe2's names; {_CONVERSION}"),
    (r"layer[1-4]\.\d+\.conv|conv1\.weight$|bn1\.", f"torchvision's ResNet; {_CONVERSION}"),
    (r"backbone\.(patch_embed|layers)\.", "of a Swin transformer; stage one here has r50 and r101c only"),
    (r"backbone\.(bottom_up|fpn_)", "another model of Detectron2, not this MaskFormer"),
    (r"sem_seg_head\.", "of another MaskFormer, or of the per-pixel baseline"),
    (r"clip_adapter\.", "a part of a published checkpoint"),
)
"""How the names of other files begin, and what to say of them."""


def recognise(content: Mapping[str, Any], where: str) -> Kind:
    """The kind of a file's content {"model": tensors, ...}. Names decide, shapes are looked at later.

    Raises:
        PublishedError: it is of no kind that can be used; the message says which it seems to be.
    """
    names = list(content["model"])
    if old := next((name for name in names if _OLD_ERA.match(name)), None):
        raise PublishedError(
            f"{where} is of the code before the paper's final version (it holds {old!r}): its prompts, its "
            "treatment of empty masks and its extra loss are others, so its numbers could not be reached "
            "here. Use a checkpoint of the final code, whose names begin with clip_adapter."
        )
    if any(entry in content for entry in _OWN_ENTRIES):
        return Kind.OURS
    if any(name.startswith(TWICE) for name in names):
        raise PublishedError(
            f"{where}: its pixel decoder is named {TWICE}* ({sum(name.startswith(TWICE) for name in names)} "
            "tensors): the file was stripped and saved again, and whoever loads it by these names leaves the "
            "pixel decoder random. If the tensors were trained under their right names, `python "
            "tools/convert_checkpoint.py IN OUT --repair` takes the doubled part out; evaluate the result "
            "before you trust it."
        )
    for found, kind in (
        (_any(names, f"{PREDICTOR}class_embed.layers."), Kind.ZERO_SHOT),
        (_any(names, f"{PREDICTOR}class_embed."), Kind.SUPERVISED),
        (_any(names, f"{ADAPTER}{LEARNER}", LEARNER) and not _any(names, "sem_seg_head."), Kind.PROMPTS),
        (any(_BLOCK.match(name) for name in names), Kind.BACKBONE),
        (_any(names, *_OWN_NAMES), Kind.OURS),
    ):
        if found:
            return kind
    raise PublishedError(f"{where} is no weights file known here. {_guess(names)}")


def repaired(names: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries with the doubled `pixel_decoder.` taken out of their names, nothing else changed.

    Raises:
        PublishedError: a repaired name is there already.
    """
    result = {
        PIXEL_DECODER + name.removeprefix(TWICE) if name.startswith(TWICE) else name: value
        for name, value in names.items()
    }
    if len(result) < len(names):
        raise PublishedError("Repairing the names of the pixel decoder would put two tensors in one place.")
    return result


def _guess(names: list[str]) -> str:
    for pattern, reason in _STRANGERS:
        if (found := next((name for name in names if re.match(pattern, name)), None)) is not None:
            return f"It holds {found!r} and seems to be {reason.rstrip('.')}."
    shown = ", ".join(names[:3]) or "nothing"
    return f"It holds {len(names)} tensors ({shown}, ...), which match no published naming."


def _any(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)
