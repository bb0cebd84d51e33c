"""Configuration: files with bases, overrides, errors that help, and text that reads back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from twostage.config import Config, ConfigError, diff_configs, dump_config, load_config, parse_config

ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_base_file_shows_every_default() -> None:
    text = (ROOT / "configs" / "Base.yaml").read_text(encoding="utf-8")
    assert parse_config(text) == Config()
    assert text.endswith(dump_config(Config(), comments=True)), (
        "run dump_config(Config(), comments=True) again"
    )


def test_paper_defaults() -> None:
    config = Config()
    solver, given = config.solver, config.input
    assert (solver.ims_per_batch, solver.max_iter, solver.base_lr, solver.weight_decay) == (
        32,
        60000,
        1e-4,
        1e-4,
    )
    assert (solver.weight_decay_norm, solver.weight_decay_embed, solver.backbone_multiplier) == (0, 0, 0.1)
    assert (solver.poly_power, solver.warmup_iters, solver.clip_gradients) == (0.9, 0, 0.01)
    assert (solver.checkpoint_period, config.test.eval_period, solver.amp) == (5000, 5000, "off")
    assert given.min_size_train == list(range(320, 961, 64))
    assert (given.max_size_train, given.min_size_test, given.max_size_test, given.crop_size) == (
        2560,
        640,
        2560,
        640,
    )


def undocumented(section: Any, path: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            found += ([] if value.__doc__ else [f"{path}{field.name}"]) + undocumented(
                value, f"{path}{field.name}."
            )
        elif not field.metadata.get("doc"):
            found.append(f"{path}{field.name}")
    return found


def test_every_option_is_documented() -> None:
    assert undocumented(Config()) == []


def test_sections_within_sections(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("TEST: {AUG: {ENABLED: true, MIN_SIZES: [32]}}")
    config = load_config(tmp_path / "a.yaml", ["TEST.AUG.FLIP", "false"])
    assert (config.test.aug.enabled, config.test.aug.min_sizes, config.test.aug.flip) == (True, [32], False)
    assert parse_config(dump_config(config)) == config
    with pytest.raises(ConfigError, match=r"TEST\.AUG\.MIN_SIZE.*MIN_SIZES"):
        load_config(None, ["TEST.AUG.MIN_SIZE", "1"])


@pytest.mark.parametrize("rows", ["ROWS: [{NAME: one}]", "SWEEP: {KEY: SEED, VALUES: [1]}"])
def test_an_ablation_table_says_how_it_is_run(tmp_path: Path, rows: str) -> None:
    (tmp_path / "table.yaml").write_text(f"TITLE: masks\n{rows}\n")
    with pytest.raises(ConfigError, match=r"table\.yaml is an ablation table.*`twostage ablation "):
        load_config(tmp_path / "table.yaml")


def test_rows_of_expected_results() -> None:
    config = load_config(None, ["TEST.EXPECTED_RESULTS", "[[voc_val, ensemble, hIoU, 77.5, 1.0]]"])
    assert config.test.expected_results == [["voc_val", "ensemble", "hIoU", 77.5, 1.0]]
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    "words",
    [
        ["SOLVER.BASE_LR", "1e-3", "SOLVER.AMP", "off", "INPUT.MIN_SIZE_TRAIN", "(128, 160)", "SEED", "3"],
        ["solver.base_lr=1e-3", "solver.amp=off", "input.min_size_train=[128, 160]", "seed=3"],
        ["Solver.Base_Lr=0.001", "SOLVER.AMP=off", "INPUT.MIN_SIZE_TRAIN", "[128,160]", "SEED=3"],
    ],
)
def test_both_spellings_in_either_case(words: list[str]) -> None:
    config = load_config(None, words)
    assert (config.solver.base_lr, config.solver.amp, config.seed) == (1e-3, "off", 3)
    assert config.input.min_size_train == [128, 160]


def test_values_of_many_kinds() -> None:
    config = load_config(
        None,
        [
            "CLIP.TEMPLATES",
            "a photo of a {}, at night.",
            "CLIP.LOGIT_SCALE=null",
            "DATASETS.TRAIN",
            "shapes_train",
            "PROPOSALS.OPTIONS.Min_Score",
            "0.5",
            "MODEL.MASK_FORMER={hidden_dim: 64}",
            "OUTPUT_DIR=2020-01-01",
            "DATASETS.ROOT",
            "a=b",
            "INPUT.COLOR_JITTER",
            "false",
        ],
    )
    assert config.clip.templates == "a photo of a {}, at night."
    assert config.clip.logit_scale is None
    assert config.datasets.train == ["shapes_train"], "one value stands for a list of one"
    assert config.proposals.options == {"min_score": 0.5}
    assert config.model.mask_former == {"hidden_dim": 64}
    assert (config.output_dir, config.datasets.root, config.input.color_jitter) == (
        "2020-01-01",
        "a=b",
        False,
    )


def test_base_files_stack_and_overrides_win(tmp_path: Path) -> None:
    write(
        tmp_path,
        "base.yaml",
        "SOLVER: {BASE_LR: 1e-3, MAX_ITER: 10}\nMODEL: {MASK_FORMER: {hidden_dim: 64}}\n",
    )
    write(tmp_path, "a/mid.yaml", "_BASE_: ../base.yaml\nsolver: {max_iter: 20}\nSEED: 1\n")
    top = write(
        tmp_path, "a/b/top.yaml", "_BASE_: ../mid.yaml\nMODEL: {MASK_FORMER: {num_queries: 5}}\nSEED: 2\n"
    )
    config = load_config(top, ["SEED", "3"])
    assert (config.solver.base_lr, config.solver.max_iter, config.seed) == (1e-3, 20, 3)
    assert config.model.mask_former == {"hidden_dim": 64, "num_queries": 5}


def test_another_component_does_not_inherit_options(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "CLASSIFIER: {NAME: crops, OPTIONS: {chunk: 8}}\n")
    same = write(
        tmp_path, "same.yaml", "_BASE_: base.yaml\nCLASSIFIER: {NAME: crops, OPTIONS: {expand: 2}}\n"
    )
    other = write(tmp_path, "other.yaml", "_BASE_: base.yaml\nCLASSIFIER: {NAME: pooled}\n")
    assert load_config(same).classifier.options == {"chunk": 8, "expand": 2}
    assert load_config(other).classifier.options == {}


def test_dump_reads_back_equal() -> None:
    config = load_config(
        None,
        [
            "CLIP.TEMPLATES",
            "off",
            "CLIP.PRETRAINED",
            "'1e5x: {}'",
            "OUTPUT_DIR",
            "'1e-5'",
            "SOLVER.BASE_LR",
            "1e-7",
            "PROPOSALS.OPTIONS={a: [1, {b: 'null'}], c: 'yes: no'}",
            "CLIP.LOGIT_SCALE=null",
            "DATASETS.ROOT=''",
        ],
    )
    assert config.output_dir == "1e-5"
    for comments in (False, True):
        assert parse_config(dump_config(config, comments)) == config


def test_diff() -> None:
    first, second = load_config(None, ["PROPOSALS.OPTIONS.A=1"]), load_config(None, ["SEED=4"])
    assert diff_configs(first, first) == []
    assert diff_configs(first, second) == [
        "SEED: 0 -> 4",
        "PROPOSALS.OPTIONS.A: 1 -> (absent)",
        "PROPOSALS.OPTIONS: (absent) -> {}",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["SOLVER.BASE_LER", "1"], "unknown option SOLVER.BASE_LER. Did you mean 'SOLVER.BASE_LR'?"),
        (["BASE_LR", "1"], "Did you mean 'SOLVER.BASE_LR'?"),
        (["SOLVR.MAX_ITER", "1"], "unknown option SOLVR. Did you mean 'SOLVER'?"),
        (["DENSE.OPTION.A", "1"], "Did you mean 'DENSE.OPTIONS'?"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER: expected int; Value 'many' of type 'str'"),
        (["SEED=true"], "SEED: expected int; Value 'True' of type 'bool'"),
        (["SOLVER.BASE_LR=null"], "SOLVER.BASE_LR: expected float"),
        (["OUTPUT_DIR=[1]"], "OUTPUT_DIR: expected str"),
        (["CLIP.LOGIT_SCALE=big"], "CLIP.LOGIT_SCALE: expected float | None"),
        (["INPUT.MIN_SIZE_TRAIN=[1, b]"], "INPUT.MIN_SIZE_TRAIN[1]: expected list[int]"),
        (["DATASETS.TRAIN=[[1]]"], "DATASETS.TRAIN: expected a plain list"),
        (["DATASETS.TRAIN={a: 1}"], "DATASETS.TRAIN: expected a list, got {'a': 1}"),
        (["PROPOSALS.OPTIONS=1"], "PROPOSALS.OPTIONS: expected options below it, got 1"),
        (["SOLVER", "3"], "SOLVER is a section; expected options below it, got 3"),
        (["SEED=1", "SEED.X=1"], "SEED.X: SEED was given a value already"),
        (["SOLVER.AMP", "bf61"], "expected one of off, auto, bf16, fp16. Did you mean 'bf16'?"),
        (["SEED=-1"], "SEED is -1; expected 0 or more"),
        (["SOLVER.BASE_LR=0"], "SOLVER.BASE_LR is 0.0; expected more than 0"),
        (["SOLVER.BASE_LR=.nan"], "SOLVER.BASE_LR is nan; expected more than 0"),
        (["INPUT.FLIP=1.5"], "INPUT.FLIP is 1.5; expected 1 or less"),
        (["INPUT.MIN_SIZE_TRAIN=[64, 0]"], "INPUT.MIN_SIZE_TRAIN is 0; expected 1 or more"),
        (["VERSION=2"], "VERSION is 2; expected 1 or less"),
        (["SEED"], "SEED has no value"),
        (["--eval"], "'--eval' is no option; write `SECTION.KEY VALUE` or `SECTION.KEY=VALUE`"),
        (["OUTPUT_DIR=${oc.env:HOME}"], "OUTPUT_DIR: `${...}` is not supported"),
        (["SEED=!!python/name:os.system 1"], "SEED: the tag '!!python/name:os.system' is not allowed"),
        (["DATASETS.TRAIN=[a, b"], "DATASETS.TRAIN: cannot read '[a, b': close every bracket"),
    ],
)
def test_wrong_overrides_say_what_to_do(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert told in str(caught.value)
    assert str(caught.value).startswith("command line: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "SOLVER: {BASE_LER: 1}\n",
            "run.yaml: unknown option SOLVER.BASE_LER. Did you mean 'SOLVER.BASE_LR'?",
        ),
        ("SOLVER:\n  MAX_ITER: x\n", "run.yaml: SOLVER.MAX_ITER: expected int"),
        ("SEED: 1\nSEED: 2\n", "run.yaml: not valid YAML: SEED occurs twice"),
        ("SEED: 1\nseed: 2\n", "seed occurs twice"),
        ("SEED: [1\n", "run.yaml: not valid YAML"),
        ("- SEED\n", "run.yaml: expected sections such as `SOLVER:`, got list"),
        ("_BASE_: [a, b]\n", "run.yaml: _BASE_ is ['a', 'b']; expected the name of one file"),
        ("_BASE_: gone.yaml\n", "gone.yaml, the _BASE_ of "),
        ("SEED: 0\nOUTPUT_DIR: !!python/object/apply:os.getcwd []\n", "run.yaml, line 2: the tag "),
        ("OUTPUT_DIR: !local x\n", "run.yaml, line 1: the tag '!local' is not allowed"),
        ("OUTPUT_DIR: !!str x\n", "the tag "),
    ],
)
def test_wrong_files_say_where(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, "run.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert told in str(caught.value)


def test_an_error_in_a_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "SEDE: 1\n")
    top = write(tmp_path, "top.yaml", "_BASE_: base.yaml\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: unknown option SEDE. Did you mean 'SEED'"):
        load_config(top)


def test_bases_in_a_circle(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", "_BASE_: b.yaml\n")
    write(tmp_path, "b.yaml", "_BASE_: ./a.yaml\n")
    with pytest.raises(ConfigError, match=r"goes in a circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_config(first)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read the configuration file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match="expected sections"):
        parse_config("3", "stored")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "empty.yaml", "# nothing\n")) == Config()
