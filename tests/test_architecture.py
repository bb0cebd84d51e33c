"""The table of who may import whom, as data, and the few habits that a parser can watch over."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "twostage"

LAYERS: dict[str, tuple[str, ...]] = {
    "words": ("errors", "types", "vocabulary"),
    "contracts": ("interfaces", "config", "registry", "ops", "weights", "download", "progress"),
    "parts": (
        "clip",
        "maskformer",
        "perpixel",
        "clsclip",
        "readout",
        "data",
        "visualize",
        "published",
        "evaluation.confusion",
        "evaluation.metrics",
        "evaluation.binary",
        "evaluation.recall",
        "evaluation.tally",
        "evaluation.top_k",
        "evaluation.report",
        "evaluation.provenance",
        "evaluation.expected",
    ),
    "engine": ("engine",),
    "components": ("proposals", "classifiers", "dense", "ensembles"),
    "flow": (
        "segmenter",
        "skipping",
        "views",
        "test_time",
        "systems",
        "tasks",
        "evaluation.runner",
        "evaluation.regions",
        "evaluation.pairs",
    ),
    "composition": (
        "networks",
        "protocol",
        "builder",
        "network_builder",
        "build",
        "checkpoints",
        "conversion",
        "wording",
        "runs",
        "predict",
        "zoo",
        "integrations",
        "export",
    ),
    "programs": ("cli",),
}
"""Layer -> the modules and packages in it. A package counts with all that is below it."""

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "words": ("words",),
    "contracts": ("words", "contracts"),
    "parts": ("words", "contracts", "parts"),
    "engine": ("words", "contracts", "engine"),
    "components": ("words", "contracts", "parts", "components"),
    "flow": ("words", "contracts", "parts", "engine", "flow"),
    "composition": ("words", "contracts", "parts", "engine", "components", "flow", "composition"),
    "programs": ("words", "contracts", "parts", "engine", "composition", "programs"),
}

COMPONENT_FRIENDS = {"classifiers": {"dense"}}
"""Kinds of components that may use another kind; all others stand alone."""

PARTS_KNOW = {
    "clip": set(),
    "maskformer": set(),
    "perpixel": {"maskformer"},
    "clsclip": {"clip", "readout"},
    "readout": {"clip"},
    "published": {"data", "maskformer"},
    "data": set(),
    "visualize": {"data"},
    "evaluation": {"data", "evaluation"},
}
"""Which other parts a part may lean on: reading of files, errors of labels, building blocks of a network."""

ONLY_DOOR = {
    "open_clip": ("clip/model.py",),
    "segment_anything": ("proposals/sam.py",),
    "detectron2": ("integrations/", "proposals/detectron2.py"),
    "timm": ("maskformer/timm_backbone.py", "readout/timm_guest.py"),
    "skimage": ("proposals/selective_search.py", "proposals/contours.py", "proposals/superpixels.py"),
    "transformers": ("proposals/_hf_models.py",),
    "omegaconf": ("config/",),
    "yaml": ("config/",),
    "tensorboard": ("engine/",),
    "argparse": ("cli/",),
    "onnx": ("export/runtime.py",),
    "onnxruntime": ("export/runtime.py",),
}
"""Package -> the only places (a file, or a folder with a slash) that may import it."""

CALLS_THAT_RUN_CODE = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads"}
MACHINE_PATH = re.compile(r"(?<![\w./:<*-])/(?:home|root|work|opt|mnt|Users|data\d|scratch)/[\w.-]+")


@dataclass(frozen=True)
class Import:
    """One name that a file imports. line: counted from 1."""

    line: int
    target: str


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path, package: Path = PACKAGE) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.Module) -> Iterator[Import]:
    """Every import, those inside functions too; `from twostage import x` counts as twostage.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            target = node.args[0]
            if isinstance(target, ast.Constant):
                yield Import(node.lineno, str(target.value))


def layer_of(module: str) -> str | None:
    """The layer of `twostage.x.y`; None for the package's own front, twostage/__init__.py."""
    inner = module.removeprefix("twostage").lstrip(".")
    for layer, members in LAYERS.items():
        if any(inner == member or inner.startswith(f"{member}.") for member in members):
            return layer
    return None


