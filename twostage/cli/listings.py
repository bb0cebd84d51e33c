"""twostage models, components and prompts: what there is to choose from."""

from __future__ import annotations

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Register `models`, `components` and `prompts`."""
    commands.add_parser("models", help="ready-made systems for `twostage segment --model`").set_defaults(
        run=models
    )
    commands.add_parser("components", help="every component by kind").set_defaults(run=components)
    prompts = commands.add_parser("prompts", help="prompt template sets, or one set written out")
    prompts.add_argument("name", nargs="?", help="a set")
    prompts.set_defaults(run=templates)


def models(options: argparse.Namespace) -> int:
    """Each ready-made system and what it says of itself."""
    from twostage import zoo

    for name in zoo.names():
        print(f"{name:16} {zoo.describe(name)}")
    return 0


def components(options: argparse.Namespace) -> int:
    """Names to put into PROPOSALS.NAME and the other slots."""
    from twostage import registry

    for kind in registry.KINDS:
        print(f"{kind:12} {', '.join(registry.names(kind))}")
    return 0


def templates(options: argparse.Namespace) -> int:
    """The sets with their sizes, or the lines of one."""
    from twostage.clip.prompts import available, load_templates

    if options.name:
        print("\n".join(load_templates(options.name)))
        return 0
    for name in available():
        found = load_templates(name)
        print(f"{name:10} {len(found):3} templates, the first: {found[0]}")
    return 0
