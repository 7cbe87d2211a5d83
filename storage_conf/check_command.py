"""The command `squashmount-conf check`."""

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from squashmount.command_line import add_command, say
from squashmount.config import load_config
from squashmount.errors import UsageError
from squashmount.mountinfo import read_mounts

from .checks import run_checks
from .facts import Facts, gather
from .file_checks import check_file
from .finding import Finding, error, exit_code, summary
from .generate import SITE_STORAGE
from .options import EPILOG, add_scope
from .podman import Machine, checked_major
from .site import load_site


def add(commands: Any) -> None:
    """Add `check`."""
    parser = add_command(
        commands, "check", "say what in the present files would not work, and why", _check, epilog=EPILOG
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="storage.conf, containers.conf or site.toml: look at these alone, with lines",
    )
    add_scope(parser)
    parser.add_argument("--storage-conf", metavar="FILE", help="look at this file as the user's own storage.conf")
    parser.add_argument("--strict", action="store_true", help="a warning counts as wrong too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _check(args: argparse.Namespace) -> int:
    if args.files:
        return _check_files(args)
    facts = gather(_machine_to_check(args), read_mounts())
    findings = (*run_checks(facts), *_settings())
    if args.json:
        say(json.dumps(_as_json(facts, findings), indent=2))
    else:
        for _, finding in findings:
            say(str(finding))
        say(_summary(facts, findings))
    return exit_code((finding for _, finding in findings), strict=args.strict)


def _settings() -> Iterator[tuple[str, Finding]]:
    """Report configuration files of our own that cannot be read: the mount program stops at them, too."""
    try:
        load_config()
        load_site()
    except UsageError as err:
        why = err.details or "Every program of squashmount reads it, the mount program at each container start."
        yield "settings", error(err.brief.rstrip("."), why, err.hint or "squashmount-conf check FILE")


def _check_files(args: argparse.Namespace) -> int:
    if args.site or args.storage_conf:
        raise UsageError("--site and --storage-conf are for the files Podman reads; FILE is looked at alone.")
    machine = Machine(dict(os.environ), os.getuid(), checked_major(args.podman))
    checked = [check_file(path, machine) for path in args.files]
    findings = [finding for one in checked for _, finding in one.findings]
    if args.json:
        files = [
            {
                "path": one.path,
                "kind": one.kind,
                "findings": [{"line": line, **finding.as_json()} for line, finding in one.findings],
            }
            for one in checked
        ]
        say(json.dumps({"podman": machine.podman, "files": files}, indent=2))
    else:
        for finding in findings:
            say(str(finding))
        kinds = ", ".join(f"{one.path} ({one.kind})" for one in checked)
        say(f"Podman {machine.podman}, {kinds}: {summary(findings)}")
    return exit_code(findings, strict=args.strict)


def _machine_to_check(args: argparse.Namespace) -> Machine:
    podman = checked_major(args.podman)
    if args.storage_conf:
        if args.site:
            raise UsageError("--site and --storage-conf exclude each other.")
        named = os.path.abspath(args.storage_conf)
        return Machine(dict(os.environ), os.getuid(), podman, storage_conf=named)
    if not args.site:
        return Machine(dict(os.environ), os.getuid(), podman)
    # a user without files of his own, as the profile script leaves him; root cannot be one
    uid = os.getuid() or 65534
    environ = {"HOME": "/nonexistent", "USER": "nobody", "XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    site = os.path.join("/etc/containers", SITE_STORAGE)
    if podman < 6 and os.path.exists(site):
        environ["CONTAINERS_STORAGE_CONF"] = site
    return Machine(environ, uid, podman, example=True)


def _summary(facts: Facts, findings: tuple[tuple[str, Finding], ...]) -> str:
    read = ", ".join(file.path for file in facts.files) or "no storage.conf of this user"
    return f"Podman {facts.machine.podman}, {read}: {summary([finding for _, finding in findings])}"


def _as_json(facts: Facts, findings: tuple[tuple[str, Finding], ...]) -> dict[str, Any]:
    return {
        "podman": facts.machine.podman,
        "files": [file.path for file in facts.files],
        "graphroot": facts.graphroot.path,
        "runroot": facts.runroot.path,
        "stores": [store.path for store in facts.stores],
        "findings": [{"check": name, **finding.as_json()} for name, finding in findings],
    }
