"""The commands `squashmount-conf ids fingerprint` and `ids compare`."""

import argparse
import json
import pwd
import sys
from typing import Any

from squashmount.command_line import add_command, say
from squashmount.errors import UsageError

from ..doctor.node import Node
from ..finding import exit_code, summary
from ..options import EPILOG
from .compare import Values, differences, findings_of, fingerprint, folded, grouped, read_fingerprints
from .inventory import opened
from .verdict import number

FORMAT = 1


def add(commands: Any) -> None:
    """Add both."""
    one = add_command(
        commands,
        "fingerprint",
        "say as one line of JSON what decides about ranges on this node",
        _fingerprint,
        epilog=EPILOG,
        more="srun --ntasks-per-node=1 squashmount-conf ids fingerprint | squashmount-conf ids compare -",
    )
    one.add_argument("--user", action="append", metavar="NAME", help="ask for this user's ranges, too (default: you)")
    one.add_argument("--root", metavar="DIR", default="/", help="look at the node image in DIR")
    one.add_argument("--timeout", type=float, default=10, metavar="SECONDS", help="for sssd's answers (default 10)")
    many = add_command(
        commands,
        "compare",
        "say which nodes differ, and in what, by their fingerprints",
        _compare,
        epilog=EPILOG,
    )
    many.add_argument("files", nargs="+", metavar="FILE", help="fingerprints, one a line; -: standard input")
    many.add_argument("--nodes", type=int, metavar="N", help="so many nodes must have said something")
    many.add_argument("--strict", action="store_true", help="a warning counts as wrong too")
    many.add_argument("--json", action="store_true", help="one JSON object instead of text, with all names")


def _fingerprint(args: argparse.Namespace) -> int:
    node = Node(root=args.root)
    users = args.user or _who(node)
    say(json.dumps(fingerprint(node, users, seconds=args.timeout), sort_keys=True))
    return 0


def _who(node: Node) -> list[str]:
    try:
        return [pwd.getpwuid(node.uid).pw_name] if node.uid else []
    except KeyError:
        return []


def _compare(args: argparse.Namespace) -> int:
    nodes: dict[str, list[Values]] = {}
    for name in args.files:
        if name == "-":
            read_fingerprints(sys.stdin.buffer, name="standard input", into=nodes)
            continue
        with opened(name) as file:
            if file is None:
                raise UsageError(f"{name} does not exist.")
            read_fingerprints(file, name=name, into=nodes)
    if not nodes:
        raise UsageError("There is no fingerprint in what was given.", hint="squashmount-conf ids fingerprint")
    verdicts = list(differences(nodes, expected=args.nodes))
    findings = findings_of(verdicts)
    groups = grouped(nodes)
    if args.json:
        as_json = [{"nodes": group.nodes, "differs": group.differs} for group in groups]
        found = [verdict.as_json() for verdict in verdicts]
        say(json.dumps({"format": FORMAT, "nodes": len(nodes), "groups": as_json, "findings": found}, indent=2))
    else:
        for finding in findings:
            say(str(finding))
        for group in groups:
            differs = f": differ in {', '.join(group.differs)}" if group.differs else ""
            say(f"{number(len(group.nodes), 'node')}{differs}: {folded(group.nodes)}")
        say(f"{number(len(nodes), 'node')} in {number(len(groups), 'group')}: {summary(findings)}")
    return exit_code(findings, strict=args.strict)
