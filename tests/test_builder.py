"""From a configuration to objects: what is made, once, and what is said where the configuration is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import SYSTEM, Colours, Strips

from twostage import build, networks, systems
from twostage.builder import Builder
from twostage.checkpoints import trained_names
from twostage.clip.model import ClipModel
from twostage.config import Config, ConfigError, load_config, parse_config
from twostage.data import catalog
from twostage.data.shapes.dataset import ShapesDataset
from twostage.engine.checkpoint import CheckpointError, write_weights
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.errors import TwostageError
from twostage.evaluation.expected import UnexpectedResultError
from twostage.evaluation.runner import ORACLE_CLASSES, ORACLE_MASKS
from twostage.maskformer.criterion import Criterion, LossConfig
from twostage.networks import Trained, shipped
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.runs import proposals
from twostage.segmenter import Segmenter
from twostage.tasks.proposals import ProposalTask
from twostage.vocabulary import Vocabulary

NETWORK = """
MODEL:
  MASK_FORMER: {BACKBONE: small, SMALL_WIDTHS: [8, 8, 16, 16], PIXEL_DIM: 16, MASK_DIM: 16, HIDDEN_DIM: 16,
    NUM_QUERIES: 5, DECODER_LAYERS: 1, NUM_HEADS: 2, FEEDFORWARD_DIM: 32, CLASS_HIDDEN_DIM: 16}
