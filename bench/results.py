"""What a run found, and how it is written: table, JSON, Markdown."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import many
import squashing

ABOUT_SERVERS = (
    "All processes that serve the container or the bare mount (squash reader, supervisor, fuse-overlayfs), started for "
    "this, after the workload and before the container ends: proportional set size, processor seconds since their "
    "start, number of processes. One sample each."
)
ABOUT_SQUASHING = (
    "From the unpacked image to the published squash file, ours with its checksum and read-back check. Peak memory: "
    "anonymous memory of all processes together, sampled each 50 ms. Ratios to podman-hpc."
)
ABOUT_MOUNTING = "Until `squashmount mount FILE DIR` has returned; page cache of the file dropped before."
ABOUT_MANY = "Bare mounts, as root; files of up to 400 bytes, 100 in a directory. Medians."

KINDS = ("wall", "inside", "first", "cpu")
ABOUT_KINDS = {
    "wall": "from `podman run` (on a bare mount: of the work) until the last container ended",
    "inside": "of the work alone, as the container's own clock saw it; median over the containers",
    "first": "from `podman run` to the first line of the program in the container (workload `first`: date(1), so that "
    "no start of Python is in it)",
    "cpu": "processor seconds of everything together: Podman, containers and servers",
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


def extra_tables(results: dict[str, Any]) -> list[tuple[str, str, list[list[str]]]]:
    """Return title, explanation and rows of what is no workload in a container."""
    found = []
    if results.get("servers"):
        found.append(("Servers", ABOUT_SERVERS, _server_rows(results)))
    if results.get("mig"):
        found.append(("Squashing", ABOUT_SQUASHING, squashing.rows(results["mig"])))
    if results.get("many"):
        size = max(results["many"]["sizes"])
        found += [
            ("Mounting images of very many files", ABOUT_MOUNTING, many.mount_rows(results["many"])),
            (f"An image of {size} files", ABOUT_MANY, many.rows(results["many"])),
        ]
    return [one for one in found if len(one[2]) > 1]


def _server_rows(results: dict[str, Any]) -> list[list[str]]:
    names = [name for name in results["stacks"] if any(name in costs for costs in results["servers"].values())]
    rows = [["", *names]]
    for workload, costs in results["servers"].items():
        rows.append([workload, *(_cost(costs.get(name)) for name in names)])
    return rows


def _cost(cost: dict[str, Any] | None) -> str:
    return f"{cost['pss_mib']:.0f} MiB, {cost['cpu']:.2f} s ({cost['processes']})" if cost else ""


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
        *(["![plot](plot.svg)"] if results["samples"] else []),
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
    for title, text, rows in extra_tables(results):
        parts += [f"## {title}", text, as_markdown(rows)]
    if results["skipped"]:
        parts += ["## Not measured", *(f"- {line}" for line in results["skipped"])]
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
        f"Debian 12 with {_packages(spec)}, {spec['modules']} generated modules, a file of {spec['big_mib']} MiB, "
        f"{spec['small']} files of 1-64 KiB, {results['settings']['entries']} files and directories in all"
    )


def _packages(spec: dict[str, Any]) -> str:
    return str(spec["packages"]).replace(",", ", ").replace("python3-", "")


def write(results: dict[str, Any], target_rows: list[list[str]], out: Path) -> None:
    """Write results.json and README.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / "README.md").write_text(markdown(results, target_rows))
