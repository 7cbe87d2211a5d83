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
from many import QUICK_SIZES, SIZES, measure_many
from plot import plot
from results import Case, as_text, extra_tables, groups, table, write
from selection import ALL, WORKLOADS, counts, make_stacks, runs
from squashing import FORMATS, HPC, OURS, measure_squashing
from stacks import BenchError, Place, Sample, Skipped, Stack
from targets import outcomes

PARTS = ("containers", "servers", "mig", "many")
"""containers: the workloads, also on bare mounts; servers: memory and processor time of whoever serves."""
ONCE_MORE = 3
"""Rounds of the parts that take long and vary little."""


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    if argv[:1] == ["parallel-fs"]:
        import parallel_fs  # noqa: PLC0415 - another benchmark with inputs of its own

        return parallel_fs.main(argv[1:])
    if argv[:1] == ["hooks"]:
        import hooks  # noqa: PLC0415 - the same

        return hooks.main(argv[1:])
    if argv[:1] == ["ids"]:
        import ids  # noqa: PLC0415 - the same

        return ids.main(argv[1:])
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
        "servers": {},
        "failures": [],
        "skipped": [],
    }
    with _stacks(spec, options.stacks, results) as (place, stacks):
        if "containers" in options.parts:
            _measure(stacks, options, results)
        if "servers" in options.parts:
            _measure_servers(stacks, options, results)
        _measure_others(place, options, results)
        machine["load_after"] = round(os.getloadavg()[0], 1)
    return _report(results, out)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default 5)")
    parser.add_argument("--stacks", type=_names(tuple(ALL)), default=list(ALL), help=", ".join(ALL))
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), help=", ".join(WORKLOADS))
    parser.add_argument("--parts", type=_names(PARTS), default=list(PARTS), help=", ".join(PARTS))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a small image, one at a time")
    size.add_argument(
        "--full", action="store_true", help="a file of 1 GiB; every workload and stack also 8 and 32 at once"
    )
    parser.add_argument("--out", help="results directory (default bench/results/DATE-MACHINE)")
    return parser.parse_args(argv)


def _names(allowed: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(allowed)}")
        return names

    return parse


@contextmanager
def _stacks(spec: Spec, names: list[str], results: dict[str, Any]) -> Iterator[tuple[Place, list[Stack]]]:
    """Make user, product, image, store and the stacks; a stack that cannot be made is a failure, the others go on."""
    lab = Path(os.environ["LAB"])
    shutil.copy(Path(__file__).parent / "launch.py", lab)
    product = install_product(lab)
    user = make_user(lab, "bench", 2011)
    store = lab / "store"
    store.mkdir()
    os.chown(store, user.uid, user.gid)
    with ExitStack() as ending:
        login = Node(user, "login", product)
        ending.callback(login.close)
        place = Place(lab, user, product, store, spec, login)
        _say("the image")
        load_image(spec, login, lab)
        login.migrate("mig", NAME, str(store), timeout=600).ok()
        truth = make_stacks(place, ["native"])[0]
        truth.prepare()
        results["settings"]["entries"] = place.found["image"]
        results["squash_bytes"] = {}
        ready = []
        for stack in make_stacks(place, names):
            _say(f"the stack {stack.name}")
            if stack.name != "native":
                ending.callback(stack.close)
            try:
                stack.prepare()
            except (BenchError, AssertionError, OSError) as err:
                results["failures"].append(f"{stack.name} cannot be made: {str(err)[-500:]}")
                _say(results["failures"][-1])
                continue
            except Skipped as reason:
                results["skipped"].append(f"{stack.name}: {reason}")
                _say(results["skipped"][-1])
                continue
            ready.append(stack)
            if not stack.bare and stack.name != "native":
                results["squash_bytes"][stack.name] = stack.squash().stat().st_size
        results["stacks"] = {stack.name: {"about": stack.about, "bare": stack.bare} for stack in ready}
        os.sync()  # posix_fadvise drops only what is written back
        yield place, ready


