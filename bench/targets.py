"""The ratios the project wants to reach, from one run's medians; left out where a stack or workload is absent."""

from dataclasses import dataclass
from typing import Any

from results import Case, median_of


@dataclass(frozen=True)
class Target:
    """`value(left) / value(right)` is to be at most `limit` (or at least, where `at_least`)."""

    text: str
    left: tuple[str, Case]
    right: tuple[str, Case]
    limit: float
    kind: str = "wall"
    at_least: bool = False
    """The ratio is of rates: right's seconds by left's."""


def _of(stack: str, workload: str, state: str, count: int = 1) -> tuple[str, Case]:
    return stack, Case(workload, state, count)


OURS, NATIVE, HPC = "ours-wire", "native", "podman-hpc"
BARE, LL, KERNEL = "bare-wire", "bare-squashfuse_ll", "bare-kernel"

TARGETS = [
    Target("import storm, warm, ours / native", _of(OURS, "import", "warm"), _of(NATIVE, "import", "warm"), 1.05),
    Target("import storm, first, ours / native warm", _of(OURS, "import", "cold"), _of(NATIVE, "import", "warm"), 1.6),
    Target("import storm, first, ours / podman-hpc", _of(OURS, "import", "cold"), _of(HPC, "import", "cold"), 0.30),
    *(
        Target(
            f"import storm, {count} at once, ours / {name}",
            _of(OURS, "import", "warm", count),
            _of(stack, "import", "warm", count),
            limit,
        )
        for count in (8, 32)
        for name, stack, limit in (("native", NATIVE, 1.15), ("podman-hpc", HPC, 0.35))
    ),
    Target(
        "open storm, rate ours / native",
        _of(OURS, "open", "warm"),
        _of(NATIVE, "open", "warm"),
        0.9,
        kind="inside",
        at_least=True,
    ),
    Target(
        "open storm, rate ours / squashfuse_ll under kernel overlay",
        _of(OURS, "open", "warm"),
        _of("ours-squashfuse_ll", "open", "warm"),
        2.0,
        kind="inside",
        at_least=True,
    ),
    *(
        Target(
            f"{text}, bare, cold, ours / {other}",
            _of(BARE, workload, "cold"),
            _of(stack, workload, "cold"),
            limit,
            kind="inside",
        )
        for text, workload, limits in (
            ("walk + lstat", "walk", (0.25, 0.8)),
            ("sequential read", "read", (0.5, 0.7)),
            ("small files", "small", (0.5, 1.1)),
        )
        for other, stack, limit in (("squashfuse_ll", LL, limits[0]), ("kernel squashfs", KERNEL, limits[1]))
    ),
    Target("`podman run true`, warm, ours / podman-hpc", _of(OURS, "true", "warm"), _of(HPC, "true", "warm"), 0.5),
]


@dataclass(frozen=True)
class Outcome:
    """A target beside what was measured."""

    text: str
    bar: str
    measured: str
    met: bool


def outcomes(results: dict[str, Any]) -> list[Outcome]:
    """Return the targets this run can say something about."""
    found = []
    for target in TARGETS:
        left, right = (median_of(results, stack, case, target.kind) for stack, case in (target.left, target.right))
        if left is None or right is None:
            continue
        ratio = right / left if target.at_least else left / right
        met = ratio >= target.limit if target.at_least else ratio <= target.limit
        found.append(Outcome(target.text, f"{'≥' if target.at_least else '≤'} {target.limit:g}", f"{ratio:.2f}", met))
    ours, native = (median_of(results, stack, Case("true", "warm", 1), "wall") for stack in (OURS, NATIVE))
    if ours is not None and native is not None:
        extra = (ours - native) * 1000
        found.append(Outcome("`podman run true`, warm, ours - native", "≤ 40 ms", f"{extra:.0f} ms", extra <= 40))
    return found