def problems(module: str, tree: ast.Module) -> list[str]:
    """The imports of a module that the table does not allow, in words."""
    own = layer_of(module)
    found = []
    for one in imports_of(tree):
        if one.target.split(".")[0] != "twostage" or one.target in ("twostage", "twostage.__version__"):
            continue
        other = layer_of(one.target)
        where = f"{module}, line {one.line}: imports {one.target}"
        if other is None:
            found.append(
                f"{where}, which has no place in LAYERS: add it to the table in {Path(__file__).name}."
            )
        elif own is not None and other not in MAY_IMPORT[own]:
            found.append(
                f"{where}, but {own} may import {', '.join(MAY_IMPORT[own])} only, and that is {other}: move "
                "the code down, or hand the object over as an argument."
            )
        elif own == other and own in ("components", "parts") and not _neighbours(module, one.target, own):
            found.append(f"{where}: {own} stand alone; move what both need into ops/ or a part below.")
    return found


def _neighbours(module: str, target: str, layer: str) -> bool:
    mine, theirs = module.split(".")[1], target.split(".")[1]
    friends = COMPONENT_FRIENDS.get(mine, set()) if layer == "components" else PARTS_KNOW[mine]
    return mine == theirs or theirs in friends


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    found = problems(module_of(path), tree_of(path))
    assert not found, "\n".join(found)


def test_every_module_has_a_layer() -> None:
    homeless = []
    for path in source_files():
        module = module_of(path)
        bare_package = path.name == "__init__.py" and not any(imports_of(tree_of(path)))
        if layer_of(module) is None and module != "twostage" and not bare_package:
            homeless.append(module)
    assert not homeless, f"{homeless}: add them to LAYERS in {Path(__file__).name}."


@pytest.mark.parametrize(
    ("module", "code", "word"),
    [
        ("twostage.ops.masks", "from twostage.clip.model import ClipModel", "contracts may import words"),
        ("twostage.engine.trainer", "def f():\n    from twostage import maskformer", "line 2"),
        ("twostage.segmenter", "from twostage.proposals.sam import SamProposals", "that is components"),
        ("twostage.proposals.mine", "import twostage.dense.readout", "components stand alone"),
        ("twostage.clip.model", "from twostage.data import catalog", "parts stand alone"),
        ("twostage.evaluation.metrics", "from twostage.evaluation.runner import evaluate", "that is flow"),
        ("twostage.types", "import importlib\nimportlib.import_module('twostage.ops.masks')", "line 2"),
        ("twostage.cli.segment", "from twostage.nowhere import x", "no place in LAYERS"),
    ],
)
def test_the_watchman_sees(module: str, code: str, word: str) -> None:
    assert word in "\n".join(problems(module, ast.parse(code)))


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("twostage.classifiers.pooled", "from twostage.dense.readout import ReadoutDense"),
        ("twostage.visualize.files", "from twostage.data.image_io import write_label_png"),
        ("twostage.build", "from twostage.proposals.maskformer import MaskFormerProposals"),
    ],
)
def test_the_watchman_lets_pass(module: str, code: str) -> None:
    assert problems(module, ast.parse(code)) == []


@pytest.mark.parametrize("package", ONLY_DOOR)
def test_one_door_to_other_packages(package: str) -> None:
    doors = ONLY_DOOR[package]
    strays = [
        f"{path.relative_to(ROOT)}, line {one.line}"
        for path in source_files()
        if not any(_is_behind(path.relative_to(PACKAGE).as_posix(), door) for door in doors)
        for one in imports_of(tree_of(path))
        if one.target.split(".")[0] == package
    ]
    assert not strays, f"{package} is imported in {strays}; only twostage/{', twostage/'.join(doors)} may."


def _is_behind(path: str, door: str) -> bool:
    return path.startswith(door) if door.endswith("/") else path == door


def test_programs_outside_the_package_stay_thin() -> None:
    """train_net.py parses and launches; what it needs of the package is composed there."""
    allowed = {"programs", "composition", "engine", "contracts", "words"}
    for one in imports_of(tree_of(ROOT / "train_net.py")):
        if one.target.startswith("twostage."):
            assert layer_of(one.target) in allowed, (
                f"train_net.py, line {one.line}: {one.target} belongs in build."
            )


