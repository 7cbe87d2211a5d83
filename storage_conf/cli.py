"""The command `squashmount-conf`: generate and check the configuration files of Podman."""

import argparse
import json
import os
import shutil
import sys
from importlib.metadata import version
from typing import Any

from squashmount.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, SquashmountError, UsageError, report
from squashmount.mountinfo import read_mounts

from .checks import run_checks
from .conf import GRAPHROOT, RUNROOT, StorageSettings
from .facts import Facts, gather
from .finding import Finding, Severity
from .generate import SITE_STORAGE, Change, install, left_behind, plan_site, plan_user, require_stores
from .podman import Machine, checked_major
from .program import closed_to_others
from .subuid import has_range

_EPILOG = """\
exit codes:
  0    done; check: nothing is wrong (warnings do not count without --strict)
  1    the reader of the output went away
  2    wrong use of the command line, or a present file that cannot be edited
  5    a store does not exist
  6    a file cannot be written
  8    podman is missing or too old
  11   check found something wrong
  130  interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except SquashmountError as err:
        return report(err, program="squashmount-conf")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `| head` has seen enough; the interpreter must not complain at its end (signal, "Note on SIGPIPE")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="squashmount-conf",
        description="Make and check the storage.conf and containers.conf of rootless Podman.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"squashmount-conf {version('squashmount')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_check(commands)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="print or install the files",
        description="Print the files, or install them with --write. What is in them already stays: comments, other "
        "keys, and a graphroot, runroot or ignore_chown_errors that no option names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stores", nargs="*", metavar="DIR", help="stores made by migrate2scratch, the first wins")
    _add_scope(parser)
    parser.add_argument("--prefix", default="", metavar="ROOT", help="with --site: write below this image root")
    parser.add_argument("--write", action="store_true", help="install the files instead of printing them")
    parser.add_argument("--dry-run", action="store_true", help="with --write: say what would be written")
    parser.add_argument("--graphroot", metavar="PATH", help=f"node-local; $UID is filled in ({GRAPHROOT})")
    parser.add_argument("--runroot", metavar="PATH", help=f"node-local, short ({RUNROOT})")
    parser.add_argument("--mount-program", metavar="PATH", help="the installed squashmount")
    parser.add_argument(
        "--ignore-chown-errors",
        choices=("yes", "no", "auto"),
        default="auto",
        help="auto: yes for a site and for a user without a subuid range of 65536",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(command=_generate)


def _add_scope(parser: argparse.ArgumentParser) -> None:
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--user", action="store_true", help="files of this user (default)")
    scope.add_argument("--site", action="store_true", help="files in /etc for all rootless users of a node")
    parser.add_argument("--podman", type=int, metavar="N", help="as Podman 4, 5 or 6 reads it (default: the installed)")


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="say what in the present files would not work, and why",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_scope(parser)
    parser.add_argument("--storage-conf", metavar="FILE", help="look at this file as the user's own storage.conf")
    parser.add_argument("--strict", action="store_true", help="a warning counts as wrong too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(command=_check)


def _check(args: argparse.Namespace) -> int:
    facts = gather(_machine_to_check(args), read_mounts())
    findings = run_checks(facts)
    if args.json:
        _say(json.dumps(_as_json(facts, findings), indent=2))
    else:
        for _, finding in findings:
            _say(str(finding))
        _say(_summary(facts, findings))
    counted = {Severity.ERROR, Severity.WARNING} if args.strict else {Severity.ERROR}
    return EXIT_FINDINGS if any(finding.severity in counted for _, finding in findings) else 0


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
    counts = {kind: sum(finding.severity is kind for _, finding in findings) for kind in Severity}
    read = ", ".join(file.path for file in facts.files) or "no storage.conf of this user"
    said = ", ".join(f"{number} {kind.value}" for kind, number in counts.items() if number) or "nothing wrong"
    return f"Podman {facts.machine.podman}, {read}: {said}"


def _as_json(facts: Facts, findings: tuple[tuple[str, Finding], ...]) -> dict[str, Any]:
    return {
        "podman": facts.machine.podman,
        "files": [file.path for file in facts.files],
        "graphroot": facts.graphroot.path,
        "runroot": facts.runroot.path,
        "stores": [store.path for store in facts.stores],
        "findings": [
            {
                "check": name,
                "severity": finding.severity.value,
                "what": finding.what,
                "why": finding.why,
                "fix": finding.fix,
            }
            for name, finding in findings
        ],
    }


def _generate(args: argparse.Namespace) -> int:
    if args.prefix and not args.site:
        raise UsageError("--prefix belongs to --site.")
    machine = Machine(dict(os.environ), os.getuid(), checked_major(args.podman))
    settings = _settings(args, machine)
    if args.write and not args.dry_run and not args.site:
        require_stores(settings.stores)
    closed = closed_to_others(settings.mount_program) if args.site else ""
    if closed:
        sys.stderr.write(f"squashmount-conf: warning: other users cannot run {settings.mount_program}: see {closed}\n")
    changes = plan_site(settings, args.prefix) if args.site else plan_user(settings, machine)
    if args.write and not args.dry_run:
        install(changes)
    if args.json:
        _print_json(changes, machine, written=args.write and not args.dry_run)
    elif args.write:
        _print_summary(changes, args, machine)
    else:
        for change in changes:
            _say(f"### {change.path}\n{change.after}")
    return 0


def _settings(args: argparse.Namespace, machine: Machine) -> StorageSettings:
    for option in ("graphroot", "runroot"):
        value = getattr(args, option)
        if value and not value.startswith(("/", "$")):
            raise UsageError(f"--{option} {value} is not an absolute path.")
        if value and "${UID}" in value:
            raise UsageError(f"--{option}: Podman fills in $UID, but ${{UID}} becomes nothing.", hint="write $UID")
    ignore = {"yes": True, "no": False, "auto": None}[args.ignore_chown_errors]
    return StorageSettings(
        stores=tuple(os.path.abspath(store) for store in args.stores),
        mount_program=_mount_program(args.mount_program),
        graphroot=args.graphroot,
        runroot=args.runroot,
        ignore_chown_errors=ignore,
        chown_default=args.site or not has_range(machine.uid),
        podman=machine.podman,
    )


def _mount_program(given: str | None) -> str:
    if given:
        if not os.path.isabs(given):
            raise UsageError(f"--mount-program {given} is not an absolute path.")
        return given
    beside = os.path.dirname(os.path.abspath(sys.argv[0]))
    # squashmount-mount is the same program with a quicker start
    places = (os.path.join(beside, name) for name in ("squashmount-mount", "squashmount"))
    found = next((path for path in places if os.access(path, os.X_OK)), shutil.which("squashmount"))
    if not found:
        raise UsageError("The program squashmount is not on PATH.", hint="name it: --mount-program /PATH/squashmount")
    return os.path.abspath(found)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_json(changes: tuple[Change, ...], machine: Machine, *, written: bool) -> None:
    files = [{"path": item.path, "change": item.kind, "text": item.after} for item in changes]
    _say(json.dumps({"podman": machine.podman, "written": written, "files": files}, indent=2))


def _print_summary(changes: tuple[Change, ...], args: argparse.Namespace, machine: Machine) -> None:
    for change in changes:
        kept = f" (the file of before: {change.kept})" if change.kind == "changed" else ""
        _say(f"{'would be ' if args.dry_run else ''}{change.kind}: {change.path}{kept}")
    if args.dry_run:
        return
    old = None if args.site else left_behind(changes, machine.environ)
    if old:
        _say(f"note: images pulled earlier stay in {old}; `podman --root {old} images` lists them")
    if args.site and args.prefix:
        _say("next: boot a node from it, and there: squashmount-conf check")
    elif args.site:
        _say("next, as an ordinary user in a new login shell: squashmount-conf check")
    else:
        _say("next: squashmount-conf check && podman images")
