"""What scripts/bench parallel-fs found: tables, a model of the time, targets, Markdown, plot."""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", os.environ["LAB"])  # its font cache goes with the lab

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure
from results import as_markdown, as_text
from targets import Outcome

MIB = 1 << 20
OURS, PROFILED, SQUASHFUSE = "ours-wire", "ours-profiled", "squashfuse_ll+kernel"
MANY = 1000
FAST_GIB = (1, 10, 100)
"""Bandwidths of real file systems, GiB/s, for the extrapolation."""
COLOURS = ("#c1440e", "#e9a03b", "#1d3557", "#457b9d", "#6c757d")

Rows = list[list[str]]

ABOUT = """\
The store lies behind `bench/passthrough.py`, a FUSE file system that stands for the client of a parallel file
system: one mount for each simulated node, so each has a page cache of its own; names and attributes are valid for a
second, requests carry up to 1 MiB, read-ahead as usual for Linux up to 1 MiB. Every request that reaches it (look-up,
attributes, open, read, directory) sleeps the delay, up to 64 of a node at the same time; what is read waits in one
line for the bandwidth, which all nodes share. The file servers behind it are infinitely fast otherwise: the real file
is in memory. *First container*: no process of the node runs and nothing of the store is cached. The time is from
`podman run` until the container of the import storm has ended."""

MODEL = """\
time(N) = fixed + waits x delay + N x bytes / bandwidth. *fixed* and *waits* (requests that are waited for one after
another) are a straight line through the medians of one node at several delays; *bytes* are counted. The model knows
no processors: here the nodes share {cpus} of them, so many nodes may take longer than it says; and where bytes flow
while the program computes, they take less."""


@dataclass(frozen=True)
class Model:
    """Seconds of the first container on each of N nodes at once."""

    fixed: float
    waits: float
    bytes: float

    def seconds(self, nodes: int, delay: float, bandwidth: float) -> float:
        """`delay` in seconds, `bandwidth` in bytes a second."""
        return self.fixed + self.waits * delay + nodes * self.bytes / bandwidth


def medians(samples: list[dict[str, Any]], kind: str, **where: Any) -> float | None:
    """Return the median of one number over the samples that match, None when there are none."""
    found = [one[kind] for one in samples if all(one[key] == value for key, value in where.items())]
    return statistics.median(found) if found else None


def model_of(results: dict[str, Any], stack: str) -> Model | None:
    """Fit the model to one stack's sweep; None with fewer than two delays."""
    sweep = results["sweep"]
    points = [(delay, medians(sweep, "wall", stack=stack, delay_ms=delay)) for delay in _delays(results)]
    known = [(delay / 1000, wall) for delay, wall in points if wall is not None]
    if len(known) < 2:
        return None
    size = statistics.median(one["bytes"] for one in sweep if one["stack"] == stack)
    slope, at_zero = statistics.linear_regression(*zip(*known, strict=True))
    return Model(at_zero - size / (results["settings"]["bandwidth_mib"] * MIB), slope, size)


def _delays(results: dict[str, Any]) -> list[float]:
    return [float(delay) for delay in results["settings"]["delays_ms"]]