def test_import_is_light() -> None:
    """No torch, no data file, no optional package; `twostage.load` is there when asked for."""
    script = (
        "import builtins, io, sys\n"
        "opened = []\n"
        "def note(event, args):\n"
        "    if event == 'open' and isinstance(args[0], str): opened.append(args[0])\n"
        "sys.addaudithook(note)\n"
        "import twostage\n"
        "heavy = sorted({'torch', 'numpy', 'cv2', 'open_clip', 'omegaconf', 'yaml'} & set(sys.modules))\n"
        "assert not heavy, heavy\n"
        "data = [name for name in opened if 'twostage' in name and not name.endswith(('.py', '.pyc'))\n"
        "        and '__pycache__' not in name and 'site-packages' not in name]\n"
        "assert not data, data\n"
        "assert twostage.__version__\n"
        "try:\n    twostage.lode\n"
        "except AttributeError as error:\n    assert 'lode' in str(error)\n"
        "else:\n    raise SystemExit('no AttributeError')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ran.returncode == 0, f"`import twostage` does too much: {ran.stderr}"


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in source_files()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, f"Files of more than 400 lines: split them by what they do: {long}"


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in source_files() if not ast.get_docstring(tree_of(path))]
    # python -m twostage.cli needs a file whose only content is the call
    assert not silent, f"Open these modules with a sentence about their job: {silent}"


def dangers(tree: ast.Module) -> list[str]:
    """Calls that run code from data or from a string, or read a pickle."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases):
            found.extend(_open_unpickler(node))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        where = f"line {node.lineno}: {name}"
        if name in CALLS_THAT_RUN_CODE:
            found.append(f"{where} runs code: take data apart by hand")
        if words.get("shell", "False") != "False":
            found.append(f"{where} with a shell: give the words as a list")
        if name == "torch.load" and words.get("weights_only") != "True":
            found.append(f"{where} without weights_only=True: a pickle runs code")
        if name in ("np.load", "numpy.load") and words.get("allow_pickle", "False") != "False":
            found.append(f"{where} with allow_pickle: a pickle runs code")
        if name in ("yaml.load", "yaml.load_all") and not re.search(
            r"_Loader|SafeLoader", words.get("Loader", "")
        ):
            found.append(f"{where} without a safe loader")
        if name in ("yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "pickle.Unpickler"):
            found.append(f"{where} runs code from outside")
    return found


def _open_unpickler(node: ast.ClassDef) -> list[str]:
    """A reader of pickles has to choose the names it knows itself, out of a table of its own."""
    chooser = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "find_class"]
    calls = {ast.unparse(n.func) for item in chooser for n in ast.walk(item) if isinstance(n, ast.Call)}
    outside = {"super", "getattr", "__import__", "import_module", "importlib.import_module"}
    if chooser and not calls & outside and "sys.modules" not in ast.unparse(node):
        return []
    return [f"line {node.lineno}: {node.name} reads pickles without a closed table in find_class"]


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_from_outside_is_run(path: Path) -> None:
    found = dangers(tree_of(path))
    assert not found, f"{path.relative_to(ROOT)}: {'; '.join(found)}"


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "exec(text)",
        "subprocess.run('ls', shell=True)",
        "pickle.load(stream)",
        "pickle.Unpickler(stream)",
        "class Reader(pickle.Unpickler):\n    pass",
        "class Reader(pickle.Unpickler):\n"
        "    def find_class(self, module, name):\n        return super().find_class(module, name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
    ],
)
def test_dangers_are_recognised(code: str) -> None:
    assert dangers(ast.parse(code))


def test_harmless_calls_pass() -> None:
    closed = "class R(pickle.Unpickler):\n    def find_class(self, m, n):\n        return TABLE[m, n]"
    assert dangers(ast.parse(closed)) == []
    code = "network.eval()\ntorch.load(p, weights_only=True)\nyaml.load(t, Loader=_Loader)\nre.compile('x')"
    assert dangers(ast.parse(code)) == []


def test_the_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from twostage.config import files

    assert issubclass(files._Loader, yaml.SafeLoader)


def test_no_path_of_one_machine() -> None:
    places = [
        PACKAGE,
        ROOT / "tools",
        ROOT / "datasets",
        ROOT / "configs",
        ROOT / "tests",
        ROOT / "train_net.py",
    ]
    found = []
    for place in places:
        files = [place] if place.is_file() else [p for p in place.rglob("*") if p.suffix in TEXT_SUFFIXES]
        for path in files:
            if path == Path(__file__).resolve():
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if MACHINE_PATH.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "Paths that exist on one machine only; take them as an option:\n" + "\n".join(found)


TEXT_SUFFIXES = {".py", ".yaml", ".yml", ".md", ".txt", ".json", ".sh", ".toml"}
