"""scripts/bench hooks: what an OCI hook adds to `podman run` of a squashed image, interleaved. Root, in the lab.

Cases: no hook; a hook that only copies (cat); an interpreter that only copies; ours with nothing to do; ours that swaps
the image's MPICH for the host's, planned anew and with the plan remembered.

Exit codes: 0 measured and both targets met, 1 a target was missed or a container failed, 2 wrong use.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lab import TOP, Node, debian_tar, install_product, make_user, run
from machine import describe, short_name

IMAGE = "localhost/mpich/trixie:1"
SWAP = ("--annotation", "squashmount.mpi=mpich")
COPY = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
TARGETS = {"nothing applies": 20.0, "MPI swapped, plan remembered": 35.0}
"""Milliseconds a case may add to no hook at all, medians."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench hooks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="of all cases in turn (default 15)")
    parser.add_argument("--out", metavar="DIR", help="where results.json and README.md go")
    options = parser.parse_args(argv)
    machine = describe()
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    out = Path(options.out or TOP / "bench/results" / f"{date}-{short_name(machine)}-hooks")
    times = _measured(Path(os.environ["LAB"]), options.rounds)
    medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
    text, missed = _report(date, machine, times, medians)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"date": date, "machine": machine, "seconds": times, "median_ms": medians}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "README.md").write_text(text)
    sys.stdout.write(text)
    return 1 if missed else 0


def _measured(lab: Path, rounds: int) -> dict[str, list[float]]:
    product, user = install_product(lab), make_user(lab, "bench", 2009)
    store = lab / "store"
    store.mkdir()
    os.chown(store, user.uid, user.gid)
    login = Node(user, "login", product)
    login.podman("import", str(debian_tar("trixie", "libmpich12,mpich")), IMAGE, timeout=300).ok()
    login.migrate("mig", IMAGE, str(store), timeout=300).ok()
    login.close()
    # the server stays: what a hook adds is not hidden behind its start
    node = Node(user, "bench", product, stores=(store,), env={"SQUASHMOUNT_LINGER": "600"})
    cases = _cases(lab, product)
    times: dict[str, list[float]] = {name: [] for name in cases}
    try:
        for number in range(rounds + 1):
            for name, arguments in cases.items():
                if name == "MPI swapped, planned anew":
                    shutil.rmtree(node.state() / "hook-plans", ignore_errors=True)
                start = time.perf_counter()
                node.podman(*arguments[0], "run", "--rm", *arguments[1], IMAGE, "true").ok()
                if number:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
    finally:
        node.close()
    return times


def _cases(lab: Path, product: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return for each case Podman's own options, and those of `run`."""
    interpreter = str(product / "bin/python3")
    programs = {"cat": ["/bin/cat"], "interpreter": [interpreter, "-I", "-S", "-c", COPY]}
    for name, argv in programs.items():
        (lab / name).mkdir()
        hook = {"path": argv[0], "args": argv}
        value = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["precreate"]}
        (lab / name / "hook.json").write_text(json.dumps(value))
    # the image's MPICH is newer than that of Debian 12: here only the cost matters
    policy = lab / "hooks.toml"
    policy.write_text('mpi_mismatch = "warn"\n')
    command = str(product / "bin/squashmount-hooks")
    run(command, "install", "--dir", str(lab / "ours"), "--policy", str(policy)).ok()
    ours = ("--hooks-dir", str(lab / "ours"))
    return {
        "no hook": ((), ()),
        "cat": (("--hooks-dir", str(lab / "cat")), ()),
        "interpreter": (("--hooks-dir", str(lab / "interpreter")), ()),
        "nothing applies": (ours, ()),
        "MPI swapped, planned anew": (ours, SWAP),
        "MPI swapped, plan remembered": (ours, SWAP),
    }


def _report(
    date: str, machine: dict[str, Any], times: dict[str, list[float]], medians: dict[str, float]
) -> tuple[str, list[str]]:
    about = (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['system']}, Linux {machine['kernel']}, Podman "
        f"{machine['versions']['podman']}, crun {machine['versions']['crun']}. `podman run --rm IMAGE true`, a "
        f"squashed image, its server running; {len(times['no hook'])} rounds of all cases in turn, wall time in ms."
    )
    lines = [
        f"# What a hook adds to `podman run`, {date}",
        "",
        about,
        "",
        "| case | median | fastest | added to no hook (medians) | of each round (median) | target |",
        "|---|---|---|---|---|---|",
    ]
    missed = []
    for name, values in times.items():
        added = medians[name] - medians["no hook"]
        pairs = statistics.median(a - b for a, b in zip(values, times["no hook"], strict=True)) * 1000
        target = TARGETS.get(name)
        if target is not None and added > target:
            missed.append(name)
        judged = "" if target is None else f"≤ {target:.0f}: {'missed' if name in missed else 'met'}"
        row = (name, f"{medians[name]:.1f}", f"{min(values) * 1000:.1f}", f"{added:+.1f}", f"{pairs:+.1f}", judged)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", "`scripts/bench hooks` repeats it.", ""]), missed
