"""Command line of `migrate2scratch`."""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterable
from types import FrameType
from typing import NoReturn

from squashmount import atomic, errors
from squashmount.config import Config, load_config
from squashmount.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, SquashmountError, UsageError

from . import listing, migration, names, plan, profiling, progress, verify
from .arguments import PROGRAM, parser
from .migration import Options
from .mksquashfs import Format
from .plan import Action
from .source import Podman
from .store import Store, open_store
from .trouble import explained


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    ours, _, program = _split(words) if words[:1] == ["profile"] else (words, "", [])
    try:
        arguments = parser().parse_args(ours)
        arguments.program = program
    except SystemExit as end:
        return int(end.code or 0)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1)
            signal.signal(number, _interrupt)
    try:
        return _COMMANDS[arguments.command](arguments, load_config())
    except SquashmountError as err:
        return errors.report(err, program=PROGRAM)
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: interrupted; everything unfinished was removed\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python docs, "Note on SIGPIPE"
        return 1


def _split(words: list[str]) -> tuple[list[str], str, list[str]]:
    """Split at the first `--`: what follows is the program's."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], "--", words[at + 1 :]


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _mig(arguments: argparse.Namespace, config: Config) -> int:
    options = _options(arguments, config)
    store = _open(arguments, config, create=not arguments.dry_run, empty_ok=True)
    found = migration.find(arguments.image, options, store)
    options = dataclasses.replace(options, profile=profiling.wanted(store, found.image.id, arguments))
    if found.store.single_id and not arguments.quiet:
        _log("no subuid range for this user: owners are restored from the headers of the layers")
    if arguments.dry_run:
        actions = migration.plan(store, found, options)
    else:
        title = found.image.names[0] if found.image.names else found.image.id[:12]
        with progress.shown(title, quiet=arguments.quiet) as shown:
            actions = migration.migrate(store, found, dataclasses.replace(options, progress=shown))
    nothing = f"{found.image.id[:12]} is in {store.root} already, with all its names"
    return _tell(arguments, store, actions, nothing, image=found.image.id, names=list(found.image.names))


def _rmi(arguments: argparse.Namespace, config: Config) -> int:
    store = _open(arguments, config)
    actions = migration.remove(
        store,
        lambda state: plan.plan_removal(
            state, names.find(state, arguments.image, where=store.root), force=arguments.force
        ),
        _options(arguments, config),
        dry_run=arguments.dry_run,
        at_once=arguments.now,
    )
    return _tell(arguments, store, actions, "")


def _prune(arguments: argparse.Namespace, config: Config) -> int:
    store = _open(arguments, config)
    options = _options(arguments, config)
    actions = migration.prune(store, options, dry_run=arguments.dry_run, at_once=arguments.now)
    return _tell(arguments, store, actions, f"every image in {store.root} has a name")


def _profile(arguments: argparse.Namespace, config: Config) -> int:
    store = _open(arguments, config)
    with explained(store.root):
        state = store.state(readable_only=True)
        image = names.find(state, arguments.image, where=store.root).image
    if arguments.dry_run:
        return _tell(arguments, store, (), f"run {image[:12]} once and record what it reads first", image=image)
    wanted = profiling.Wanted(
        image,
        program=tuple(arguments.program),
        options=tuple(arguments.run_option),
        tmpdir=arguments.tmpdir,
        mount_program=os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "squashmount"),
        log=_log if arguments.verbose else lambda _line: None,
    )
    one = profiling.record(store, wanted)
    if arguments.output:
        atomic.replace_text(os.path.abspath(arguments.output), one.to_json())
    else:
        profiling.keep(store, image, one, _options(arguments, config))
    files, size = len(one.files()), one.file_bytes()
    return _tell(arguments, store, (), f"{image[:12]} needs {files} files first, {size / (1 << 20):.1f} MiB of them")


def _images(arguments: argparse.Namespace, config: Config) -> int:
    store = _open(arguments, config)
    with explained(store.root):
        _print(listing.as_json(store) if arguments.json else listing.as_table(store))
    return 0


def _init(arguments: argparse.Namespace, config: Config) -> int:
    directory = _directory(arguments, config)
    if arguments.dry_run:
        if os.path.exists(directory):
            open_store(directory, empty_ok=True)
        return _tell(arguments, None, (), f"create a store in {directory}")
    with explained(directory):
        os.makedirs(directory, exist_ok=True)
    store = open_store(directory, create=True)
    return _tell(arguments, store, (), f"{store.root} is a store")


def _verify(arguments: argparse.Namespace, config: Config) -> int:
    store = _open(arguments, config)
    with explained(store.root):
        found = verify.verify(store, full=arguments.full)
    if arguments.json:
        _print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    else:
        _print("\n".join(finding.describe() for finding in found) or f"{store.root} is sound")
    return EXIT_FINDINGS if found else 0


def _repair(arguments: argparse.Namespace, config: Config) -> int:
    store = _open(arguments, config)
    with explained(store.root):
        if arguments.dry_run:
            lines = [finding.describe() for finding in verify.verify(store)]
        else:
            state = verify.repair(store, timeout=arguments.wait)
            lines = [f"{store.root} shows {len(state.capsules)} images with {len(state.names)} names"]
    return _tell(arguments, store, (), "\n".join(lines) or f"{store.root} is sound")


_COMMANDS = {
    "mig": _mig,
    "profile": _profile,
    "rmi": _rmi,
    "images": _images,
    "init": _init,
    "prune": _prune,
    "verify": _verify,
    "repair": _repair,
}


def _open(arguments: argparse.Namespace, config: Config, *, create: bool = False, empty_ok: bool = False) -> Store:
    directory = _directory(arguments, config)
    return open_store(directory, create=create, empty_ok=empty_ok, grace=config.trash_hours * 3600)


def _directory(arguments: argparse.Namespace, config: Config) -> str:
    directory = arguments.dir or config.squash_dir
    if not directory:
        raise UsageError(
            "No DIR given.", hint="give it last, or set SQUASH_DIR, or squash_dir in the configuration file"
        )
    return os.path.abspath(os.path.expanduser(str(directory)))


def _options(arguments: argparse.Namespace, config: Config) -> Options:
    options = Options(wait=arguments.wait, on_wait=_log if not arguments.quiet else lambda _line: None)
    if arguments.command != "mig":
        return options
    compressor = arguments.compressor or config.compressor
    level = config.compression_level if arguments.level is None else arguments.level
    return dataclasses.replace(
        options,
        podman=Podman(root=arguments.root, runroot=arguments.runroot),
        format=Format(compressor, level, (arguments.block_size or config.block_kib) * 1024).checked(),
        processors=config.processors,
        replace=arguments.replace,
        check=arguments.verify,
        log=_log if arguments.verbose else lambda _line: None,
    )


def _tell(
    arguments: argparse.Namespace, store: Store | None, actions: Iterable[Action], nothing: str, **more: object
) -> int:
    """Print what was done, or with --dry-run what would be."""
    done = tuple(actions)
    lines = [action.describe() for action in done]
    if arguments.json:
        root = {"store": store.root} if store else {}
        _print(json.dumps({**root, **more, "dry_run": bool(arguments.dry_run), "actions": lines}, indent=1))
    elif not arguments.quiet and (lines or nothing):
        _print("\n".join(lines) or nothing)
        dropped = any(isinstance(action, plan.Drop) for action in done)
        if store and store.grace and dropped and not arguments.dry_run and not getattr(arguments, "now", False):
            _log(
                f"containers that use it can go on: the squash file stays in trash/ for {store.grace / 3600:g} h "
                "(migrate2scratch prune --now deletes it at once)"
            )
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _log(line: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
