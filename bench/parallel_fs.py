"""scripts/bench parallel-fs: the import storm with the store on a (simulated) parallel file system. Root, in the lab.

The store is reached through passthrough.py, one mount for each simulated node. First one node, with every delay of
`--delays`: how long the first container takes, how many requests and bytes reach the file system. Then several
nodes at once that share a narrow bandwidth, and a model that is compared with them and extrapolated.

Exit codes: 0 everything was measured, 1 a stack failed or found something else than the image holds, 2 wrong use.
"""

import argparse
import datetime as dt
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inputs import NAME, QUICK, Spec, load_image
from lab import TOP, Node, install_product, make_user
from machine import describe, short_name
from needed import Needed, trace_import
from parallel_report import as_tables, plot, write
from shared import SharedMount
from stacks import WORKLOAD, BenchError, OursWire, Place, PodmanHpcStack, PodmanStack, Sample

MIB = 1 << 20
EXPIRED = 1.2
"""Seconds after which a node's names and attributes have expired (passthrough.LIFETIME, and a little more)."""


class Profiled(OursWire):
    """Ours with a profile of the import: another layout of the squash file, and read ahead."""

    name = "ours-profiled"
    about = "ours-wire, the squash file laid out by a profile of the import (`mig --profile`), read ahead by the server"


class ByHand(PodmanStack):
    """squashfuse_ll started by a ten-line mount program, once for the node."""

    overlay: str

    def make_node(self) -> Node:
        """Return a node with the script as its mount program."""
        place, user = self.place, self.place.user
        at, lock, script = (place.lab / name for name in ("by-hand", "by-hand.lock", "by-hand.sh"))
        at.mkdir()
        lock.touch()
        for path in (at, lock):
            os.chown(path, user.uid, user.gid)
        script.write_text(BY_HAND.format(at=at, squash=place.squash(), overlay=self.overlay))
        script.chmod(0o755)
        return Node(user, self.name, place.product, stores=(place.store,), mount_program=str(script))


BY_HAND = r"""#!/bin/bash
set -eu
at={at}
exec 9>"$at.lock"; flock 9
mountpoint -q "$at" || squashfuse_ll {squash} "$at" 9>&- >/dev/null 2>&1
options=$(sed "s|lowerdir=[^,]*|lowerdir=$at|" <<<"$2")
exec 9>&-
{overlay}
"""


class ByHandKernel(ByHand):
    """The comparison for requests: the same squash file and the same overlay as ours, another reader."""

    name = "squashfuse_ll+kernel"
    about = "squashfuse_ll and kernel overlay by a ten-line mount program, our squash file"
    overlay = 'exec mount -t overlay overlay -o "$options,userxattr" "$3"'


class ByHandFuse(ByHand):
    """What sites do by hand today."""

    name = "squashfuse_ll+fuse-overlayfs"
    about = "squashfuse_ll and fuse-overlayfs by a ten-line mount program, our squash file"
    roots = ("fuse.fuse-overlayfs",)
    overlay = 'exec fuse-overlayfs -o "$options" "$3"'


class Hpc(PodmanHpcStack):
    """podman-hpc with its store moved to the parallel file system once it is made."""

    def prepare(self) -> None:
        """Make its store, then the mount in its place."""
        super().prepare()
        self.end_processes()
        self.local_store = self.squash_dir
        self.squash_dir = self.place.store


STACKS: dict[str, type[PodmanStack]] = {kind.name: kind for kind in (OursWire, Profiled, ByHandKernel, ByHandFuse, Hpc)}
SHORT = {OursWire: "ours", Profiled: "profiled", ByHandKernel: "by-hand", ByHandFuse: "by-hand-fuse", Hpc: "podman-hpc"}
"""A node's name is part of its runroot, of which conmon takes 50 characters: longer, and podman waits 20 s in vain."""
ALONE = {Hpc.name}
"""One node only: its Podman keeps its pause process below /run/user/UID, whatever it is told."""