def _measure(stacks: list[Stack], options: argparse.Namespace, results: dict[str, Any]) -> None:
    plan = [
        (name, count) for name in options.workloads for count in counts(name, quick=options.quick, full=options.full)
    ]
    results["cases"] = [[workload, state, count] for workload, count in plan for state in ("cold", "warm")]
    for number in range(options.rounds):
        for workload, count in plan:
            begun = time.monotonic()
            for stack in stacks:
                if runs(stack, workload, count, full=options.full):
                    _measure_pair(stack, workload, count, results)
            _say(f"round {number + 1} of {options.rounds}: {workload} x{count} took {time.monotonic() - begun:.1f} s")


def _measure_servers(stacks: list[Stack], options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Once for each: not timed, and memory hardly varies."""
    begun = time.monotonic()
    for workload in options.workloads:
        for stack in stacks:
            if stack.name != "native" and workload != "first" and runs(stack, workload, 1, full=True):
                with _failures_into(results, f"{stack.name}, servers after {workload}"):
                    results["servers"].setdefault(workload, {})[stack.name] = asdict(stack.cost(workload))
    _say(f"memory and processor time of the servers took {time.monotonic() - begun:.1f} s")


def _measure_others(place: Place, options: argparse.Namespace, results: dict[str, Any]) -> None:
    rounds = min(options.rounds, ONCE_MORE)
    if "mig" in options.parts:
        names = [OURS] if options.quick else list(FORMATS)
        names += [HPC] if HPC in options.stacks else []
        with _failures_into(results, "mig"):
            results["mig"] = measure_squashing(place, names, rounds, _say)
    if "many" in options.parts:
        sizes = QUICK_SIZES if options.quick else SIZES
        with _failures_into(results, "images of many files"):
            results["many"] = measure_many(place, options.stacks, sizes, options.rounds, _say)


@contextmanager
def _failures_into(results: dict[str, Any], what: str) -> Iterator[None]:
    try:
        yield
    except (BenchError, AssertionError, OSError) as err:
        results["failures"].append(f"{what}: {str(err)[-500:]}")
        _say(results["failures"][-1])


def _measure_pair(stack: Stack, workload: str, count: int, results: dict[str, Any]) -> None:
    """First container and second container of a node."""
    with _failures_into(results, f"{stack.name}, {workload} x{count}"):
        stack.cold()
        for state in ("cold", "warm"):
            _record(results, str(Case(workload, state, count)), stack.name, stack.sampled(workload, count))
        stack.rest()


def _record(results: dict[str, Any], case: str, stack: str, sample: Sample) -> None:
    kinds = results["samples"].setdefault(case, {}).setdefault(stack, {})
    for kind, value in asdict(sample).items():
        kinds.setdefault(kind, []).append(None if value is None else round(value, 4))


def _report(results: dict[str, Any], out: Path) -> int:
    if not results["samples"] and not extra_tables(results):
        _say("nothing was measured")
        return 1
    for title, stacks, reference in groups(results):
        for kind in ("wall", "inside"):
            rows = table(results, stacks, reference, kind)
            if len(rows) > 1 and not (kind == "inside" and results["stacks"][stacks[0]]["bare"]):
                print(f"\n{title}, {kind}, seconds: median (min-max) x ratio to {reference}\n{as_text(rows)}")
    for title, _text, rows in extra_tables(results):
        print(f"\n{title}\n{as_text(rows)}")
    rows = [["target", "bar", "measured", ""]]
    rows += [[one.text, one.bar, one.measured, one.verdict] for one in outcomes(results)]
    print(f"\n{as_text(rows)}")
    write(results, rows, out)
    if results["samples"]:
        plot(results, out / "plot.svg")
    print(f"\n{out}: README.md, results.json, plot.svg")
    return 1 if results["failures"] else 0


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
