"""The commands people type: `squashmount mount | umount | ps | reap`."""

import argparse
import json
import os
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from . import linux
from .config import load_config
from .errors import EXIT_INTERRUPTED, SquashmountError, UsageError
from .keeper import ServerDir, is_mounted, sweep
from .mountinfo import read_mounts
from .runtime import state_dir


def command(arguments: list[str]) -> int:
    """Parse and run one command; returns its exit code, raises SquashmountError."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="squashmount",
        description="Mount squash files. As `squashmount -o OPTIONS TARGET` this is the mount program Podman calls.",
        epilog="Exit codes: 0 done, 2 wrong use, 8 a program failed, 9 this machine cannot, 10 damaged squash file.",
    )
    parser.add_argument("--version", action="version", version=f"squashmount {version('squashmount')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    mount = commands.add_parser("mount", help="mount a squash file on a directory; returns when it is mounted")
    mount.add_argument("file", metavar="FILE")
    mount.add_argument("directory", metavar="DIR")
    mount.add_argument(
        "--engine", choices=("wire", "pyfuse3"), default="wire", help="who speaks FUSE: we (default), or libfuse"
    )
    mount.set_defaults(run=_mount)
    umount = commands.add_parser("umount", help="unmount it again; its server ends by itself")
    umount.add_argument("directory", metavar="DIR")
    umount.set_defaults(run=_umount)
    ps = commands.add_parser("ps", help="list the servers of this user on this node")
    ps.add_argument("--json", action="store_true")
    ps.set_defaults(run=_ps)
    reap = commands.add_parser(
        "reap", help="clear away what killed servers left (for an epilog: run in `podman unshare`)"
    )
    reap.set_defaults(run=_reap)
    return parser


def _mount(options: argparse.Namespace) -> int:
    from .standalone import mount_file  # noqa: PLC0415 - the reader is needed by this command only

    mount_file(options.file, options.directory, load_config(), options.engine)
    return 0


def _umount(options: argparse.Namespace) -> int:
    directory = os.path.realpath(options.directory)
    if not is_mounted(directory):
        raise UsageError(f"Nothing is mounted on {options.directory}.")
    try:
        linux.umount(directory)
    except PermissionError:
        from .process import run  # noqa: PLC0415 - subprocess is needed by this branch only

        run("fusermount3", "-u", directory)
    except OSError as err:
        raise SquashmountError(
            f"Cannot unmount {options.directory}.", details=str(err), hint=f"see who uses it: fuser -vm {directory}"
        ) from err
    return 0


def _state() -> str:
    return os.path.realpath(state_dir(load_config(), dict(os.environ)))


def _servers() -> list[ServerDir]:
    places = [ServerDir(os.path.join(_state(), name)) for name in sorted(os.listdir(_state()))]
    return [place for place in places if os.path.exists(place.lock)]


def _ps(options: argparse.Namespace) -> int:
    servers = _servers()
    rows = [row for place in servers if (row := _row(place))]
    rows += _standalone({place.mountpoint for place in servers})
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    lines = [("SERVER", "STATE", "ENGINE", "PID", "USERS", "UP", "MEMORY", "REQUESTS", "HITS", "AHEAD", "SQUASH")]
    lines += [
        (
            row["server"],
            row["state"],
            row["engine"],
            str(row["worker"]),
            str(len(row["users"])),
            f"{row['up_seconds']:.0f}s",
            f"{row['pss_kib'] / 1024:.1f}MiB",
            str(_requests(row["stats"])),
            _percent(row["stats"]),
            _ahead(row),
            row["squash"],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")
    return 0


_NOT_REQUESTS = {"bytes_read", "errors", "cache_hits", "cache_misses", "cache_ahead"}


def _requests(stats: dict[str, Any]) -> int:
    return sum(count for name, count in stats.items() if name not in _NOT_REQUESTS)


def _percent(stats: dict[str, Any]) -> str:
    hits, misses = int(stats.get("cache_hits", 0)), int(stats.get("cache_misses", 0))
    return f"{100 * hits // (hits + misses)}%" if hits + misses else "-"


def _ahead(row: dict[str, Any]) -> str:
    """Return how much a profile had read ahead, and its share of all that was read so far."""
    ahead, read = int(row["prefetch"].get("bytes", 0)), int(row["stats"].get("bytes_read", 0))
    return f"{ahead / (1 << 20):.1f}MiB {min(100, 100 * ahead // read)}%" if ahead and read else "-"


def _row(place: ServerDir) -> dict[str, Any] | None:
    try:
        with open(place.info, encoding="utf-8") as file:
            info = json.load(file)
    except (FileNotFoundError, ValueError):
        return None
    stats, prefetch = _counters(place.stats), _counters(place.prefetch)
    return {
        "server": os.path.basename(place.path),
        "state": "serving" if place.is_alive() else "dead",
        "up_seconds": time.time() - info.pop("started"),
        "pss_kib": _pss_kib(info["supervisor"]) + _pss_kib(info["worker"]),
        "users": sorted(place.leased().values()),
        "stats": stats,
        "prefetch": prefetch,
        **info,
    }


def _counters(path: str) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError), open(path, encoding="utf-8") as file:
        found = json.load(file)
        return found if isinstance(found, dict) else {}
    return {}


def _standalone(known: set[str]) -> list[dict[str, Any]]:
    """Return what `squashmount mount` mounted in this namespace: the kernel's list is all there is about it."""
    mounts = [mount for mount in read_mounts() if mount.fstype == "fuse.squashmount" and mount.target not in known]
    empty = {
        "server": "-",
        "state": "mounted",
        "engine": "-",
        "worker": 0,
        "up_seconds": 0.0,
        "pss_kib": 0,
        "stats": {},
        "prefetch": {},
    }
    return [{**empty, "squash": mount.source, "mountpoint": mount.target, "users": [mount.target]} for mount in mounts]


def _pss_kib(pid: int) -> int:
    """Return the proportional set size in KiB (proc(5), smaps_rollup); 0 when it cannot be read."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _reap(_options: argparse.Namespace) -> int:
    for path in sweep(_state()):
        sys.stdout.write(f"removed {path}\n")
    return 0
