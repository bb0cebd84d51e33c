"""Components by name: those that ship, somebody's own, and what is wrong with a name or an option."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import twostage
from twostage import registry
from twostage.registry import ComponentError

MODULES = {
    "mine_good": """
from dataclasses import dataclass
@dataclass(frozen=True)
class Options:
    depth: int = 2
class Mine:
    Config = Options
class Helper:
    pass
Config = 3
""",
    "mine_two": "class A:\n    from mine_good import Options as Config\nclass B(A):\n    pass\n",
    "mine_none": "from mine_good import Mine\nclass Plain:\n    Config = dict\n",
    "mine_broken": "import a_package_that_nobody_has\n",
}


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_file_is_a_component_with_its_name(kind: str) -> None:
    files = {path.stem for path in (Path(twostage.__file__).parent / kind).glob("[!_]*.py")}
    assert set(registry.names(kind)) == files
    assert registry.names(kind) == sorted(files)
    for name in files:
        found = registry.find(kind, name)
        assert found.__module__ == f"twostage.{kind}.{name}"


def test_unknown_names_meet_the_nearest() -> None:
    with pytest.raises(
        ComponentError, match=r"Unknown kind of component 'proposal'\. Did you mean 'proposals'\?"
    ):
        registry.names("proposal")
    with pytest.raises(
        ComponentError, match=r"proposals: unknown component 'masformer'\. Did you mean 'maskformer'"
    ):
        registry.find("proposals", "masformer")
    with pytest.raises(ComponentError, match="unknown component '_caching'"):
        registry.find("proposals", "_caching")  # a helper, no component
    with pytest.raises(ComponentError, match="unknown component ''"):
        registry.find("dense", "")


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("name", ["mine_good:Mine", "mine_good:"])
def test_components_of_ones_own(name: str) -> None:
    assert registry.find("dense", name).__name__ == "Mine"


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_nowhere:Mine", r"Cannot import 'mine_nowhere'.*is it installed"),
        ("mine_broken:Mine", "a_package_that_nobody_has"),
        ("mine_good:Mini", r"mine_good has no 'Mini'\. Did you mean 'Mine'\?"),
        ("mine_good:Helper", "expected a class with a dataclass `Config`"),
        ("mine_good:Config", "expected a class with a dataclass `Config`, found 3"),
        ("mine_two:", r"expected one class with a Config of its own, found \['A', 'B'\]"),
        ("mine_none:", r"found \[\]"),
        (":Mine", "is no module path"),
        (".mine", "is no module path"),
        ("../mine.py", "is no module path"),
        ("mine-good.x", "is no module path"),
    ],
)
def test_what_is_wrong_with_ones_own(name: str, message: str) -> None:
    with pytest.raises(ComponentError, match=message):
        registry.find("dense", name)


class Careful:
    """A component with an option that must be given and one that is checked."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        path: str
        weight: float = 0.5
        parts: list[str] = dataclasses.field(default_factory=list)

        def __post_init__(self) -> None:
            if self.weight > 1:
                raise ValueError(f"weight must be at most 1, got {self.weight}.")
            if self.path == "nowhere":
                raise ComponentError("nowhere is no path.")


def test_options_become_a_config() -> None:
    made = registry.make_config(Careful, {"path": "x", "weight": 1})
    assert made == Careful.Config("x", 1, [])
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.weight = 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "x", "wieght": 1}, r"Careful: unknown option 'wieght'\. Did you mean 'weight'\?"),
        ({}, "Careful: the option 'path' has no default: give it"),
        (
            {"path": "x", "weight": 2},
            "Careful: an option has an unfit value: weight must be at most 1, got 2",
        ),
        ({"path": "x", "weight": "much"}, "Careful: an option has an unfit value: .*not supported"),
        ({"path": "nowhere"}, "^nowhere is no path"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ComponentError, match=message):
        registry.make_config(Careful, options)
