"""What explains other findings: the ids for `Probe.explained_by`, in one place; and what explains Podman's words."""

import shlex

from squashmount.errors import ToolError

ELSEWHERE = "S09"
"""Error after which every other check would judge another user's Podman."""

NO_RANGES = ("U01", "U02", "U03", "U04", "U05", "U06", "U07", "U08", "U10", "U11", "U12", "U13")
"""Errors after which nobody can say which ids are the user's, or nobody would map them."""

NO_NAMESPACE = (*NO_RANGES, "U20", "U21", "U22", "U23", "U24", "U30", "U31")
"""Errors after which Podman has no user namespace to look into."""


def explained(err: ToolError) -> str:
    """Return the command that explains the last thing a program said."""
    said = (err.details.strip().splitlines() or [err.brief])[-1]
    return f"squashmount-conf doctor --explain {shlex.quote(said)}"
