"""What a check says: how bad, what, why, and what to do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from squashmount.errors import EXIT_FINDINGS


class Severity(Enum):
    """How bad it is; an error means that containers do not start or data is at risk."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: the id of the check, what is seen, the cause, what to type."""

    severity: Severity
    what: str
    why: str
    fix: str
    id: str = ""
    evidence: str = ""

    def __str__(self) -> str:
        lines = [f"{self.severity.value}{self.id and ' ' + self.id}: {self.what}"]
        for label, text in (("seen", self.evidence), ("why", self.why), ("fix", self.fix)):
            if text:
                lines.append(f"  {label}: " + text.replace("\n", "\n    "))
        return "\n".join(lines)

    def as_json(self) -> dict[str, str]:
        """Return it as `--json` prints it; keys without text are there, too."""
        return {
            "id": self.id,
            "severity": self.severity.value,
            "what": self.what,
            "evidence": self.evidence,
            "why": self.why,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Fact:
    """What is so, without being good or bad: shown in the head of the doctor's answer."""

    name: str
    value: str


def error(what: str, why: str, fix: str, *, id: str = "", evidence: str = "") -> Finding:  # noqa: A002 - the field's name
    """Return a finding that stops containers, or puts data or other users at risk."""
    return Finding(Severity.ERROR, what, why, fix, id, evidence)


def warning(what: str, why: str, fix: str, *, id: str = "", evidence: str = "") -> Finding:  # noqa: A002 - the same
    """Return a finding that will bite somebody."""
    return Finding(Severity.WARNING, what, why, fix, id, evidence)


def info(what: str, why: str, fix: str, *, id: str = "", evidence: str = "") -> Finding:  # noqa: A002 - the same
    """Return a finding that is good to know."""
    return Finding(Severity.INFO, what, why, fix, id, evidence)


def exit_code(findings: Iterable[Finding], *, strict: bool = False) -> int:
    """Return 11 where something is wrong, else 0; a warning counts with `strict` only."""
    counted = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    return EXIT_FINDINGS if any(finding.severity in counted for finding in findings) else 0


def summary(findings: Sequence[Finding]) -> str:
    """Return how many of each severity, as in `2 errors, 1 warning, 4 info`."""
    counts = {kind: sum(finding.severity is kind for finding in findings) for kind in Severity}
    some = [f"{number} {kind.value}{_ending(kind, number)}" for kind, number in counts.items() if number]
    return ", ".join(some) or "nothing wrong"


def _ending(kind: Severity, number: int) -> str:
    return "" if number == 1 or kind is Severity.INFO else "s"
