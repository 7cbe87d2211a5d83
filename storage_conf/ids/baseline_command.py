"""The commands `squashmount-conf ids baseline save` and `diff`."""

import argparse
import json
import os
import tomllib
from datetime import UTC, datetime
from typing import Any

from squashmount.atomic import replace_text
from squashmount.command_line import add_command, add_family, say
from squashmount.errors import DamagedError, SpaceError

from ..doctor.node import Node
from ..finding import Finding, Severity, exit_code, summary
from ..options import EPILOG
from . import baseline
from .baseline import Baseline
from .source_options import add_source, read_source


def add(commands: Any) -> None:
    """Add `ids baseline` with its two commands."""
    subcommands = add_family(
        commands,
        "baseline",
        "remember who has which ranges, and say what changed since",
        epilog=EPILOG,
        more="Remember who has which ranges, and say what changed: files keep the ids they were made with.",
    )
    save = add_command(
        subcommands,
        "save",
        "write the baseline; over an old one, what it has and is gone stays as retired",
        _save,
        epilog=EPILOG,
        more="Without --accept nothing is written when ranges were moved, shrunk or reissued, or when many users (more "
        "than 10, and than 5 %) are gone at once.",
    )
    save.add_argument("--accept", action="store_true", help="write it although there are errors")
    diff = add_command(subcommands, "diff", "say what changed since the baseline", _diff, epilog=EPILOG)
    diff.add_argument("--strict", action="store_true", help="a warning counts as wrong too")
    for parser in (save, diff):
        parser.add_argument("file", metavar="FILE", help="the baseline")
        parser.add_argument(
            "--path",
            action="append",
            default=[],
            metavar="PATH",
            help="where containers of users lie: $USER, $UID and $HOME are filled in (default: "
            "rootless_storage_path of storage.conf, and $HOME/.local/share/containers)",
        )
        parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
        add_source(parser)


def _save(args: argparse.Namespace) -> int:
    old = baseline.load(args.file) if os.path.lexists(args.file) else Baseline()
    new = _now(args)
    findings = _findings(old, new, args) if old.records else []
    bad = any(one.severity is Severity.ERROR for one in findings)
    written = args.accept or not bad
    made = baseline.merged(old, new)
    if written:
        try:
            replace_text(args.file, baseline.as_text(made))
        except OSError as err:
            raise SpaceError(f"{args.file} cannot be written: {err.strerror}.") from err
    retired = sum(bool(one.retired) for one in made.records)
    done = f"saved: {len(made.live()):,} users, {retired:,} retired ranges" if written else "not saved, see above"
    _print(findings, f"{args.file}: {done}", args)
    return 0 if written else exit_code(findings)


def _diff(args: argparse.Namespace) -> int:
    old, new = baseline.load(args.file), _now(args)
    findings = _findings(old, new, args)
    text = f"{args.file} of {old.saved}, {len(old.live()):,} users; now {len(new.live()):,}: {summary(findings)}"
    _print(findings, text, args)
    return exit_code(findings, strict=args.strict)


def _now(args: argparse.Namespace) -> Baseline:
    found = read_source(args)
    if not found.ranges:
        raise DamagedError(
            f"A16: {found.source} has not one range: everything would be retired.",
            hint="may who asks read the ranges? are they below another --base, or in another --schema?",
        )
    today = datetime.now(tz=UTC).date().isoformat()
    return baseline.current(found.ranges, found.accounts, today=today, source=found.source)


def _findings(old: Baseline, new: Baseline, args: argparse.Namespace) -> list[Finding]:
    paths = args.path or [*_graphroot(args.root), "$HOME/.local/share/containers"]
    return baseline.findings(baseline.differences(old, new), before=len(old.live()), paths=paths)


def _graphroot(root: str) -> list[str]:
    try:
        storage = tomllib.loads(Node(root=root).text("/etc/containers/storage.conf") or "").get("storage", {})
    except tomllib.TOMLDecodeError:
        return []
    path = storage.get("rootless_storage_path") if isinstance(storage, dict) else None
    return [path] if isinstance(path, str) else []


def _print(findings: list[Finding], last: str, args: argparse.Namespace) -> None:
    if args.json:
        say(json.dumps({"format": 1, "findings": [one.as_json() for one in findings], "summary": last}, indent=2))
    else:
        say("\n".join([*map(str, findings), last]))
