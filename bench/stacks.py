"""The stacks that are compared: ways to give a container (or a bare mount) the files of one image.

Each has a node of its own (tests/lab.py): its own graphroot, user namespace, mounts and servers. `cold()` makes the
next container the first on the node: no process of the node runs, the page cache of the image's file is dropped
(posix_fadvise(DONTNEED) on that file; the machine's other caches stay), and Podman's pause process is new.
"""

import json
import os
import shlex
import signal
import stat
import statistics
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inputs import NAME, Spec
from lab import Done, Node, User, all_processes, run, wait_for
from newest import newest_squashfuse
from peers import PodmanHpc, own_python
from servers import Cost, cost_of, environ_of, is_server, is_zombie, lab_cpu

HERE = Path(__file__).resolve().parent
WORKLOAD = (HERE / "workload.py").read_text()
PYTHON = "/usr/bin/python3"
LIMIT = 120.0
"""Seconds one measured command may take."""


class BenchError(Exception):
    """A measured command failed, hung or found something else than the image holds."""


class Skipped(Exception):  # noqa: N818 - not an error
    """This stack cannot be measured here or yet, for the reason given."""


@dataclass(frozen=True)
class Sample:
    """One measurement, seconds: `wall` until the last of the containers ended, the others are medians over them."""

    wall: float
    inside: float | None = None
    first: float | None = None
    """From the start of `podman run` to the first line of the workload."""
    cpu: float | None = None
    """Processor seconds of everything in the lab meanwhile: Podman, containers, servers, the launcher."""


@dataclass(frozen=True)
class Place:
    """What all stacks of a run share."""

    lab: Path
    user: User
    product: Path
    store: Path
    spec: Spec
    origin: Node
    """Where the image was built: its Podman has the unpacked layers."""
    found: dict[str, int] = field(default_factory=dict)
    """What a walk has to find in the unpacked image, and in a container of it, where Podman adds files."""
    installed: dict[str, PodmanHpc] = field(default_factory=dict)

    def squash(self, store: Path | None = None) -> Path:
        """Return the file our stacks serve: by far the largest of the store."""
        files = (path for path in (store or self.store).rglob("*") if path.is_file())
        return max(files, key=lambda path: path.stat().st_size)

    def directory(self, name: str) -> Path:
        """Make a directory of the user's in the lab."""
        path = self.lab / name
        path.mkdir()
        os.chown(path, self.user.uid, self.user.gid)
        return path

    def podman_hpc(self) -> PodmanHpc:
        """Install podman-hpc, once."""
        if "it" not in self.installed:
            hpc = self.installed["it"] = PodmanHpc(self.lab, own_python())
            hooks = hpc.bin.parent / "share/containers/oci/hooks.d"
            hooks.mkdir(parents=True, exist_ok=True)  # Podman refuses a --hooks-dir that does not exist
        return self.installed["it"]

    def migrate(self, *argv: str) -> Done:
        """Run migrate2scratch where the image was built."""
        return self.origin.migrate(*argv, timeout=600)


class Stack(ABC):
    """One way to run the image."""

    name: str
    about: str
    bare = False
    roots: tuple[str, ...] = ("overlay",)
    """What `/` of a container must be: no stack may measure something else than it says."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @abstractmethod
    def prepare(self) -> None:
        """Make the node ready; raise BenchError when this machine cannot."""

    @abstractmethod
    def cold(self) -> None:
        """Make the next run the first."""

    @abstractmethod
    def measure(self, workload: str, count: int) -> Sample:
        """Run `count` at once and check what they found. Raises BenchError."""

    def sampled(self, workload: str, count: int) -> Sample:
        """Measure, and count the processor time of everything in the lab meanwhile."""
        before = lab_cpu()
        sample = self.measure(workload, count)
        return replace(sample, cpu=lab_cpu() - before)

    @abstractmethod
    def cost(self, workload: str) -> Cost:
        """Run the workload once on a fresh node; return what its servers hold and have used, still serving."""

    def squash(self) -> Path:
        """Return the squash file of this stack."""
        return self.place.squash()

    def rest(self) -> None:  # noqa: B027 - most stacks may stay as they are until the next `cold`
        """Leave nothing that the other stacks could meet."""

    @abstractmethod
    def close(self) -> None:
        """End what this stack started."""

    def check(self, workload: str, out: str) -> dict[str, Any]:
        """Return the workload's report; raise BenchError when it did not do its work on the right root."""
        try:
            found: dict[str, Any] = json.loads(out)
        except ValueError:
            raise BenchError(f"{self.name}: {workload} printed {out!r}") from None
        expected = self.place.spec.expected(workload)
        if workload == "walk":
            expected = {"count": self.place.found["image" if self.bare else "container"]}
        wrong = {key: found.get(key) for key, value in expected.items() if found.get(key) != value}
        if wrong:
            raise BenchError(f"{self.name}: {workload} found {wrong}, expected {expected}")
        if found["root"] not in self.roots:
            raise BenchError(f"{self.name}: / is {found['root']}, expected {' or '.join(self.roots)}")
        return found


