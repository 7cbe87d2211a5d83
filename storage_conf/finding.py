"""What a check says: how bad, what, why, and what to do."""

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad it is; an error means that containers do not start or data is at risk."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    severity: Severity
    what: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.what}\n  why: {self.why}\n  fix: {self.fix}"


def error(what: str, why: str, fix: str) -> Finding:
    """Return a finding that stops containers."""
    return Finding(Severity.ERROR, what, why, fix)


def warning(what: str, why: str, fix: str) -> Finding:
    """Return a finding that will bite somebody."""
    return Finding(Severity.WARNING, what, why, fix)


def info(what: str, why: str, fix: str) -> Finding:
    """Return a finding that is good to know."""
    return Finding(Severity.INFO, what, why, fix)
