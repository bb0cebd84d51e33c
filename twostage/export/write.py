"""A configuration's networks -> a folder of ONNX files, words and a manifest; complete or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twostage.builder import Builder
from twostage.config import Config, dump_config
from twostage.data.shapes.classes import vocabulary as drawn_words
from twostage.download import digest_of
from twostage.evaluation.provenance import versions
from twostage.export import check, runtime
from twostage.export.graphs import (
    ClipImageGraph,
    StageOneGraph,
    TextStageOneGraph,
    stage_one_graph,
    write_clip_image,
    write_stage_one,
)
from twostage.export.manifest import (
    CLIP_IMAGE,
    MANIFEST,
    STAGE_ONE,
    WORDS,
    ClipImageFacts,
    ExportError,
    Manifest,
    StageOneFacts,
    WordsFacts,
    write_manifest,
)
from twostage.export.parts import CROPS, MASKFORMER, exportable, in_fp32
from twostage.export.words import stored, write_words
from twostage.segmenter import Words
from twostage.vocabulary import Vocabulary

Say = Callable[[str], None]


def export(
    config: Config,
    out: str | Path,
    *,
    classes: Vocabulary | None = None,
    opset: int | None = None,
    checked: bool = True,
    say: Say = lambda line: None,
) -> Manifest:
    """Write the folder `out`; what lay there before stays until the new files are complete and checked.

    classes: words whose text features travel along; opset: ONNX operator set, None leaves it to torch;
    checked: compare with torch, and write nothing where they differ; say: called with what is worth telling.

    Raises:
        ExportError: packages are missing, a part cannot be exported, or the files differ from torch.
        OSError: the folder cannot be written.
    """
    runtime.require_packages(runtime.TO_EXPORT)
    config, notes = exportable(config)
    for note in notes:
        say(f"Note: {note}")
    builder = Builder(
        in_fp32(dataclasses.replace(config, model=dataclasses.replace(config.model, device="cpu")))
    )
    out, there = Path(out), Path(out).exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as place:
            made = _Export(builder, Path(place), opset)
            manifest = made.manifest(config, classes)
            if checked:
                findings = made.findings(manifest, classes)
                for finding in findings:
                    say(str(finding))
                if not all(finding.good for finding in findings):
                    raise ExportError("The exported files differ from torch; nothing was written.")
                found = {finding.what: finding.value for finding in findings}
                manifest = dataclasses.replace(manifest, check=found)
            write_manifest(Path(place), manifest)
            _move(Path(place), out, manifest)
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise
    return manifest


def _move(place: Path, out: Path, manifest: Manifest) -> None:
    """The new files over the old ones, the manifest last; a half-moved folder has digests that disagree."""
    for name in manifest.files:
        (place / name).replace(out / name)
    (place / MANIFEST).replace(out / MANIFEST)
    for name in (STAGE_ONE, CLIP_IMAGE, WORDS, f"{STAGE_ONE}.data", f"{CLIP_IMAGE}.data"):
        if name not in manifest.files:
            (out / name).unlink(missing_ok=True)


class _Export:
    """The files of one export, made in `place`."""

    def __init__(self, builder: Builder, place: Path, opset: int | None) -> None:
        self.builder, self.place = builder, place
        config, self.opset = builder.config, 0
        self.stage_one: StageOneGraph | None = None
        self.clip_image: ClipImageGraph | None = None
        if config.proposals.name == MASKFORMER:
            proposals: Any = builder.proposals()
            self.stage_one = stage_one_graph(proposals.network, proposals.names_masks)
            self.opset = write_stage_one(self.stage_one, place / STAGE_ONE, opset)
        self.edge = (0, 0)
        if config.classifier.name == CROPS:
            classifier = builder.component("classifiers", config.classifier)
            edge = classifier.config.image_size
            self.edge = (edge, edge) if edge else builder.clip.image_size
            self.clip_image = ClipImageGraph(builder.clip.visual)
            self.opset = write_clip_image(builder.clip.visual, self.edge, place / CLIP_IMAGE, opset)

    def manifest(self, config: Config, classes: Vocabulary | None) -> Manifest:
        """Everything but the check; the words are written on the way. config: what will run."""
        words = None if classes is None else self.builder.words(classes)
        if words is not None:
            write_words(self.place / WORDS, stored(words))
        facts = {
            name: runtime.describe(self.place / name) for name in (STAGE_ONE, CLIP_IMAGE) if self._has(name)
        }
        wrote = {name: version(name) for name in runtime.TO_EXPORT}
        return Manifest(
            config=dump_config(config),
            opset=self.opset,
            trained_names=self.builder.trained.names if self.stage_one else (),
            stage_one=self._stage_one_facts(),
            clip_image=self._clip_facts(),
            words=_words_facts(words),
            inputs={name: found.inputs for name, found in facts.items()},
            outputs={name: found.outputs for name, found in facts.items()},
            files={path.name: digest_of(path) for path in sorted(self.place.iterdir())},
            versions={**versions(), **wrote},
        )

    def _has(self, name: str) -> bool:
        return (self.place / name).is_file()

    def _stage_one_facts(self) -> StageOneFacts | None:
        graph = self.stage_one
        if graph is None:
            return None
        c = graph.network.config
        text = isinstance(graph, TextStageOneGraph)
        red, green, blue = c.mean
        return StageOneFacts(
            says="text" if text else "linear" if "classes" in graph.outputs else "masks",
            mean=(red, green, blue),
            std=(c.std[0], c.std[1], c.std[2]),
            size_divisibility=c.size_divisibility,
            embedding_dim=c.embedding_dim,
            num_queries=c.num_queries,
            logit_scale=c.logit_scale,
        )

    def _clip_facts(self) -> ClipImageFacts | None:
        if self.clip_image is None:
            return None
        clip = self.builder.clip
        return ClipImageFacts(self.edge, clip.mean, clip.std, clip.dim, clip.name, clip.digest)

    def findings(self, manifest: Manifest, classes: Vocabulary | None) -> list[check.Finding]:
        """All comparisons that this configuration allows."""
        found: list[check.Finding] = []
        if self.stage_one is not None:
            found += check.compare_stage_one(self.stage_one, self.place, manifest)
        if self.clip_image is not None:
            found += check.compare_clip_image(self.clip_image, self.place, manifest)
        if classes is not None or not self.builder.config.clip.text_features:
            words = drawn_words() if classes is None else classes
            found.append(check.compare_labels(self.builder, self.place, manifest, words))
        return found


def _words_facts(words: Words | None) -> WordsFacts | None:
    return None if words is None else WordsFacts(words.vocabulary.names, words.text.logit_scale)
