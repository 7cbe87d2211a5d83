"""The command `squashmount-conf doctor`: a user on a node asks why containers do not start, or are slow."""

import argparse
import difflib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from squashmount.command_line import add_command, say
from squashmount.errors import UsageError

from ..finding import Finding, exit_code, summary
from ..options import EPILOG
from .causes import ELSEWHERE
from .node import Node
from .probe import Outcome, Probe, examine

FORMAT = 1
"""Of the JSON object; it grows with keys, and changes when one means something else."""

MODULES = (
    "surroundings",
    "identity",
    "privileges",
    "session",
    "storage",
    "live",
    "podman_view",
    "system",
    "squash",
)
"""Whose PROBES are run, in the order in which they are told."""


@dataclass(frozen=True)
class Report:
    """What one run of the doctor says: everything that is printed, or goes into a support bundle."""

    host: str
    user: str
    uid: int
    podman: str
    checked: tuple[str, ...]
    skipped: dict[str, str]
    facts: dict[str, str]
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "format": FORMAT,
            "host": self.host,
            "user": self.user,
            "uid": self.uid,
            "podman": self.podman,
            "findings": [finding.as_json() for finding in self.findings],
            "checked": list(self.checked),
            "skipped": self.skipped,
            "facts": self.facts,
        }

    def as_text(self) -> str:
        """Return the facts, the findings, the worst first, and one line that sums them up."""
        order = {"error": 0, "warning": 1, "info": 2}
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [str(finding) for finding in sorted(self.findings, key=lambda one: order[one.severity.value])]
        if self.skipped:
            causes = sorted(set(self.skipped.values()))
            lines.append(f"not looked at because of {', '.join(causes)}: {', '.join(sorted(self.skipped))}")
        lines.append(f"{self.user} on {self.host}, {len(self.checked)} checks: {summary(self.findings)}")
        return "\n".join(lines)


def add(commands: Any) -> None:
    """Add `doctor`."""
    parser = add_command(
        commands,
        "doctor",
        "say why containers do not start here, for you, and what to type",
        _doctor,
        epilog=EPILOG,
        more="It changes nothing, and no check can hang it.",
    )
    parser.add_argument("--only", metavar="ID,...", help="these checks only, such as U07,U42")
    parser.add_argument("--strict", action="store_true", help="a warning counts as wrong too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--baseline", metavar="FILE", default="", help="compare your ranges with what `ids baseline` kept (U54)"
    )
    parser.add_argument(
        "--bundle",
        metavar="FILE",
        help="write a tar.gz for who helps you: no names, no secrets; read it before you send it",
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--explain",
        metavar="MESSAGE",
        help="say what a message of Podman, newuidmap, crun or ours means, and no more; -: all in a log on stdin",
    )
    words.add_argument("--catalogue", action="store_true", help="print all known messages (docs/errors.md)")


def _doctor(args: argparse.Namespace) -> int:
    if args.explain is not None or args.catalogue:
        from .explain import explain, print_catalogue  # noqa: PLC0415 - the catalogue is not needed to examine a node

        return print_catalogue() if args.catalogue else explain(args.explain, as_json=args.json)
    if args.baseline and not os.path.isfile(args.baseline):
        raise UsageError(f"There is no file {args.baseline}.", hint="squashmount-conf ids baseline save FILE makes one")
    report = examined(all_probes(), args.only, baseline=args.baseline)
    if args.bundle:
        from .bundle import write_bundle  # noqa: PLC0415 - the same

        write_bundle(args.bundle, Node(), report.as_json())
    say(json.dumps(report.as_json(), indent=2) if args.json else report.as_text())
    return exit_code(report.findings, strict=args.strict)


def all_probes() -> tuple[Probe, ...]:
    """Return every probe there is, in the order their findings are told; none judges the wrong user (S09)."""
    from importlib import import_module  # noqa: PLC0415 - the other commands do without them

    modules = (import_module(f".{name}", __package__) for name in MODULES)
    probes = (probe for module in modules for probe in module.PROBES)
    return tuple(
        probe if ELSEWHERE in probe.ids else replace(probe, explained_by=(ELSEWHERE, *probe.explained_by))
        for probe in probes
    )


def examined(probes: Sequence[Probe], only: str | None = None, *, baseline: str = "") -> Report:
    """Run the probes, or those that the ids in `only` belong to. UsageError for an id that no probe has."""
    chosen = chosen_probes(probes, only) if only else tuple(probes)
    ids = tuple(name for probe in chosen for name in probe.ids)
    node = Node(baseline=baseline)
    outcome = examine(chosen, node)
    facts = dict(outcome.facts)
    return Report(
        host=os.uname().nodename,
        user=facts.pop("user", node.environ.get("USER", str(node.uid))),  # passwd may hang: a probe asks it
        uid=node.uid,
        podman=facts.pop("podman", ""),
        checked=tuple(name for name in ids if name not in outcome.skipped),
        skipped=outcome.skipped,
        facts=facts,
        findings=_chosen_findings(outcome, ids),
    )


def chosen_probes(probes: Sequence[Probe], only: str) -> tuple[Probe, ...]:
    """Return the probes of a list of ids, each with these ids alone."""
    wanted = [word.strip().upper() for word in only.split(",") if word.strip()]
    known = [name for probe in probes for name in probe.ids]
    for word in wanted:
        if word not in known:
            raise UsageError(f"There is no check {word}.", hint=_near(word, known))
    chosen = ((probe, tuple(name for name in probe.ids if name in wanted)) for probe in probes)
    return tuple(replace(probe, ids=ids) for probe, ids in chosen if ids)


def _near(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"the checks are {', '.join(known)}"


def _chosen_findings(outcome: Outcome, ids: Sequence[str]) -> tuple[Finding, ...]:
    return tuple(finding for finding in outcome.findings if finding.id in ids)
