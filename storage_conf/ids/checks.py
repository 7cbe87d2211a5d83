"""Every check of a site, in the order in which they are told. A09 is `compare`'s, A13 the baseline's."""

from collections.abc import Callable, Iterator

from . import node_checks, range_checks
from .site import Site
from .verdict import Verdict

CHECKS: tuple[tuple[str, Callable[[Site], Iterator[Verdict]]], ...] = (
    ("A01", range_checks.entries),
    ("A02", range_checks.overlapping),
    ("A03", range_checks.real_ids),
    ("A04", range_checks.reserved),
    ("A05", range_checks.missing_or_stale),
    ("A06", range_checks.sizes),
    ("A07", range_checks.several),
    ("A08", range_checks.unequal),
    ("A10", range_checks.conflicts),
    ("A11", node_checks.large_files),
    ("A12", node_checks.login_defs),
    ("A14", range_checks.formula),
    ("A15", node_checks.sssd),
    ("A16", node_checks.access),
    ("A17", node_checks.transport),
    ("A18", node_checks.complete),
    ("A19", node_checks.shadow_bug),
)


def run_checks(site: Site) -> list[Verdict]:
    """Run them all."""
    return [verdict for _, check in CHECKS for verdict in check(site)]
