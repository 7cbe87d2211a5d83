"""Every stack by its name, in the order of measuring, and what each of them runs."""

from bare import BareKernel, BareNewest, BarePyfuse3, BareSquashfuse, BareWire
from stacks import (
    ByHand,
    ByHandNewest,
    Native,
    OursProfiled,
    OursSquashfuse,
    OursWire,
    OursWireFuse,
    Place,
    PodmanHpcStack,
    Stack,
)

ALL: dict[str, type[Stack]] = {
    kind.name: kind
    for kind in (
        Native,
        OursWire,
        OursProfiled,
        OursSquashfuse,
        OursWireFuse,
        ByHand,
        ByHandNewest,
        PodmanHpcStack,
        BareKernel,
        BareWire,
        BarePyfuse3,
        BareSquashfuse,
        BareNewest,
    )
}

WORKLOADS = ("true", "first", "import", "numeric", "walk", "read", "random", "small", "open")
BARE = {"walk", "read", "random", "small"}
"""Workloads of bare mounts, one at a time."""
CROWD = {"native", "ours-wire", "ours-profiled", "squashfuse+fuse-overlayfs", "podman-hpc"}
"""Stacks that also run 8 and 32 at once when not everything does: all would take longer than the rest together."""


def make_stacks(place: Place, names: list[str]) -> list[Stack]:
    """Return the named stacks in the order of ALL."""
    return [kind(place) for name, kind in ALL.items() if name in names]


PROFILED = {"true", "import"}
"""What ours-profiled runs: what the profile was made for, and the price of a profile that is not needed."""


def counts(workload: str, *, quick: bool, full: bool) -> tuple[int, ...]:
    """Return how many containers at once a workload is measured with."""
    if quick or workload == "first":
        return (1,)
    if full or workload == "import":
        return (1, 8, 32)
    return (1, 8) if workload in {"true", "numeric"} else (1,)


def runs(stack: Stack, workload: str, count: int, *, full: bool) -> bool:
    """Tell whether a stack takes part in a case."""
    if stack.bare:
        return workload in BARE and count == 1
    if stack.name == OursProfiled.name and workload not in PROFILED:
        return False
    return full or count == 1 or stack.name in CROWD