class PodmanStack(Stack):
    """A node that runs containers by rootless Podman."""

    env: dict[str, str] = {}  # noqa: RUF012 - replaced by subclasses, never changed
    node: Node

    def prepare(self) -> None:
        """Make the node, and see that a container that imports everything writes no .pyc."""
        self.node = self.make_node()
        self.restart()
        self.check_upper()

    def check_upper(self) -> None:
        """Look into a container's upper directory; each measured container looks at its own directories' times."""
        layers = self.node.graphroot / "overlay"
        before = set(layers.iterdir()) if layers.exists() else set()
        imports = " && ".join(shlex.join(self.program(name)) for name in ("import", "numeric"))
        self.as_user(*self.command("run"), "--name=upper", NAME, "sh", "-c", imports)
        uppers = [path / "diff" for path in set(layers.iterdir()) - before if (path / "diff").is_dir()]
        if len(uppers) != 1:
            raise BenchError(f"{self.name}: expected one new layer, found {uppers}")
        if written := [path.name for path in uppers[0].rglob("*.pyc*")]:
            raise BenchError(f"{self.name}: the import wrote {len(written)} .pyc files, {written[0]} for one")
        self.as_user(*self.command("rm"), "--force", "upper")
        self.end_processes()

    def as_user(self, *argv: str) -> str:
        """Run a command of this stack; return what it printed."""
        done = self.place.user.run(*argv, env=self.environment(), timeout=LIMIT)
        if done.code:
            raise BenchError(f"{self.name}: {' '.join(argv[:2])} ended with {done.code}: {done.err[-2000:]}")
        return done.out

    def make_node(self) -> Node:
        """Return a node that sees the store."""
        linger = {"SQUASHMOUNT_LINGER": "600"}
        return Node(self.place.user, self.name, self.place.product, stores=(self.store(),), env=linger | self.env)

    def store(self) -> Path:
        """Return the store this stack's Podman sees."""
        return self.place.store

    def restart(self) -> None:
        """Make Podman's user namespace, so that it is not part of the first measurement of any stack."""
        self.node.podman("unshare", "true").ok()

    def command(self, name: str) -> list[str]:
        """Return how Podman's command `name` is called here."""
        return ["podman", name]

    def environment(self) -> dict[str, str]:
        """Return the environment of that command."""
        return self.node.environment()

    def cache_files(self) -> list[Path]:
        """Return the files whose page cache `cold` drops."""
        return [self.squash()]

    def cold(self) -> None:
        """End every process of the node, drop the cache."""
        self.end_processes()
        for path in self.cache_files():
            drop_cache(path)
        self.restart()

    def end_processes(self) -> None:
        """Kill what carries this node's configuration in its environment: servers, overlays, Podman's pause process."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.node.end_servers()
        wait_for(lambda: not self.processes(), f"the processes of {self.name} are gone")

    def processes(self) -> list[int]:
        """Return what runs on this node outside of containers."""
        mark = f"CONTAINERS_CONF={self.node.base}/containers.conf".encode()
        return [pid for pid in all_processes() if mark in environ_of(pid) and not is_zombie(pid)]

    def measure(self, workload: str, count: int) -> Sample:
        """Run containers."""
        argv = [*self.command("run"), "--rm", NAME, *self.program(workload)]
        launcher = (PYTHON, str(self.place.lab / "launch.py"), str(count), str(LIMIT))
        done = self.place.user.run(*launcher, *argv, env=self.environment(), timeout=LIMIT + 60)
        if done.code:
            raise BenchError(f"{self.name}: the launcher failed: {done.err}")
        told = json.loads(done.out)
        for one in told["runs"]:
            if one["code"]:
                raise BenchError(f"{self.name}: {workload} ended with {one['code']}: {one['err'][-2000:]}")
        if workload == "true":
            return Sample(told["makespan"])
        if workload == "first":
            began = [float(one["out"]) - one["started"] for one in told["runs"]]
            return Sample(told["makespan"], first=statistics.median(began))
        found = [self.check(workload, one["out"]) for one in told["runs"]]
        first = [report["began"] - one["started"] for report, one in zip(found, told["runs"], strict=True)]
        return Sample(told["makespan"], statistics.median(one["seconds"] for one in found), statistics.median(first))

    def program(self, workload: str) -> list[str]:
        """Return what a container runs."""
        programs = {"true": ["/bin/true"], "first": ["/bin/date", "+%s.%N"]}
        return programs.get(workload) or ["python3", "-c", WORKLOAD, workload, "", self.place.spec.json()]

    def cost(self, workload: str) -> Cost:
        """Run the workload by `podman exec`, so that fuse-overlayfs and others that end with a container are there."""
        self.cold()
        self.as_user(*self.command("run"), "--detach", "--name=cost", NAME, "sleep", "600")
        out = self.as_user(*self.command("exec"), "cost", *self.program(workload))
        if workload not in {"true", "first"}:
            self.check(workload, out)
        found = cost_of([pid for pid in self.processes() if is_server(pid, self.squash())])
        self.as_user(*self.command("rm"), "--force", "--time=0", "cost")
        return found

    def close(self) -> None:
        """End the node, if it was made."""
        if hasattr(self, "node"):
            self.end_processes()
            self.node.close()


class Native(PodmanStack):
    """Stock Podman on unpacked layers."""

    name = "native"
    about = "stock Podman, unpacked layers on the local file system, kernel overlay"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.node = place.origin

    def prepare(self) -> None:
        """Count what a walk has to find, with and without Podman's own files; the node exists, the image is there."""
        spec = self.place.spec.json()
        report = self.node.podman("run", "--rm", NAME, "python3", "-c", WORKLOAD, "walk", "", spec).ok()
        self.place.found["container"] = json.loads(report)["count"]
        script = '$0 -c "$2" walk "$(podman image mount $1)" "$3"; podman image umount -a >&2'
        report = self.node.podman("unshare", "sh", "-c", script, PYTHON, NAME, WORKLOAD, spec).ok()
        self.place.found["image"] = json.loads(report)["count"]
        self.check_upper()

    def cache_files(self) -> list[Path]:
        """Return every file of the unpacked layers."""
        layers = self.node.graphroot / "overlay"
        return [Path(top) / name for top, _dirs, names in os.walk(layers) for name in names]


