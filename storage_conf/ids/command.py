"""The commands `squashmount-conf ids …`: the subordinate ids of a whole site."""

from collections.abc import Callable
from typing import Any

from squashmount.command_line import add_family

from ..options import EPILOG
from . import baseline_command, check_command, compare_command, plan_command, plot_command

COMMANDS: list[Callable[[Any], None]] = [
    check_command.add,
    plan_command.add,
    baseline_command.add,
    compare_command.add,
    plot_command.add,
]
"""What adds each command of the family to its parser."""


def add(commands: Any) -> None:
    """Add `ids` and its commands."""
    subcommands = add_family(
        commands,
        "ids",
        "prove or plan the subordinate ids of all users of a site",
        epilog=EPILOG,
        more="Prove that the subordinate id ranges of all users are consistent and safe, and plan new ones.",
    )
    for add_one in COMMANDS:
        add_one(subcommands)
