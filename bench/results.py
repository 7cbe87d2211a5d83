"""What a run found, and how it is written: table, JSON, Markdown."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("wall", "inside", "first")
ABOUT_KINDS = {
    "wall": "from `podman run` (on a bare mount: of the work) until the last container ended",
    "inside": "of the work alone, as the container's own clock saw it; median over the containers",
    "first": "from `podman run` to the first line of the program in the container",
}


CELLS = (
    "Cells: seconds, median (min-max) and the ratio of the medians. *cold*: first container of the node: no server "
    "runs, the page cache of the squash file (native: of the layers' files) was dropped by posix_fadvise(DONTNEED), "
    "the machine's other caches were not. *warm*: the container after it. *xN*: N at once."
)


@dataclass(frozen=True)
class Case:
    """What is run: a workload, on a fresh node (cold) or beside a running server (warm), so many at once."""

    workload: str
    state: str
    count: int

    def __str__(self) -> str:
        """Return how tables call it."""
        return f"{self.workload} {self.state} x{self.count}"


def values_of(results: dict[str, Any], stack: str, case: Case, kind: str) -> list[float]:
    """Return the samples in seconds, [] when there are none."""
    values = results["samples"].get(str(case), {}).get(stack, {}).get(kind, [])
    return [float(value) for value in values if value is not None]


def median_of(results: dict[str, Any], stack: str, case: Case, kind: str) -> float | None:
    """Return the median in seconds, None when there is no sample."""
    values = values_of(results, stack, case, kind)
    return statistics.median(values) if values else None


def cases_of(results: dict[str, Any], stacks: list[str]) -> list[Case]:
    """Return the cases in which any of the stacks was measured."""
    cases = [Case(*one) for one in results["cases"]]
    return [case for case in cases if any(values_of(results, stack, case, "wall") for stack in stacks)]


def groups(results: dict[str, Any]) -> list[tuple[str, list[str], str]]:
    """Return title, stacks and reference of the two comparisons: containers, and bare mounts."""
    bare = [name for name, stack in results["stacks"].items() if stack["bare"]]
    boxed = [name for name, stack in results["stacks"].items() if not stack["bare"]]
    found = [("Containers", boxed, "native"), ("Bare mounts, as root", bare, "bare-kernel")]
    return [
        (title, stacks, reference if reference in stacks else stacks[0]) for title, stacks, reference in found if stacks
    ]


def table(results: dict[str, Any], stacks: list[str], reference: str, kind: str) -> list[list[str]]:
    """Return rows of text, the first is the heading: seconds median (min-max) and the ratio to the reference."""
    rows = [["", *stacks]]
    for case in cases_of(results, stacks):
        base = median_of(results, reference, case, kind)
        cells = [_cell(values_of(results, stack, case, kind), base) for stack in stacks]
        if any(cells):
            rows.append([str(case), *cells])
    return rows


def _cell(values: list[float], base: float | None) -> str:
    if not values:
        return ""
    ratio = f" x{statistics.median(values) / base:.2f}" if base else ""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f}){ratio}"


def as_text(rows: list[list[str]]) -> str:
    """Return aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def markdown(results: dict[str, Any], target_rows: list[list[str]]) -> str:
    """Return the whole report."""
    machine, settings = results["machine"], results["settings"]
    parts = [
        f"# Benchmark of {results['date']}",
        _machine(machine),
        f"{settings['rounds']} rounds, the stacks interleaved. Image: {_sizes(results)}. Squash files: "
        + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in results["squash_bytes"].items())
        + f". Command: `scripts/bench {settings['arguments']}`.",
        CELLS,
        "![plot](plot.svg)",
        *(f"- **{name}**: {stack['about']}" for name, stack in results["stacks"].items()),
    ]
    if len(target_rows) > 1:
        parts += ["## Targets", as_markdown(target_rows)]
    for title, stacks, reference in groups(results):
        parts.append(f"## {title}")
        for kind in KINDS:
            rows = table(results, stacks, reference, kind)
            if len(rows) > 1 and not (kind == "inside" and results["stacks"][stacks[0]]["bare"]):
                parts += [f"*{kind}*: {ABOUT_KINDS[kind]}; ratios to {reference}.", as_markdown(rows)]
    if results["failures"]:
        parts += ["## Failures", *(f"- {line}" for line in results["failures"])]
    # list items belong together, everything else stands apart
    text = "\n\n".join(parts)
    return text.replace("\n\n- **", "\n- **").replace("![plot](plot.svg)\n- ", "![plot](plot.svg)\n\n- ") + "\n"


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpus']} processors ({machine['cpu']}), {machine['memory_mib']} MiB memory, {machine['system']}, "
        f"Linux {machine['kernel']}; {versions}. Load average before {machine['load_before']}, after "
        f"{machine['load_after']} (the benchmark's own included)."
        + (f" squashmount at {machine['revision']}." if machine.get("revision") else "")
    )


def _sizes(results: dict[str, Any]) -> str:
    spec = results["settings"]["spec"]
    return (
        f"Debian 12 with Python, {spec['modules']} generated modules, a file of {spec['big_mib']} MiB, {spec['small']} "
        f"files of 1-64 KiB, {results['settings']['entries']} files and directories in all"
    )


def write(results: dict[str, Any], target_rows: list[list[str]], out: Path) -> None:
    """Write results.json and README.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / "README.md").write_text(markdown(results, target_rows))
