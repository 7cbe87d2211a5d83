"""Command line of `migrate2scratch`."""

import argparse
import dataclasses
import json
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from squashmount import errors
from squashmount.config import Config, load_config
from squashmount.errors import EXIT_INTERRUPTED, SquashmountError, UsageError

from . import listing, migration, progress
from .migration import Options
from .mksquashfs import COMPRESSORS, Format
from .source import Podman
from .store import open_store

PROGRAM = "migrate2scratch"


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        config = load_config()
        code: int = arguments.run(arguments, config)
        return code
    except SquashmountError as err:
        return errors.report(err, program=PROGRAM)
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: interrupted; everything unfinished was removed\n")
        return EXIT_INTERRUPTED


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _mig(arguments: argparse.Namespace, config: Config) -> int:
    store = open_store(_directory(arguments, config), create=not arguments.dry_run, empty_ok=True)
    options = _options(arguments, config)
    found = migration.find(arguments.image, options, store)
    if arguments.dry_run:
        actions = migration.plan(store, found, options)
    else:
        title = found.image.names[0] if found.image.names else found.image.id[:12]
        with progress.shown(title, quiet=arguments.quiet) as shown:
            actions = migration.migrate(store, found, dataclasses.replace(options, progress=shown))
    lines = [action.describe() for action in actions]
    if arguments.json:
        _print(json.dumps({"image": found.image.id, "names": list(found.image.names), "actions": lines}))
    elif not arguments.quiet:
        _print("\n".join(lines) or f"{found.image.id[:12]} is in {store.root} already, with all its names")
    return 0


def _images(arguments: argparse.Namespace, config: Config) -> int:
    store = open_store(_directory(arguments, config))
    _print(listing.as_json(store) if arguments.json else listing.as_table(store))
    return 0


def _init(arguments: argparse.Namespace, config: Config) -> int:
    directory = _directory(arguments, config)
    os.makedirs(directory, exist_ok=True)
    open_store(directory, create=True)
    return 0


def _directory(arguments: argparse.Namespace, config: Config) -> str:
    directory = arguments.dir or config.squash_dir
    if not directory:
        raise UsageError("No DIR given.", hint="give it after the image, or set SQUASH_DIR or squash_dir")
    return str(directory)


def _options(arguments: argparse.Namespace, config: Config) -> Options:
    compressor = arguments.compressor or config.compressor
    level = config.compression_level if arguments.level is None else arguments.level
    return Options(
        podman=Podman(root=arguments.root, runroot=arguments.runroot),
        format=Format(compressor, level, (arguments.block_size or config.block_kib) * 1024).checked(),
        processors=config.processors,
        log=_log if arguments.verbose else lambda _line: None,
        on_wait=_log,
    )


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _log(line: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM)
    commands = parser.add_subparsers(required=True)
    mig = commands.add_parser("mig")
    mig.add_argument("image", metavar="IMAGE")
    mig.add_argument("dir", metavar="DIR", nargs="?")
    mig.add_argument("--compressor", choices=COMPRESSORS)
    mig.add_argument("--level", type=int)
    mig.add_argument("--block-size", type=int)
    mig.add_argument("--dry-run", action="store_true")
    mig.add_argument("--json", action="store_true")
    mig.add_argument("-q", "--quiet", action="store_true")
    mig.add_argument("-v", "--verbose", action="store_true")
    mig.add_argument("--root", default="")
    mig.add_argument("--runroot", default="")
    mig.set_defaults(run=_mig)
    images = commands.add_parser("images")
    images.add_argument("dir", metavar="DIR", nargs="?")
    images.add_argument("--json", action="store_true")
    images.set_defaults(run=_images)
    init = commands.add_parser("init")
    init.add_argument("dir", metavar="DIR", nargs="?")
    init.set_defaults(run=_init)
    return parser


if __name__ == "__main__":
    sys.exit(main())