PROPOSALS: {NAME: maskformer}
"""
PETS = Vocabulary.from_words("cat|kitty, dog")


def config(tmp_path: Path, more: str = "", *overrides: str) -> Config:
    (tmp_path / "base.yaml").write_text(SYSTEM)
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\n" + more)
    return load_config(tmp_path / "own.yaml", list(overrides))


def test_parts_are_made_from_their_names(tmp_path: Path) -> None:
    made = Builder(config(tmp_path, "CLASSIFIER: {OPTIONS: {FACTOR: 3.0}}")).segmenter()
    assert type(made.proposals).__name__ == "Strips"
    classifier: Any = made.classifier
    assert classifier.config.factor == 3.0
    assert made.dense is None
    assert isinstance(made.ensemble, GeometricEnsemble)
    assert made.size.min_size == 0
    assert made.device == torch.device("cpu")


def test_a_component_gets_what_its_constructor_names(tmp_path: Path) -> None:
    maker = Builder(config(tmp_path))
    given: Any = maker.component("classifiers", maker.config.classifier)
    assert given.clip is maker.clip
    assert given.device == torch.device("cpu")
    assert given.note == "default", "what nobody offers keeps its default"


def test_clip_is_made_once_and_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = ClipModel.load
    monkeypatch.setattr(
        ClipModel, "load", lambda *given, **named: calls.append(given) or real(*given, **named)
    )
    maker = Builder(config(tmp_path, "CLASSIFIER: {NAME: ''}"))
    maker.segmenter()
    assert calls == []
    words = maker.words(PETS)
    maker.words(Vocabulary.from_words("boat"))
    assert calls == [("twostage-mini-rn", "random")]
    assert words.text.logit_scale == 100
    assert words.text.features.shape == (3, 128)
    assert words.vocabulary is PETS


def test_the_models_own_scale(tmp_path: Path) -> None:
    maker = Builder(config(tmp_path, "CLIP: {LOGIT_SCALE: null}"))
    assert maker.text(PETS).logit_scale == pytest.approx(maker.clip.logit_scale)


def test_one_template_as_it_stands(tmp_path: Path) -> None:
    assert Builder(config(tmp_path, "CLIP: {TEMPLATES: 'my {}'}")).templates == ("my {}",)
    assert len(Builder(config(tmp_path, "CLIP: {TEMPLATES: vild}")).templates) == 14


def test_prompts_are_kept_below_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path / "kept"))
    made = Builder(config(tmp_path, "", "CLIP.CACHE_DIR=auto"))
    first = made.text(Vocabulary.from_words("grass, boat"))
    assert len(list((tmp_path / "kept" / "text").iterdir())) == 1
    assert made.text(Vocabulary.from_words("grass, boat")) is first
    again = Builder(made.config).text(Vocabulary.from_words("grass, boat"))
    assert torch.equal(again.features, first.features)


def test_text_features_from_a_file(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "text.npy", np.eye(2, 7, dtype=np.float32))
    more = f"CLIP: {{TEXT_FEATURES: {tmp_path / 'text.npy'}, LOGIT_SCALE: 3.0, MODEL: nobody}}"
    maker = Builder(config(tmp_path, more))
    bank = maker.text(Vocabulary.from_words("a, b"))
    assert torch.equal(bank.features, torch.eye(2, 7))
    assert bank.logit_scale == 3
    with pytest.raises(ConfigError, match=r"MODEL\.MASK_FORMER\.EMBEDDING_DIM has to say how wide"):
        _ = maker.embedding_dim
    assert Builder(config(tmp_path, more, "MODEL.MASK_FORMER.EMBEDDING_DIM=7")).embedding_dim == 7


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("PROPOSALS: {NAME: masformer}", r"unknown component 'masformer'\. Did you mean 'maskformer'"),
        ("PROPOSALS: {NAME: 'tiny_parts:Stripes'}", r"tiny_parts has no 'Stripes'\. Did you mean 'Strips'"),
        ("PROPOSALS: {NAME: 'tiny_part:Strips'}", "Cannot import 'tiny_part'"),
        ("PROPOSALS: {OPTIONS: {CUONT: 3}}", r"Strips: unknown option 'cuont'\. Did you mean 'count'"),
        (
            "PROPOSALS: {NAME: 'tiny_parts:Demanding'}",
            "asks for 'telescope'; a component may ask for clip, device",
        ),
        ("ENSEMBLE: {OPTIONS: {WEIGHT: 2.0}}", "weight must be at most 1, got 2.0"),
        ("ENSEMBLE: {OPTIONS: {WEIGHT: much}}", "GeometricEnsemble: an option has an unfit value"),
        ("PROPOSALS: {NAME: cached}", "the option 'path' has no default"),
        ("PROPOSALS: {NAME: ''}", r"A segmenter needs proposals, a dense head or a per-pixel network"),
        ("PROPOSALS: {NAME: maskformer}", r"MODEL\.WEIGHTS is empty"),
        ("DENSE: {NAME: readout}\nCLIP: {MODEL: ViT-B-61}", "CLIP: unknown model 'ViT-B-61'.*ViT-B-16"),
        ("DENSE: {NAME: readout}\nCLIP: {PRETRAINED: nowhere.pt}", r"nowhere\.pt does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_work_begins(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(TwostageError, match=message):
        Builder(config(tmp_path, more)).segmenter()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("NUM_QUERY=3", r"MODEL\.MASK_FORMER: unknown option NUM_QUERY\. Did you mean 'num_queries'"),
        ("MEMORY=multy", r"MODEL\.MASK_FORMER: .*got 'multy'\. Did you mean 'multi'"),
        ("NUM_HEADS=many", r"MODEL\.MASK_FORMER: "),
    ],
)
def test_options_of_the_network(tmp_path: Path, option: str, message: str) -> None:
    maker = Builder(config(tmp_path, NETWORK, f"MODEL.MASK_FORMER.{option}"))
    with pytest.raises(ConfigError, match=message):
        maker.network()


@pytest.mark.parametrize("losses", [{"dise": 2.0}, {"mask_kind": "bse"}])
def test_options_of_the_losses(losses: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.LOSSES: .*Did you mean 'dice'|MODEL\.LOSSES: .*'bse'"):
        proposals._losses(parse_config(f"MODEL: {{LOSSES: {losses}}}"))


def weights(tmp_path: Path, folder: Path, name: str = "mine", **metadata: Any) -> Path:
    """A checkpoint of the small network with fresh weights."""
    network = Builder(config(tmp_path, NETWORK)).network()
    folder.mkdir(exist_ok=True)
    write_weights(folder / f"{name}.safetensors", network.state_dict(), metadata)
    return folder / f"{name}.safetensors"


def test_seed_decides_fresh_weights(tmp_path: Path) -> None:
    one, same, other = (
        Builder(config(tmp_path, NETWORK, f"SEED={seed}")).network().state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def stored(tmp_path: Path, vocabulary: Vocabulary) -> Any:
    """What the training task writes of its vocabulary."""
    maker = Builder(config(tmp_path, NETWORK))
    task = ProposalTask(
        maker.network(), Criterion(LossConfig()), maker.text(vocabulary), vocabulary, maker.config.solver
    )
    return task.state_dict()["vocabulary"]


def test_trained_stage_one_knows_what_it_saw(tmp_path: Path) -> None:
    trained = Vocabulary((("cat", "puss"), ("tree",)))
    path = weights(tmp_path, tmp_path / "w", vocabulary=stored(tmp_path, trained))
    maker = Builder(config(tmp_path, NETWORK, f"MODEL.WEIGHTS={path}"))
    proposals = maker.proposals()
    assert isinstance(proposals, MaskFormerProposals)
    assert proposals.network is maker.trained.network
    assert maker.trained.names == ("cat", "puss", "tree")
    assert maker.words(PETS).vocabulary.seen == (True, False)
    assert maker.words(Vocabulary(PETS.names, (False, True))).vocabulary.seen == (True, False)


def test_without_a_word_of_training_flags_stay(tmp_path: Path) -> None:
    path = weights(tmp_path, tmp_path / "w")
    maker = Builder(config(tmp_path, NETWORK, f"MODEL.WEIGHTS={path}"))
    assert maker.words(Vocabulary(PETS.names, (False, True))).vocabulary.seen == (False, True)
    assert trained_names({"model": {}}) == trained_names({"vocabulary": None}) == ()


def test_a_network_at_hand_needs_no_file(tmp_path: Path) -> None:
    settled = config(tmp_path, NETWORK)
    network = Builder(settled).network()
    maker = Builder(settled, Trained(network, ("dog",)))
    assert maker.proposals().network is network
    assert maker.words(PETS).vocabulary.seen == (False, True)


def test_a_network_that_is_mixed_with_others_says_what_was_seen_too(tmp_path: Path) -> None:
    settled = config(tmp_path, NETWORK)
    mixed = config(
        tmp_path, NETWORK, "PROPOSALS.NAME=mixed", "PROPOSALS.OPTIONS.SOURCES=[maskformer, {name: grid}]"
    )
    network = Builder(settled).network()
    maker = Builder(mixed, Trained(network, ("dog",)))
    first, second = maker.proposals().sources
    assert first.network is network
    assert type(second).__name__ == "GridProposals"
    assert maker.words(PETS).vocabulary.seen == (False, True)


def test_who_says_what_was_seen(tmp_path: Path) -> None:
    """The checkpoint by default, by name and what means the same; the data set with TEST.SEEN dataset."""
    words = Vocabulary((("sofa",), ("tvmonitor",), ("cow",)), (False, True, True))
    settled = config(tmp_path, NETWORK)
    trained = Trained(Builder(settled).network(), ("couch", "tv"))
    assert Builder(settled, trained).words(words).vocabulary.seen == (True, True, False)
    paper = Builder(config(tmp_path, NETWORK, "TEST.SEEN=dataset"), trained)
    assert paper.words(words).vocabulary.seen == (False, True, True)
    assert paper.words(PETS).vocabulary.seen is None, "without flags every class follows the unseen rule"


def test_stage_one_has_its_own_templates(tmp_path: Path) -> None:
    settled = config(tmp_path, "", "CLIP.TEMPLATES=a {}.", "CLIP.STAGE_ONE_TEMPLATES=a painting of a {}.")
    words = Builder(settled).words(PETS)
    alone = Builder(config(tmp_path, "", "CLIP.TEMPLATES=a painting of a {}.")).words(PETS)
    assert words.stage_one is not None
    assert alone.stage_one is None
    torch.testing.assert_close(words.stage_one.features, alone.text.features)
    assert not torch.allclose(words.stage_one.features, words.text.features)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = weights(tmp_path, tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors"):
        _ = Builder(
            config(tmp_path, NETWORK, f"MODEL.WEIGHTS={path}", "MODEL.MASK_FORMER.NUM_QUERIES=7")
        ).trained
    with pytest.raises(CheckpointError, match=r"There is no checkpoint nowhere\.pth"):
        _ = Builder(config(tmp_path, NETWORK, "MODEL.WEIGHTS=nowhere.pth")).trained


def test_weights_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(tmp_path, tmp_path / "w", "world")
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path / "w")
    assert shipped("package:world") == path
    assert shipped("some/file.pth") == "some/file.pth"
    assert Builder(config(tmp_path, NETWORK, "MODEL.WEIGHTS=package:world")).trained.names == ()
    with pytest.raises(
        ConfigError, match=r"no weights 'worlds' ship with the package\. Did you mean 'world'"
    ):
        shipped("package:worlds")


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TwostageError, match="torch finds no GPU"):
        Builder(config(tmp_path, "", "MODEL.DEVICE=cuda"))


def test_stage_one_alone(tmp_path: Path) -> None:
    assert type(build.build_proposals(config(tmp_path))).__name__ == "Strips"
    with pytest.raises(ConfigError, match=r"PROPOSALS\.NAME is empty"):
        build.build_proposals(config(tmp_path, "PROPOSALS: {NAME: ''}"))


def parts(*present: str, **options: Any) -> Segmenter:
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(**options))
    strips, named = Strips(Strips.Config()), MaskFormerProposals.tiny()
    return Segmenter(
        ensemble,
        proposals=named if "stage_one" in present else strips if "masks" in present else None,
        classifier=Colours(Colours.Config()) if "regions" in present else None,
        dense=Colours(Colours.Config()) if "dense" in present else None,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("present", "names"),
    [
        (("dense",), ["ensemble"]),
        (("masks", "regions"), [ORACLE_MASKS, "ensemble", ORACLE_CLASSES]),
        (("masks", "dense"), ["ensemble", ORACLE_CLASSES]),
        (
            ("masks", "regions", "dense"),
            ["CLIP crops", "dense", ORACLE_MASKS, "ensemble", ORACLE_CLASSES],
        ),
        (
            ("stage_one", "regions"),
            ["stage one", "CLIP crops", ORACLE_MASKS, "ensemble", ORACLE_CLASSES],
        ),
        (
            ("stage_one", "regions", "dense"),
            [
                "stage one",
                "CLIP crops",
                "dense",
                "stage one + crops",
                "crops + dense",
                ORACLE_MASKS,
                "ensemble",
                ORACLE_CLASSES,
            ],
        ),
    ],
)
def test_systems_are_those_that_the_parts_allow(present: tuple[str, ...], names: list[str]) -> None:
    """Masks without names (SAM, a cache) have no system of their own."""
    found = systems.systems(parts(*present), [])
    assert list(found) == names


def test_systems_by_choice() -> None:
    found = systems.systems(parts("stage_one", "regions", "dense"), ["ensemble", "dense"])
    assert list(found) == ["ensemble", "dense"]
    dense: Any = found["dense"]
    assert dense.config.use == ("dense",)
    with pytest.raises(
        ConfigError, match=r"TEST\.SYSTEMS: unknown or impossible system 'dens'\. Did you mean 'dense'"
    ):
        systems.systems(parts("stage_one", "regions", "dense"), ["dens"])


def test_systems_of_parts_keep_the_options_of_the_ensemble() -> None:
    found: Any = systems.systems(parts("stage_one", "regions", "dense", uncovered="dense", weight=0.3), [])
    assert found["ensemble"].config.uncovered == "dense"
    assert found["crops + dense"].config.uncovered == "dense"
    assert found["CLIP crops"].config.uncovered == "argmax", "there is no dense map to fall back on"
    assert {name: system.config.weight for name, system in found.items()} == dict.fromkeys(found, 0.3)
    void: Any = systems.systems(parts("stage_one", "regions", "dense", uncovered="void"), [])
    assert void["CLIP crops"].config.uncovered == "void"


class Single:
    """An ensemble without a choice of parts."""

    config = Strips.Config()

    def merge(self, evidence: Any, vocabulary: Any) -> Any:
        raise AssertionError("not asked here")


def test_an_ensemble_without_choice_is_measured_as_it_is() -> None:
    segmenter = Segmenter(Single(), Strips(Strips.Config()), Colours(Colours.Config()))
    assert list(systems.systems(segmenter, [])) == ["ensemble", ORACLE_CLASSES]


def test_an_evaluation_leaves_its_files(tmp_path: Path) -> None:
    settled = config(tmp_path, "DATASETS: {TEST: [shapes_val]}\nTEST: {MAX_IMAGES: 2, OVERLAYS: 1}")
    settled = load_config(tmp_path / "own.yaml", [f"OUTPUT_DIR={tmp_path / 'run'}"])
    outcomes = build.evaluate(settled)
    assert set(outcomes["shapes_val"].metrics) == {ORACLE_MASKS, "ensemble", ORACLE_CLASSES}
    out = tmp_path / "run" / "inference"
    assert (out / "results.json").is_file()
    assert [path.name for path in (out / "overlays").iterdir()] == ["val_000000.png"]


@pytest.mark.parametrize(("percent", "met"), [(99.9, False), (50.0, True)])
def test_expected_figures_are_checked_once_the_results_are_written(
    tmp_path: Path, percent: float, met: bool
) -> None:
    few = ShapesDataset("val", length=2)
    few.name = f"few_{met}"
    catalog.register(few.name, lambda root: few)
    rows = f"[[few_{met}, ensemble, pAcc, {percent}, {50 if met else 0}]]"
    where = [f"OUTPUT_DIR={tmp_path / 'run'}", f"DATASETS.TEST=[few_{met}]"]
    settled = config(tmp_path, "", *where, f"TEST.EXPECTED_RESULTS={rows}")
    if met:
        build.evaluate(settled)
    else:
        with pytest.raises(UnexpectedResultError, match=r"expected 99.9 \+- 0, got .*: NOT MET"):
            build.evaluate(settled)
    stored = json.loads((tmp_path / "run" / "inference" / "results.json").read_text())
    assert [row["met"] for row in stored["expected"]] == [met]


def test_expected_figures_are_not_asked_of_a_part_of_the_photos(tmp_path: Path) -> None:
    rows = "TEST.EXPECTED_RESULTS=[[shapes_val, ensemble, pAcc, 0.0, 0]]"
    words = [f"OUTPUT_DIR={tmp_path / 'run'}", "DATASETS.TEST=[shapes_val]", "TEST.MAX_IMAGES=1", rows]
    build.evaluate(config(tmp_path, "", *words))


@pytest.mark.parametrize(
    ("more", "resume", "message"),
    [
        ("", False, r"DATASETS\.TEST is empty"),
        (
            "DATASETS: {TEST: [shapes_tset]}",
            False,
            r"Unknown data set 'shapes_tset'\. Did you mean 'shapes_test'",
        ),
        ("DATASETS: {TEST: [shapes_test]}", True, "there is no checkpoint in"),
    ],
)
def test_evaluations_that_cannot_begin(tmp_path: Path, more: str, resume: bool, message: str) -> None:
    settled = config(tmp_path, more, f"OUTPUT_DIR={tmp_path / 'empty'}")
    with pytest.raises(TwostageError, match=message):
        build.evaluate(settled, resume)


def test_training_needs_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN is empty"):
        build.train(config(tmp_path, "DATASETS: {TRAIN: []}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("DENSE.NAME=readot", "Did you mean 'readout'"),
        ("TEST.SYSTEMS=[ensembel]", "Did you mean 'ensemble'"),
        ("TEST.EXPECTED_RESULTS=[[shapes_test, ensembel, hIoU, 70.0, 1.0]]", "Did you mean 'ensemble'"),
        ("DATASETS.TEST=[shapes_val, shapes_val]", "two data sets are called 'shapes_val'"),
    ],
)
def test_what_evaluation_would_refuse_is_refused_before_training(
    tmp_path: Path, override: str, message: str
) -> None:
    path = Path(__file__).resolve().parent.parent / "configs" / "shapes" / "zero_shot.yaml"
    settled = load_config(path, [override, "SOLVER.MAX_ITER=1", f"OUTPUT_DIR={tmp_path / 'out'}"])
    with pytest.raises(TwostageError, match=message):
        build.train(settled)
    assert not (tmp_path / "out").exists()
