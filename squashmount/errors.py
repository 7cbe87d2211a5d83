"""The error tree. An error is a sentence, details and a hint: data, not formatting.

Library code raises; only a `main()` turns an error into an exit code (`report`). A `SquashmountError` never shows a
traceback, a bug always does.

Exit codes, the same for every command of this project:

====  =============================================================
0     done
1     any other failure (`SquashmountError`)
2     wrong use of the command line or a bad configuration file (`UsageError`)
3     image not found (`ImageNotFoundError`)
4     name or ID matches several images (`AmbiguousImageError`)
5     the store is missing, not ours, damaged or of a newer format (`StoreError`)
6     no space, quota exceeded, or not writable (`SpaceError`)
7     another process holds the store and did not finish in time (`BusyError`)
8     a program is missing, too old, or failed (`ToolError`)
9     this machine cannot do it: no user namespace, FUSE, id range (`HostError`)
10    a squash file or an LDIF is damaged or is something else (`DamagedError`)
11    a check found something wrong (`squashmount-conf check`, `migrate2scratch verify`)
130   interrupted (Ctrl-C, SIGTERM); everything unfinished was removed
====  =============================================================
"""

import sys

EXIT_FINDINGS = 11
EXIT_INTERRUPTED = 130


class SquashmountError(Exception):
    """What went wrong in one sentence, the cause in details, and what to type in the hint."""

    exit_code = 1

    def __init__(self, brief: str, *, details: str = "", hint: str = "") -> None:
        """Keep the three parts apart so that a caller can show or add to each."""
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.brief]
        if self.details:
            lines += ["  " + line for line in self.details.splitlines()]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class UsageError(SquashmountError):
    """The command line, an environment variable or a configuration file says something impossible."""

    exit_code = 2


class ImageNotFoundError(SquashmountError):
    """No image of that name, digest or ID in the store."""

    exit_code = 3


class AmbiguousImageError(SquashmountError):
    """An ID prefix or short name fits several images."""

    exit_code = 4


class StoreError(SquashmountError):
    """The store is missing, not ours, damaged, or written by a newer version."""

    exit_code = 5


class SpaceError(SquashmountError):
    """No space, no quota or no permission where something must be written."""

    exit_code = 6


class BusyError(SquashmountError):
    """Somebody else holds the lock and did not release it in time."""

    exit_code = 7


class ToolError(SquashmountError):
    """A program is missing, too old, or ended with an error."""

    exit_code = 8


class HostError(SquashmountError):
    """The machine lacks something that cannot be worked around here."""

    exit_code = 9


class DamagedError(SquashmountError):
    """A squash file, or LDIF, whose bytes contradict the format."""

    exit_code = 10


def report(error: SquashmountError, *, program: str) -> int:
    """Print the error on stderr (the only stream Podman shows of a mount program) and return its exit code."""
    sys.stderr.write(f"{program}: {error}\n")
    return error.exit_code