def sweep_table(results: dict[str, Any]) -> Rows:
    """One node: time at each delay; requests and bytes at the middle one."""
    delays = _delays(results)
    middle = delays[len(delays) // 2]
    counted = {
        "squash_requests": "requests, squash file",
        "squash_bytes": "MiB, squash file",
        "requests": "requests, all files",
        "bytes": "MiB, all files",
    }
    rows = [["", *(f"{delay:g} ms" for delay in delays), *counted.values()]]
    for stack in results["stacks"]:
        row = [stack]
        for delay in delays:
            walls = [one["wall"] for one in results["sweep"] if (one["stack"], one["delay_ms"]) == (stack, delay)]
            row.append(f"{statistics.median(walls):.3f} ({min(walls):.3f}-{max(walls):.3f})" if walls else "")
        for kind in counted:
            value = medians(results["sweep"], kind, stack=stack, delay_ms=middle)
            row.append("" if value is None else f"{value / MIB:.1f}" if "bytes" in kind else f"{value:.0f}")
        rows.append(row)
    return rows


def scale_table(results: dict[str, Any]) -> Rows:
    """N nodes at once: measured (the slowest node) and by the model."""
    settings = results["settings"]
    rows = [["", *(f"N = {count}" for count in settings["nodes"])]]
    for stack in results["stacks"]:
        model, row = model_of(results, stack), [stack]
        for count in settings["nodes"]:
            wall = medians(results["scale"], "wall", stack=stack, nodes=count)
            expected = _by_model(model, count, settings) if model else None
            row.append("" if wall is None else f"{wall:.2f}" + (f" (model {expected:.2f})" if expected else ""))
        rows.append(row)
    return rows


def _by_model(model: Model, count: int, settings: dict[str, Any]) -> float:
    return model.seconds(count, settings["scale_delay_ms"] / 1000, settings["shared_bandwidth_mib"] * MIB)


def model_table(results: dict[str, Any]) -> Rows:
    """The model's numbers, and 1,000 nodes."""
    delay = results["settings"]["scale_delay_ms"]
    rows = [["", "fixed, s", "waits", "MiB", *(f"{MANY} nodes, {rate} GiB/s, {delay:g} ms: s" for rate in FAST_GIB)]]
    for stack in results["stacks"]:
        if model := model_of(results, stack):
            many = [model.seconds(MANY, delay / 1000, rate * 1024 * MIB) for rate in FAST_GIB]
            row = [stack, f"{model.fixed:.2f}", f"{model.waits:.0f}", f"{model.bytes / MIB:.1f}"]
            rows.append(row + [f"{seconds:.2f}" for seconds in many])
    return rows


def outcomes(results: dict[str, Any]) -> list[Outcome]:
    """Return the targets beside what was measured, at the middle delay."""
    delays = _delays(results)
    middle = delays[len(delays) // 2]
    found = []
    for stack, needed, how in ((OURS, "needed", "without a profile"), (PROFILED, "needed_profiled", "with a profile")):
        for kind, text in (("squash_requests", "for the squash file"), ("requests", "for all files of the store")):
            ours, theirs = (medians(results["sweep"], kind, stack=one, delay_ms=middle) for one in (stack, SQUASHFUSE))
            if ours is not None and theirs:
                ratio = ours / theirs
                whole = f"requests {text}, import storm, {how}, ours / squashfuse_ll under kernel overlay"
                found.append(Outcome(whole, "≤ 0.25", f"{ratio:.2f}", ratio <= 0.25))
        if (ours := medians(results["sweep"], "squash_bytes", stack=stack, delay_ms=middle)) is not None:
            ratio = ours / results[needed]["bytes"]
            text = f"bytes of the squash file, import storm, {how}, ours / compressed bytes really needed"
            found.append(Outcome(text, "≤ 1.3", f"{ratio:.2f}", ratio <= 1.3))
    return found


def target_table(results: dict[str, Any]) -> Rows:
    """The targets as rows."""
    rows = [["target", "bar", "measured", ""]]
    return rows + [[one.text, one.bar, one.measured, "met" if one.met else "MISSED"] for one in outcomes(results)]


def _sections(results: dict[str, Any]) -> list[tuple[str, str, Rows]]:
    settings, needed = results["settings"], results["needed"]
    middle = _delays(results)[len(_delays(results)) // 2]
    fewest = needed["fewest_requests"]
    targets = (
        f"At a delay of {middle:g} ms. The import really needs {needed['bytes'] / MIB:.1f} MiB of the squash file's "
        f"{needed['squash_bytes'] / MIB:.0f} MiB: {needed['blocks']} distinct blocks as stored, "
        f"{needed['data'] / MIB:.1f} MiB of data and fragments and {needed['metadata'] / MIB:.2f} MiB of metadata "
        "(every name looked up and page read by the program was recorded without read-ahead, then looked up in the "
        "squash file by our reader; bench/needed.py). A reader that knew this beforehand would send at least "
        + ", ".join(f"{count} requests for {times} times the bytes" for times, count in fewest.items())
        + " (the places of the blocks in the file as it is; 1 MiB a request). The requests for all files include "
        "Podman's own: it opens the store's lock files more than a hundred times for each container."
    )
    if laid_out := results.get("needed_profiled"):
        targets += (
            f" Laid out by the profile, the import needs {laid_out['bytes'] / MIB:.1f} MiB in {laid_out['blocks']} "
            f"blocks, at least {laid_out['fewest_requests']['1']} requests for no byte more."
        )
    one = (
        f"Seconds of the first container, median (min-max) of {settings['rounds']}, at each delay of a request; "
        f"{settings['bandwidth_mib']:g} MiB/s. Requests and bytes: medians at {middle:g} ms (results.json has them for "
        "each file and kind)."
    )
    many = (
        f"Seconds until the slowest node's first container has ended; {settings['shared_bandwidth_mib']:g} MiB/s for "
        f"all nodes together, {settings['scale_delay_ms']:g} ms a request. {MODEL.replace(chr(10), ' ')}"
    ).format(cpus=results["machine"]["cpus"])
    beyond = (
        f"The columns of {MANY} nodes are an **extrapolation** of the model, not a measurement: it knows nothing of "
        "what a real file system does under load (queues of its metadata servers, hot objects on one server)."
    )
    return [
        ("Targets", targets, target_table(results)),
        ("One node", one, sweep_table(results)),
        ("Many nodes at once", many, scale_table(results)),
        (f"The model, and {MANY} nodes", beyond, model_table(results)),
    ]


def as_tables(results: dict[str, Any]) -> str:
    """Return the tables for a terminal."""
    return "\n".join(f"\n{title}\n{as_text(rows)}" for title, _about, rows in _sections(results) if len(rows) > 1)


def markdown(results: dict[str, Any]) -> str:
    """Return the whole report."""
    machine, settings = results["machine"], results["settings"]
    spec = settings["spec"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    revision = f"; squashmount at {machine['revision']}" if machine.get("revision") else ""
    made_by = (
        f"{machine['cpus']} processors ({machine['cpu']}), {machine['memory_mib']} MiB memory, {machine['system']}, "
        f"Linux {machine['kernel']}; {versions}{revision}. Load average before {machine['load_before']}. "
        f"{spec['modules']} modules are imported. Command: `scripts/bench parallel-fs {settings['arguments']}`."
    )
    parts = [
        f"# Start-up from a simulated parallel file system, {results['date']}",
        made_by,
        ABOUT.replace("\n", " "),
        "![plot](plot.svg)",
        "\n".join(f"- **{name}**: {about}" for name, about in results["stacks"].items()),
    ]
    for title, about, rows in _sections(results):
        parts += [f"## {title}", about, as_markdown(rows)]
    if results["failures"]:
        parts += ["## Failures", "\n".join(f"- {line}" for line in results["failures"])]
    return "\n\n".join(parts) + "\n"


def write(results: dict[str, Any], out: Path) -> None:
    """Write results.json and README.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results | {"targets": [one.__dict__ for one in outcomes(results)]}, indent=1, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n")
    (out / "README.md").write_text(markdown(results))


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw time against delay, and against the number of nodes; the lines are the model."""
    mpl.rcParams["svg.hashsalt"] = "squashmount"  # the same numbers give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text, not outlines: a tenth of the size
    settings = results["settings"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for number, stack in enumerate(results["stacks"]):
        colour, model = COLOURS[number % len(COLOURS)], model_of(results, stack)
        _points(left, results["sweep"], stack, "delay_ms", _delays(results), colour)
        _points(right, results["scale"], stack, "nodes", settings["nodes"], colour)
        if model:
            delays = [0.0, max(_delays(results))]
            rate = settings["bandwidth_mib"] * MIB
            left.plot(delays, [model.seconds(1, delay / 1000, rate) for delay in delays], color=colour, lw=0.8, ls="--")
            counts = [1, 2, 4, 8, 16, 32, 64, 125, 250, 500, MANY]
            right.plot(counts, [_by_model(model, count, settings) for count in counts], color=colour, lw=0.8, ls="--")
    left.set(xlabel="delay of each request, ms", ylabel="first container, s", title="One node", ylim=(0, None))
    right.set(xlabel="nodes at once", ylabel="slowest first container, s", xscale="log", yscale="log")
    right.set_title(
        f"{settings['shared_bandwidth_mib']:g} MiB/s shared, {settings['scale_delay_ms']:g} ms; dashed: model "
        f"(beyond {max(settings['nodes'])} nodes an extrapolation)",
        fontsize=9,
    )
    left.legend(fontsize=8)
    figure.suptitle("Import storm from a simulated parallel file system", fontsize=10)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _points(axes: Any, samples: list[dict[str, Any]], stack: str, key: str, places: list[Any], colour: str) -> None:  # noqa: PLR0917
    found = [(at, [one["wall"] for one in samples if one["stack"] == stack and one[key] == at]) for at in places]
    known = [(at, walls) for at, walls in found if walls]
    middles = [statistics.median(walls) for _at, walls in known]
    error = [
        [middle - min(walls) for middle, (_at, walls) in zip(middles, known, strict=True)],
        [max(walls) - middle for middle, (_at, walls) in zip(middles, known, strict=True)],
    ]
    axes.errorbar(
        [at for at, _walls in known], middles, yerr=error, color=colour, fmt="o", ms=4, capsize=2, label=stack
    )
