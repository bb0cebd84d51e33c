"""Ready-made systems: every file loads, its components and options exist, and it says what it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twostage import registry, zoo
from twostage.clip.prompts import load_templates
from twostage.config import SlotConfig, load_config
from twostage.zoo import ZooError

KINDS = {"proposals": "proposals", "classifier": "classifiers", "dense": "dense", "ensemble": "ensembles"}


def test_names() -> None:
    assert {"dense-vit-b16", "sam-vit-b16"} <= set(zoo.names())
    assert zoo.names() == sorted(zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_every_system_is_valid(name: str) -> None:
    config = load_config(zoo.path(name))
    for section, kind in KINDS.items():
        slot: SlotConfig = getattr(config, section)
        if slot.name:
            options = {key: tuple(v) if isinstance(v, list) else v for key, v in slot.options.items()}
            registry.make_config(registry.find(kind, slot.name), options)
    assert load_templates(config.clip.templates)
    assert len(zoo.describe(name)) > 20
    assert zoo.notes(name).splitlines()[0] == zoo.describe(name)


@pytest.mark.parametrize("name", ["dense-vit-b16", "sam-vit-b16"])
def test_notes_of_real_systems(name: str) -> None:
    assert "MB" in zoo.notes(name)
    assert "Nothing has been measured" in zoo.notes(name)
    config = load_config(zoo.path(name))
    assert (config.clip.model, config.clip.pretrained) == ("ViT-B-16-quickgelu", "openai")


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ZooError, match="Did you mean 'sam-vit-b16'"):
        zoo.path("sam-vitb16")


def test_import_reads_no_file() -> None:
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "import twostage.zoo\n"
        "assert not [name for name in opened if name.endswith('.yaml')], opened\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
