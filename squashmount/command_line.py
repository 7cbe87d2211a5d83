"""What the command line of each program has in common: one `main`, one way to add a command, one way to print."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import EXIT_INTERRUPTED, SquashmountError, report

Command = Callable[[argparse.Namespace], int]


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Run the chosen command, its function in `command`, and return the exit code."""
    args = parser.parse_args(argv)
    try:
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except SquashmountError as err:
        return report(err, program=parser.prog)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `| head` has seen enough; the interpreter must not complain at its end (signal, "Note on SIGPIPE")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def add_command(commands: Any, name: str, text: str, run: Command, *, epilog: str, more: str = "") -> Any:
    """Add one command and return its parser for the options.

    `text` is its line in the list of commands, `more` follows it in its own --help.
    """
    made = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + "." + (f" {more}" if more else ""),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=run)
    return made


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
