"""Which part of a configuration goes into files: stage one where it is a MaskFormer, CLIP's image tower where
crops are classified.
"""

from __future__ import annotations

import dataclasses

from twostage.config import Config, SlotConfig
from twostage.export.manifest import ExportError
from twostage.protocol import settled

MASKFORMER, CROPS = "maskformer", "crops"


def exportable(config: Config) -> tuple[Config, list[str]]:
    """The configuration that an exported folder can run, and what was changed for it, in words.

    Raises:
        ExportError: too little would be left, or the classifier is none that files can replace.
    """
    config, notes = settled(config), list[str]()
    if config.classifier.name not in ("", CROPS):
        raise ExportError(
            f"CLASSIFIER.NAME is {config.classifier.name!r}: an export covers crops only. Set "
            f"CLASSIFIER.NAME {CROPS}, or leave it empty."
        )
    if config.proposals.name != MASKFORMER and config.classifier.name != CROPS:
        raise ExportError(
            "There is nothing to export: an export covers PROPOSALS.NAME maskformer and CLASSIFIER.NAME "
            "crops."
        )
    if not config.proposals.name:
        raise ExportError("PROPOSALS.NAME is empty: without masks there are no crops to name.")
    if config.proposals.name != MASKFORMER:
        notes.append(
            f"PROPOSALS.NAME {config.proposals.name} is not exported: it runs as it is, with its own weights."
        )
    if config.classifier.options.get("skip_filled"):
        notes.append("CLASSIFIER.OPTIONS.SKIP_FILLED is off: the exported image tower sees every patch.")
    for slot in ("dense", "pixels"):
        name = getattr(config, slot).name
        if name:
            notes.append(
                f"{slot.upper()}.NAME {name} is left out, so labels differ from those of the whole system: "
                "an export covers stage one and crops."
            )
    return _reduced(config), notes


def _reduced(config: Config) -> Config:
    """The same without dense heads, what the ensemble does with them, and tokens left out of CLIP."""
    ensemble, nothing = config.ensemble, SlotConfig(name="")
    crops = {name: value for name, value in config.classifier.options.items() if name != "skip_filled"}
    options = dict(ensemble.options)
    if options.get("uncovered") == "dense":
        options["uncovered"] = "argmax"
    if "use" in options:
        kept = [part for part in options["use"] if part not in ("dense", "pixels")]
        options["use"] = kept or ["all"]
    return dataclasses.replace(
        config,
        classifier=dataclasses.replace(config.classifier, options=crops),
        dense=nothing,
        pixels=nothing,
        ensemble=dataclasses.replace(ensemble, options=options),
        test=dataclasses.replace(config.test, protocol=""),
    )


def in_fp32(config: Config) -> Config:
    """The same in single precision, which is what the files hold."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="fp32"),
        clip=dataclasses.replace(config.clip, dtype="fp32"),
    )
