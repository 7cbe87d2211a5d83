"""The command `squashmount-conf`: what the machine must look like, and what is wrong with it."""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from squashmount.command_line import run_command

from . import check_command, explain_command, generate_command
from .doctor import command as doctor_command
from .ids import command as ids_command
from .options import EPILOG, PROGRAM

COMMANDS: list[Callable[[Any], None]] = [
    generate_command.add,
    check_command.add,
    explain_command.add,
    doctor_command.add,
    ids_command.add,
]
"""What adds each command, or family of commands, to the parser."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command(parser(), argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser; `command` is the function of the chosen command."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Make and check the storage.conf and containers.conf of rootless Podman.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {version('squashmount')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return top
