"""Every published dense reading by its name.

Block numbers are those of ViT-B/16's twelve blocks, counted from 0; `twostage.readout.engine.fitted` moves
them for other depths. Figures are the published mIoU with OpenAI's ViT-B/16, each under the protocol of its
own paper, so that they compare only roughly; none of them was measured here.
"""

from __future__ import annotations

from twostage.errors import TwostageError
from twostage.readout.methods import (
    cliptrase,
    corrclip,
    gclip,
    guests,
    itaclip,
    maskclip,
    plain,
    resclip,
    scclip,
    surgery,
    tagclip,
)
from twostage.readout.preset import Preset
from twostage.vocabulary import nearest

FAMILIES = (plain, maskclip, surgery, gclip, resclip, scclip, cliptrase, itaclip, tagclip, guests, corrclip)
PRESETS: dict[str, Preset] = {preset.name: preset for family in FAMILIES for preset in family.PRESETS}
"""Every preset by name, in the order of `twostage dense list`."""


def find(name: str) -> Preset:
    """The preset of this name.

    Raises:
        TwostageError: there is none, with the nearest name.
    """
    if name not in PRESETS:
        raise TwostageError(f"Dense readout: unknown preset {name!r}.{nearest(name, PRESETS)}")
    return PRESETS[name]