class OursWire(PodmanStack):
    name = "ours-wire"
    about = "squashmount, engine wire, kernel overlay"
    env = {"SQUASHMOUNT_ENGINE": "wire", "SQUASHMOUNT_OVERLAY": "kernel"}  # noqa: RUF012

    def restart(self) -> None:
        """Also clear away what the killed servers left, as the next node would not find it."""
        self.node.squashmount("reap").ok()


class OursSquashfuse(OursWire):
    name = "ours-squashfuse_ll"
    about = "squashmount, engine squashfuse_ll, kernel overlay"
    env = {"SQUASHMOUNT_ENGINE": "squashfuse_ll", "SQUASHMOUNT_OVERLAY": "kernel"}  # noqa: RUF012


class OursWireFuse(OursWire):
    name = "ours-wire-fuse"
    about = "squashmount, engine wire, fuse-overlayfs"
    env = {"SQUASHMOUNT_ENGINE": "wire", "SQUASHMOUNT_OVERLAY": "fuse"}  # noqa: RUF012
    roots = ("fuse.fuse-overlayfs",)


class OursProfiled(OursWire):
    name = "ours-profiled"
    about = "ours-wire with a profile of the import storm: read ahead when the server starts"

    def prepare(self) -> None:
        """Record the profile, squash with it into a store of its own."""
        if self.place.migrate("profile", "--help").code:
            raise Skipped("migrate2scratch has no command `profile`")
        self.place.directory(self.store().name)
        self.place.migrate("mig", NAME, str(self.store())).ok()
        self.place.migrate("profile", NAME, str(self.store()), "--", *self.program("import")).ok()
        if "--profile" in self.place.migrate("mig", "--help").out:
            self.place.migrate("mig", "--profile", NAME, str(self.store())).ok()
            self.about += ", and laid out side by side (`mig --profile`)"
        super().prepare()

    def store(self) -> Path:
        """Return a store of its own: another layout of the same image."""
        return self.place.lab / "profiled-store"

    def squash(self) -> Path:
        """Return the file of that store."""
        return self.place.squash(self.store())


