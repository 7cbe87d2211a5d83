"""What the command line of each program has in common: one `main`, one way to add a command, one way to print."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from .errors import EXIT_INTERRUPTED, SpaceError, SquashmountError, report

Command = Callable[[argparse.Namespace], int]


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Run the chosen command, its function in `command`, and return the exit code."""
    _open_standard_streams()
    args = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is unfinished is removed, as with Ctrl-C
    try:
        code: int = args.command(args)
        _write()
        return code
    except SquashmountError as err:
        return report(err, program=parser.prog)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `| head` has seen enough; the interpreter must not complain at its end (signal, "Note on SIGPIPE")
        _silence()
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_standard_streams() -> None:
    """Open what the caller closed (`>&-`) as /dev/null: the next file opened would get its number, and be written."""
    if None not in {sys.stdin, sys.stdout, sys.stderr}:
        return
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115 - like the others, to the end
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115 - the same
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115 - the same


def _write(text: str = "") -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as err:
        _silence()
        raise SpaceError(f"The answer cannot be written: {err.strerror}.") from err


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_family(commands: Any, name: str, text: str, *, epilog: str, more: str) -> Any:
    """Add a command that only has commands of its own, and return what those are added to.

    `text` is its line in the list of commands, `more` is all its own --help says of it.
    """
    family = commands.add_parser(
        name, help=text, description=more, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return family.add_subparsers(required=True, metavar="SUBCOMMAND")


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
    """Print a line. SpaceError when it cannot be written; BrokenPipeError when nobody reads any more."""
    _write(text + "\n")
