"""The SVG of a run: for each case a bar for each stack, relative to the reference; whiskers are minimum and maximum."""

import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", os.environ["LAB"])  # its font cache goes with the lab

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure
from results import cases_of, groups, median_of, values_of

OURS = {
    "ours-wire": "#c1440e",
    "ours-profiled": "#8f2d04",
    "ours-squashfuse_ll": "#e58a5c",
    "ours-wire-fuse": "#f2c2a4",
    "bare-wire": "#c1440e",
    "bare-pyfuse3": "#e58a5c",
}
OTHERS = ("#1d3557", "#457b9d", "#8fb8d1", "#b9d3e2", "#6c757d", "#adb5bd", "#495057")
COLUMNS = 4


def plot(results: dict[str, Any], path: Path) -> None:
    """Write the plot."""
    panels = [
        (case, stacks, reference) for _title, stacks, reference in groups(results) for case in cases_of(results, stacks)
    ]
    others = [name for name in results["stacks"] if name not in OURS]
    colours = OURS | {name: OTHERS[number % len(OTHERS)] for number, name in enumerate(others)}
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    mpl.rcParams["svg.hashsalt"] = "squashmount"  # the same numbers give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text, not outlines: a tenth of the size
    figure = Figure(figsize=(3.9 * columns, 2.3 * rows), layout="constrained")
    for number, (case, stacks, reference) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        base = median_of(results, reference, case, "wall")
        shown = [stack for stack in stacks if values_of(results, stack, case, "wall")]
        for row, stack in enumerate(shown):
            values = [value / (base or 1) for value in values_of(results, stack, case, "wall")]
            middle = statistics.median(values)
            error = [[middle - min(values)], [max(values) - middle]]
            axes.barh(row, middle, color=colours[stack], xerr=error, error_kw={"lw": 0.8, "capsize": 2})
            axes.text(max(values), row, f"  {middle:.2f}", va="center", fontsize=7)
        axes.set_yticks(range(len(shown)), shown, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(right=axes.get_xlim()[1] * 1.12)  # room for the numbers
        axes.tick_params(axis="x", labelsize=7)
        axes.axvline(1, color="black", lw=0.6, ls=":")
        unit = f"{base * 1000:.0f} ms" if base else "1 s"
        axes.set_title(f"{case}   ({reference} = {unit})", fontsize=8)
    figure.suptitle(
        "Wall time relative to the reference: shorter is better; whiskers are minimum and maximum", fontsize=9
    )
    figure.savefig(path, format="svg", metadata={"Date": None})