BY_HAND = r"""#!/bin/bash
# squashfuse_ll and fuse-overlayfs by hand: one squashfuse for the node, whatever lower directory Podman names
set -eu
at={at}
exec 9>"$at.lock"; flock 9
mountpoint -q "$at" || {program} {squash} "$at" 9>&- >/dev/null 2>&1
exec fuse-overlayfs -o "$(sed "s|lowerdir=[^,]*|lowerdir=$at|" <<<"$2")" "$3" 9>&-
"""


class ByHand(PodmanStack):
    name = "squashfuse+fuse-overlayfs"
    node_name = "by-hand"
    """Short: it is part of paths of sockets, and with a longer one Podman waits for something for 20 s."""
    about = "squashfuse_ll and fuse-overlayfs started by a ten-line mount program, our squash file"
    roots = ("fuse.fuse-overlayfs",)

    def squashfuse(self) -> str:
        """Return the squashfuse_ll to use."""
        return "squashfuse_ll"

    def make_node(self) -> Node:
        """Return a node with the script as its mount program."""
        place, user = self.place, self.place.user
        at = place.directory(f"{self.name}-mount")
        lock = Path(f"{at}.lock")
        lock.touch()
        os.chown(lock, user.uid, user.gid)
        script = place.lab / f"{self.name}.sh"
        script.write_text(BY_HAND.format(at=at, squash=place.squash(), program=self.squashfuse()))
        script.chmod(0o755)
        return Node(user, self.node_name, place.product, stores=(place.store,), mount_program=str(script))


class ByHandNewest(ByHand):
    name = "squashfuse-0.5+fuse-overlayfs"
    node_name = "by-hand-new"
    about = "the same with the newest squashfuse_ll (0.5.x)"

    def squashfuse(self) -> str:
        """Return the newest."""
        return str(newest_squashfuse())


class PodmanHpcStack(PodmanStack):
    name = "podman-hpc"
    about = "podman-hpc from PyPI: `podman-hpc migrate`, `podman-hpc run` (squashfuse_ll, fuse-overlayfs)"
    roots = ("fuse.fuse-overlayfs",)

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.tmp = Path(f"/tmp/containers-user-{place.user.uid}")
        self.makes_tmp = not self.tmp.exists()

    def prepare(self) -> None:
        """Install it, squash with it, make a node with an empty graphroot."""
        self.squash_dir = self.place.directory("podman-hpc-store")
        self.hpc = self.place.podman_hpc()
        self.hpc.migrate(self.place.origin, NAME, self.squash_dir)
        super().prepare()

    def make_node(self) -> Node:
        """Return a node without our mount program: podman-hpc names its own."""
        return Node(self.place.user, "podman-hpc", self.place.product)

    def command(self, name: str) -> list[str]:
        """Return podman-hpc's own command."""
        return [str(self.hpc.bin / "podman-hpc"), name]

    def environment(self) -> dict[str, str]:
        """Return what it wants to know, and where its Podman keeps its pause process."""
        return self.node.environment() | {
            "PATH": f"{self.hpc.bin}:/usr/bin:/bin:/usr/sbin:/sbin",
            "SQUASH_DIR": str(self.squash_dir),
            "PODMANHPC_GRAPH_ROOT": str(self.node.graphroot),
            "PODMANHPC_RUN_ROOT": str(self.node.runroot),
            "PODMANHPC_CONFIG_HOME": str(self.node.base / "hpc-config"),
        }

    def restart(self) -> None:
        """Make the user namespace of its Podman, which drops XDG_RUNTIME_DIR."""
        pause = Path(f"/run/user/{self.place.user.uid}/libpod/tmp")
        self.place.user.run("mkdir", "-p", str(pause)).ok()
        self.place.user.run(str(self.hpc.bin / "podman-hpc"), "unshare", "true", env=self.environment()).ok()

    def close(self) -> None:
        """End the node; take away the directory in /tmp whose name podman-hpc does not let us choose."""
        super().close()
        if self.makes_tmp:
            run("rm", "-rf", "--one-file-system", str(self.tmp)).ok()

    def squash(self) -> Path:
        """Return its squash."""
        (found,) = {path.resolve() for path in self.squash_dir.glob("overlay/l/*.squash")}
        return found


def drop_cache(path: Path) -> None:
    """Ask the kernel to forget a file's pages; they were written back when the run began (posix_fadvise(2))."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return  # links of an unpacked image; its devices and FIFOs have no pages
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
