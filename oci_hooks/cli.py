"""The command `squashmount-hooks`. `apply` (the hook) is not here but in `hook`: it starts with every container."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from squashmount import command_line
from squashmount.command_line import Command, run_command, say
from squashmount.errors import EXIT_FINDINGS, UsageError

from . import module_keys

PROGRAM = "squashmount-hooks"

_EPILOG = """\
exit codes:
  0    done; check: nothing is wrong; plan: the container would start
  1    any other failure, or the reader of the output went away
  2    wrong use of the command line, or a module or policy file that says something impossible
  3    image or container not found
  4    a name means several images or containers
  5    the store is missing or damaged
  6    a file cannot be written
  9    this machine cannot do it
  11   check found something wrong; plan, test: the container would not start
  130  interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command(parser(), argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser; `command` is the function of the chosen command."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Put the host's MPI, GPU driver and fabric into containers of stock Podman, by OCI hooks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {version('squashmount')}")
    parsers = top.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(parsers)
    return top


def add_command(parsers: Any, name: str, text: str, run: Command) -> Any:
    """Add one command; returns its parser for the options."""
    return command_line.add_command(parsers, name, text, run, epilog=_EPILOG)


def _add_check(commands: Any) -> None:
    made = add_command(commands, "check", "say what is wrong with module files, or with the site's policy file", _check)
    made.add_argument("files", nargs="*", metavar="FILE", help="modules; a file named hooks.toml is a policy")
    made.add_argument("--policy", default="", metavar="FILE", help="judge modules by it; default: the site's")
    made.add_argument("--schema", action="store_true", help="print the JSON schema of a module file")


def _check(args: argparse.Namespace) -> int:
    if args.schema:
        sys.stdout.write(module_keys.schema_text())
        return 0
    if not args.files:
        raise UsageError("No file is named.", hint="squashmount-hooks check /etc/squashmount/modules.d/*.toml")
    from .check_command import check  # noqa: PLC0415 - only for this command

    wrong = 0
    for text, right in check(args.files, policy_file=args.policy, environ=dict(os.environ)):
        wrong += not right
        (sys.stdout if right else sys.stderr).write(f"{text}\n")
    return EXIT_FINDINGS if wrong else 0


def _add_import(commands: Any) -> None:
    made = add_command(commands, "import", "translate modules of podman-hpc, Sarus, Shifter, EDF or enroot", _import)
    made.add_argument(
        "--from", dest="kind", required=True, metavar="KIND", help="podman-hpc, sarus, shifter, edf, enroot"
    )
    made.add_argument("files", nargs="+", metavar="FILE", help="or a directory: all below it that this peer reads")
    made.add_argument("-o", dest="directory", metavar="DIR", help="write DIR/NAME.toml; default: print them")
    made.add_argument("--force", action="store_true", help="replace modules that are in DIR already")
    made.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _import(args: argparse.Namespace) -> int:
    from .import_command import as_json, as_text, write  # noqa: PLC0415 - only for this command
    from .importers import translate  # noqa: PLC0415 - the same

    result = translate(args.kind, args.files)
    written = write(result, args.directory, force=args.force) if args.directory else {}
    say(as_json(result, written) if args.json else as_text(result, written))
    return 0


def _add_cdi(commands: Any) -> None:
    text = "print a CDI file for the GPUs of this host: podman run --device nvidia.com/gpu=0"
    made = add_command(commands, "cdi", text, _cdi)
    made.add_argument("--kind", choices=("nvidia", "amd"), help="the vendor; default: whose GPUs are here")
    made.add_argument("-o", dest="file", metavar="FILE", help="write FILE, for example /etc/cdi/nvidia.json")
    made.add_argument("--host", default="/", metavar="DIR", help="for the files of this host (default /)")


def _cdi(args: argparse.Namespace) -> int:
    from .cdi_command import made, write  # noqa: PLC0415 - only for this command

    text, remarks = made(args.host, args.kind)
    for line in remarks:
        sys.stderr.write(f"{PROGRAM}: {line}\n")
    if args.file:
        write(os.path.abspath(args.file), text)
        say(f"written: {args.file}")
    else:
        sys.stdout.write(text)
    return 0


def _add_others(commands: Any) -> None:
    from .commands import add_commands  # noqa: PLC0415 - it needs what is here

    add_commands(commands, add_command)


COMMANDS: list[Callable[[Any], None]] = [_add_others, _add_check, _add_import, _add_cdi]
"""What adds each command to the parser."""
