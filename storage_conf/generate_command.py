"""The command `squashmount-conf generate`."""

import argparse
import grp
import json
import os
import pwd
import shutil
import sys
from contextlib import suppress
from typing import Any

from squashmount.command_line import add_command, say
from squashmount.errors import UsageError

from .conf import GRAPHROOT, RUNROOT, StorageSettings
from .generate import Change, install, left_behind, plan_site, plan_user, require_allowed, require_stores
from .options import EPILOG, add_scope
from .podman import Machine, checked_major
from .program import closed_to_others
from .site import Site, load_site
from .subuid import has_range

_KEPT = (
    "With --write they are installed. What is in them already stays: comments, other keys, and a graphroot, runroot "
    "or ignore_chown_errors that no option names."
)


def add(commands: Any) -> None:
    """Add `generate`."""
    parser = add_command(commands, "generate", "print or install the files", _generate, epilog=EPILOG, more=_KEPT)
    parser.add_argument("stores", nargs="*", metavar="DIR", help="stores made by migrate2scratch, the first wins")
    add_scope(parser)
    parser.add_argument(
        "--from", dest="source", metavar="FILE", help="another site.toml than /etc/squashmount/site.toml"
    )
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


def _generate(args: argparse.Namespace) -> int:
    if args.prefix and not args.site:
        raise UsageError("--prefix belongs to --site.")
    machine = Machine(dict(os.environ), os.getuid(), checked_major(args.podman))
    settings = _settings(args, machine, load_site(args.source))
    require_allowed(settings, machine)
    if args.write and not args.dry_run and not args.site:
        require_stores(settings.stores)
    closed = closed_to_others(settings.mount_program) if args.site else ""
    if closed:
        sys.stderr.write(f"squashmount-conf: warning: other users cannot run {settings.mount_program}: see {closed}\n")
    changes = plan_site(settings, args.prefix) if args.site else plan_user(settings, machine)
    inside = os.path.join(os.path.realpath(args.prefix), "") if args.prefix else "/"
    for change in changes:
        if not os.path.realpath(change.path).startswith(inside):
            hint = "make the symbolic link on its way relative"
            raise UsageError(f"{change.path} leads out of {args.prefix}.", hint=hint)
    if args.write and not args.dry_run:
        install(changes, for_all=args.site)
    if args.json:
        _print_json(changes, machine, written=args.write and not args.dry_run)
    elif args.write:
        _print_summary(changes, args, machine)
    else:
        for change in changes:
            say(f"### {change.path}\n{change.after}")
    return 0


def _settings(args: argparse.Namespace, machine: Machine, site: Site) -> StorageSettings:
    for option in ("graphroot", "runroot"):
        value = getattr(args, option)
        _require_good(option, value, site=args.site)
    ignore = {"yes": True, "no": False, "auto": site.ignore_chown_errors}[args.ignore_chown_errors]
    of_audience = site.stores_of("", ()) if args.site else site.stores_of(_user(machine.uid), _groups())
    return StorageSettings(
        stores=tuple(os.path.abspath(store) for store in args.stores) or of_audience,
        mount_program=_mount_program(args.mount_program or site.mount_program),
        graphroot=args.graphroot or site.graphroot,
        runroot=args.runroot or site.runroot,
        ignore_chown_errors=ignore,
        chown_default=args.site or not has_range(machine.uid),
        podman=machine.podman,
        site=site if args.site else Site(forbidden=site.forbidden),
    )


def _require_good(option: str, value: str | None, *, site: bool) -> None:
    if value and not value.startswith(("/", "$")):
        raise UsageError(f"--{option} {value} is not an absolute path.")
    if value and "${UID}" in value:
        raise UsageError(f"--{option}: Podman fills in $UID, but ${{UID}} becomes nothing.", hint="write $UID")
    if value and site and "$" not in value:
        hint = f"--{option} with $UID in it, in single quotes"
        raise UsageError(f"--{option} {value} is the same for every user.", hint=hint)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups() -> set[str]:
    """Return the groups of this process by name and by number."""
    names = set()
    for gid in {os.getgid(), *os.getgroups()}:
        names.add(str(gid))
        with suppress(KeyError):
            names.add(grp.getgrgid(gid).gr_name)
    return names


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


def _print_json(changes: tuple[Change, ...], machine: Machine, *, written: bool) -> None:
    files = [{"path": item.path, "change": item.kind, "text": item.after} for item in changes]
    say(json.dumps({"podman": machine.podman, "written": written, "files": files}, indent=2))


def _print_summary(changes: tuple[Change, ...], args: argparse.Namespace, machine: Machine) -> None:
    for change in changes:
        kept = f" (the file of before: {change.kept})" if change.kind == "changed" else ""
        say(f"{'would be ' if args.dry_run else ''}{change.kind}: {change.path}{kept}")
    if args.dry_run:
        return
    old = None if args.site else left_behind(changes, machine.environ)
    if old:
        say(f"note: images pulled earlier stay in {old}; `podman --root {old} images` lists them")
    if args.site and args.prefix:
        say("next: boot a node from it, and there: squashmount-conf check")
    elif args.site:
        say("next, as an ordinary user in a new login shell: squashmount-conf check")
    else:
        say("next: squashmount-conf check && podman images")