class SimulatedNode:
    """A stack on a node of its own: graphroot, user and mount namespace, servers, and mount of the file system."""

    def __init__(self, place: Place, name: str, number: int, clock: Path) -> None:
        """Make the directories; `number` tells nodes of one stack apart."""
        self.stack_name = name
        self._clock = clock
        kind = STACKS[name]
        own_name = f"{SHORT[kind]}-{number}"
        folder = place.lab / f"node-{own_name}"
        folder.mkdir(mode=0o755)
        shutil.copy(place.lab / "launch.py", folder)
        source = _profiled_store(place) if kind is Profiled else place.store
        self.mount = SharedMount(source, folder / "store")
        self.stack = kind(replace(place, lab=folder, store=self.mount.at, installed={}))
        self.stack.name = own_name

    def prepare(self) -> None:
        """Run the import once; the mount is there from now on. Raises BenchError when this machine cannot."""
        self.mount.start()
        self.stack.prepare()
        if isinstance(self.stack, Hpc):
            self.mount.close()
            self.mount.source = self.stack.local_store
            run_as = self.stack.place.user
            os.chown(self.mount.at, run_as.uid, run_as.gid)
        squash = max(
            (path for path in self.mount.source.rglob("*") if path.is_file()), key=lambda one: one.stat().st_size
        )
        self.squash = str(squash.resolve().relative_to(self.mount.source.resolve()))

    def cold(self, delay: float, bandwidth: float) -> None:
        """Make the next container the first on this node: no process, nothing cached but what expires in EXPIRED."""
        self.stack.end_processes()
        self.mount.start(delay=delay, bandwidth=bandwidth, clock=self._clock)
        self.stack.restart()
        self.mount.drop_data()

    def measure(self) -> Sample:
        """Run the container."""
        return self.stack.measure("import", 1)

    def traffic(self) -> dict[str, Any]:
        """Return what reached the file system since `forget`."""
        files = self.mount.counts()
        squash = files.get(self.squash, {"bytes": 0})
        return {
            "requests": sum(_requests(row) for row in files.values()),
            "bytes": sum(row["bytes"] for row in files.values()),
            "squash_requests": _requests(squash),
            "squash_bytes": squash["bytes"],
            "files": files,
        }

    def close(self) -> None:
        """End everything of the node."""
        try:
            self.stack.close()
        finally:
            self.mount.close()


def _requests(row: dict[str, int]) -> int:
    return sum(number for kind, number in row.items() if kind != "bytes")


def main(argv: list[str]) -> int:
    """Measure and report."""
    options = _options(argv)
    spec = QUICK if options.quick else Spec()
    machine = describe()
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    out = Path(options.out or TOP / "bench/results" / f"{date}-{short_name(machine)}-parallel-fs")
    results: dict[str, Any] = {
        "date": date,
        "machine": machine,
        "settings": {
            "rounds": options.rounds,
            "arguments": shlex.join(argv),
            "spec": asdict(spec),
            "delays_ms": options.delays,
            "bandwidth_mib": options.bandwidth,
            "shared_bandwidth_mib": options.shared_bandwidth,
            "scale_delay_ms": options.scale_delay,
            "nodes": options.nodes,
        },
        "stacks": {name: STACKS[name].about for name in options.stacks},
        "files": {},
        "sweep": [],
        "scale": [],
        "failures": [],
    }
    with _place(spec, options.stacks, results) as place:
        _measure(place, options, results)
    if not results["sweep"]:
        _say("nothing was measured")
        return 1
    print(as_tables(results))
    write(results, out)
    plot(results, out / "plot.svg")
    print(f"\n{out}: README.md, results.json, plot.svg")
    return 1 if results["failures"] else 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench parallel-fs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--stacks", type=_stack_names, default=list(STACKS), help=", ".join(STACKS))
    parser.add_argument("--delays", type=_numbers(float), default=[0.2, 1.0, 5.0], help="ms (default 0.2,1,5)")
    parser.add_argument("--bandwidth", type=float, default=1000, help="of a lone node, MiB/s (default 1000)")
    parser.add_argument("--nodes", type=_numbers(int), default=[1, 2, 4, 8], help="at once (default 1,2,4,8)")
    parser.add_argument("--shared-bandwidth", type=float, default=10, help="of those, together, MiB/s (default 10)")
    parser.add_argument("--scale-delay", type=float, default=1.0, help="their delay in ms (default 1)")
    parser.add_argument("--quick", action="store_true", help="a small image")
    parser.add_argument("--out", help="results directory (default bench/results/DATE-MACHINE-parallel-fs)")
    return parser.parse_args(argv)


