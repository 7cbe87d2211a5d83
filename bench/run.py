"""scripts/bench: measure the stacks against each other in one run. Root, inside scripts/lab.

Exit codes: 0 everything was measured, 1 a stack failed or found something else than the image holds, 2 wrong use.
"""

import argparse
import datetime as dt
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inputs import NAME, QUICK, Spec, load_image
from lab import TOP, Node, install_product, make_user
from machine import describe, short_name
from plot import plot
from results import Case, as_text, groups, table, write
from stacks import ALL, BenchError, Place, Sample, Stack, make_stacks
from targets import outcomes

WORKLOADS = ("true", "import", "walk", "read", "random", "small", "open")
NOT_BARE = {"true", "import", "open"}
AT_ONCE = ("true", "import")
"""Workloads that also run eight at once; with --full all do, and 32 at once."""


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    if argv[:1] == ["parallel-fs"]:
        import parallel_fs  # noqa: PLC0415 - another benchmark with inputs of its own

        return parallel_fs.main(argv[1:])
    options = _options(argv)
    spec = QUICK if options.quick else Spec()
    if options.full:
        spec = replace(spec, big_mib=1024)
    machine = describe()
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    out = Path(options.out or TOP / "bench/results" / f"{date}-{short_name(machine)}")
    results: dict[str, Any] = {
        "date": date,
        "machine": machine,
        "settings": {"rounds": options.rounds, "arguments": shlex.join(argv), "spec": asdict(spec)},
        "cases": [],
        "samples": {},
        "failures": [],
    }
    with _stacks(spec, options.stacks, results) as stacks:
        _measure(stacks, _plan(options), options.rounds, results)
        machine["load_after"] = round(os.getloadavg()[0], 1)
    return _report(results, out)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default 5)")
    parser.add_argument("--stacks", type=_names(tuple(ALL)), default=list(ALL), help=", ".join(ALL))
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), help=", ".join(WORKLOADS))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a small image, one at a time")
    size.add_argument("--full", action="store_true", help="a file of 1 GiB; everything also 8 and 32 at once")
    parser.add_argument("--out", help="results directory (default bench/results/DATE-MACHINE)")
    return parser.parse_args(argv)


def _names(allowed: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(allowed)}")
        return names

    return parse


def _plan(options: argparse.Namespace) -> list[tuple[str, int]]:
    plan = []
    for workload in options.workloads:
        counts = (1,) if options.quick else (1, 8, 32) if options.full else (1, 8) if workload in AT_ONCE else (1,)
        plan += [(workload, count) for count in counts]
    return plan


@contextmanager
def _stacks(spec: Spec, names: list[str], results: dict[str, Any]) -> Iterator[list[Stack]]:
    """Make user, product, image, store and the stacks; a stack that cannot be made is a failure, the others go on."""
    lab = Path(os.environ["LAB"])
    shutil.copy(Path(__file__).parent / "launch.py", lab)
    product = install_product(lab)
    user = make_user(lab, "bench", 2001)
    store = lab / "store"
    store.mkdir()
    os.chown(store, user.uid, user.gid)
    place = Place(lab, user, product, store, spec)
    with ExitStack() as ending:
        login = Node(user, "login", product)
        ending.callback(login.close)
        _say("the image")
        load_image(spec, login, lab)
        login.migrate("mig", NAME, str(store), timeout=600).ok()
        truth = make_stacks(place, login, ["native"])[0]
        truth.prepare()
        results["settings"]["entries"] = place.found["image"]
        results["squash_bytes"] = {"ours": place.squash().stat().st_size}
        ready = []
        for stack in make_stacks(place, login, names):
            _say(f"the stack {stack.name}")
            if stack.name != "native":
                ending.callback(stack.close)
            try:
                stack.prepare()
            except (BenchError, AssertionError, OSError) as err:
                results["failures"].append(f"{stack.name} cannot be made: {str(err)[-500:]}")
                _say(results["failures"][-1])
                continue
            ready.append(stack)
            if stack.name == "podman-hpc":
                sizes = [path.stat().st_size for path in (lab / "podman-hpc-store").glob("overlay/l/*.squash")]
                results["squash_bytes"]["podman-hpc"] = sum(sizes)
        results["stacks"] = {stack.name: {"about": stack.about, "bare": stack.bare} for stack in ready}
        os.sync()  # posix_fadvise drops only what is written back
        yield ready


def _measure(stacks: list[Stack], plan: list[tuple[str, int]], rounds: int, results: dict[str, Any]) -> None:
    results["cases"] = [[workload, state, count] for workload, count in plan for state in ("cold", "warm")]
    for number in range(rounds):
        for workload, count in plan:
            begun = time.monotonic()
            for stack in stacks:
                if stack.bare and (workload in NOT_BARE or count > 1):
                    continue
                _measure_pair(stack, workload, count, results)
            _say(f"round {number + 1} of {rounds}: {workload} x{count} took {time.monotonic() - begun:.1f} s")


def _measure_pair(stack: Stack, workload: str, count: int, results: dict[str, Any]) -> None:
    """First container and second container of a node."""
    try:
        stack.cold()
        for state in ("cold", "warm"):
            _record(results, str(Case(workload, state, count)), stack.name, stack.measure(workload, count))
        stack.rest()
    except (BenchError, AssertionError, OSError) as err:
        results["failures"].append(f"{stack.name}, {workload} x{count}: {str(err)[-500:]}")
        _say(results["failures"][-1])


def _record(results: dict[str, Any], case: str, stack: str, sample: Sample) -> None:
    kinds = results["samples"].setdefault(case, {}).setdefault(stack, {})
    for kind, value in asdict(sample).items():
        kinds.setdefault(kind, []).append(None if value is None else round(value, 4))


def _report(results: dict[str, Any], out: Path) -> int:
    if not results["samples"]:
        _say("nothing was measured")
        return 1
    for title, stacks, reference in groups(results):
        for kind in ("wall", "inside"):
            rows = table(results, stacks, reference, kind)
            if len(rows) > 1 and not (kind == "inside" and results["stacks"][stacks[0]]["bare"]):
                print(f"\n{title}, {kind}, seconds: median (min-max) x ratio to {reference}\n{as_text(rows)}")
    rows = [["target", "bar", "measured", ""]]
    rows += [[one.text, one.bar, one.measured, "met" if one.met else "MISSED"] for one in outcomes(results)]
    print(f"\n{as_text(rows)}")
    write(results, rows, out)
    plot(results, out / "plot.svg")
    print(f"\n{out}: README.md, results.json, plot.svg")
    return 1 if results["failures"] else 0


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