def _stack_names(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(STACKS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(STACKS)}")
    return text.split(",")


def _numbers(kind: type) -> Any:
    return lambda text: [kind(word) for word in text.split(",")]


@contextmanager
def _place(spec: Spec, stacks: list[str], results: dict[str, Any]) -> Iterator[Place]:
    """Make user, product, image and stores; say what the import needs of their squash files."""
    lab = Path(os.environ["LAB"])
    shutil.copy(Path(__file__).parent / "launch.py", lab)
    product = install_product(lab)
    user = make_user(lab, "bench", 2012)
    login = Node(user, "login", product)
    place = Place(lab, user, product, lab / "store", spec, login)
    try:
        _say("the image")
        load_image(spec, login, lab)
        place.directory("store")
        place.migrate("mig", NAME, str(place.store)).ok()
        _say("what the import needs")
        results["needed"] = _needed(place, place.squash(), lab / "needed")
        if Profiled.name in stacks:
            _say("the profile")
            _make_profiled_store(place)
            squash = place.squash(_profiled_store(place))
            results["needed_profiled"] = _needed(place, squash, lab / "needed-profiled")
        yield place
    finally:
        login.close()


def _profiled_store(place: Place) -> Path:
    return place.lab / "profiled"


def _make_profiled_store(place: Place) -> None:
    store = str(place.directory(_profiled_store(place).name))
    place.migrate("mig", NAME, store).ok()
    place.migrate("profile", NAME, store, "--", "python3", "-c", WORKLOAD, "import", "", place.spec.json()).ok()
    place.migrate("mig", "--profile", NAME, store).ok()


def _needed(place: Place, squash: Path, scratch: Path) -> dict[str, Any]:
    with squash.open("rb") as file:
        needed = Needed(file.fileno())
        needed.add(trace_import(squash, scratch, place.product / "bin/squashmount", WORKLOAD, place.spec))
        fewest = {f"{times:g}": needed.fewest_requests(times) for times in (1, 1.3, 2)}
        return needed.total() | {"squash_bytes": squash.stat().st_size, "fewest_requests": fewest}


def _measure(place: Place, options: argparse.Namespace, results: dict[str, Any]) -> None:
    clock = place.lab / "clock"
    with ExitStack() as ending:
        nodes: dict[str, list[SimulatedNode]] = {name: [] for name in options.stacks}

        def at_least(name: str, count: int) -> list[SimulatedNode]:
            while len(nodes[name]) < count:
                node = SimulatedNode(place, name, len(nodes[name]), clock)
                ending.callback(node.close)
                node.prepare()
                nodes[name].append(node)
            return nodes[name][:count]

        for number in range(options.rounds):
            for delay in options.delays:
                for name in options.stacks:
                    with _noting_failures(f"{name}, delay {delay:g} ms", results):
                        sample = _together(at_least(name, 1), delay, options.bandwidth)
                        results["files"][name] = sample.pop("files")  # of the last run
                        results["sweep"].append({"stack": name, "delay_ms": delay} | sample)
            _say(f"round {number + 1} of {options.rounds}: one node, every delay")
            for count in options.nodes:
                for name in options.stacks:
                    if name in ALONE and count > 1:
                        continue
                    with _noting_failures(f"{name}, {count} nodes", results):
                        sample = _together(at_least(name, count), options.scale_delay, options.shared_bandwidth)
                        del sample["files"]
                        results["scale"].append({"stack": name, "nodes": count} | sample)
                _say(f"round {number + 1} of {options.rounds}: {count} nodes")


@contextmanager
def _noting_failures(what: str, results: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except (BenchError, AssertionError, OSError) as err:
        results["failures"].append(f"{what}: {str(err)[-500:]}")
        _say(results["failures"][-1])


def _together(nodes: list[SimulatedNode], delay_ms: float, bandwidth_mib: float) -> dict[str, Any]:
    """Start the first container on all nodes at once; return times (of the slowest) and traffic (of all)."""
    for node in nodes:
        node.cold(delay_ms / 1000, bandwidth_mib * MIB)
    time.sleep(EXPIRED)
    for node in nodes:
        node.mount.forget()
    found: list[Sample | Exception] = []

    def one(node: SimulatedNode) -> None:
        try:
            found.append(node.measure())
        except (BenchError, AssertionError, OSError) as err:
            found.append(err)

    threads = [threading.Thread(target=one, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = []
    for result in found:
        if isinstance(result, Exception):
            raise result
        samples.append(result)
    traffic = [node.traffic() for node in nodes]
    for node in nodes:
        node.stack.end_processes()  # a server that lingers would cost the others' processor time
    summed = {kind: sum(one[kind] for one in traffic) for kind in traffic[0] if kind != "files"}
    inside = [sample.inside for sample in samples if sample.inside is not None]
    return {
        "wall": round(max(sample.wall for sample in samples), 4),
        "walls": [round(sample.wall, 4) for sample in samples],
        "inside": round(max(inside), 4),
        **summed,
        "files": traffic[0]["files"],
    }


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
