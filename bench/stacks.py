"""The stacks that are compared: ways to give a container (or a bare mount) the files of one image.

Each has a node of its own (tests/lab.py): its own graphroot, user namespace, mounts and servers. `cold()` makes the
next container the first on the node: no process of the node runs, the page cache of the image's file is dropped
(posix_fadvise(DONTNEED) on that file; the machine's other caches stay), and Podman's pause process is new.
"""

import json
import os
import re
import signal
import stat
import statistics
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inputs import NAME, Spec
from lab import Node, User, all_processes, run, wait_for
from peers import PodmanHpc, own_python

HERE = Path(__file__).resolve().parent
WORKLOAD = (HERE / "workload.py").read_text()
PYTHON = "/usr/bin/python3"
LIMIT = 120.0
"""Seconds one measured command may take."""


class BenchError(Exception):
    """A measured command failed, hung or found something else than the image holds."""


@dataclass(frozen=True)
class Sample:
    """One measurement, seconds: `wall` until the last of the containers ended, the others are medians over them."""

    wall: float
    inside: float | None
    first: float | None
    """From the start of `podman run` to the first line of the workload."""


@dataclass(frozen=True)
class Place:
    """What all stacks of a run share."""

    lab: Path
    user: User
    product: Path
    store: Path
    spec: Spec
    found: dict[str, int] = field(default_factory=dict)
    """What a walk has to find in the unpacked image, and in a container of it, where Podman adds files."""

    def squash(self) -> Path:
        """Return the file our stacks serve: by far the largest of the store."""
        return max((path for path in self.store.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


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
        python = ("python3", "-c", WORKLOAD, "import", "", self.place.spec.json())
        layers = self.node.graphroot / "overlay"
        before = set(layers.iterdir()) if layers.exists() else set()
        self.as_user(*self.command("run"), "--name=upper", NAME, *python)
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
        return Node(self.place.user, self.name, self.place.product, stores=(self.place.store,), env=linger | self.env)

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
        return [self.place.squash()]

    def cold(self) -> None:
        """End every process of the node, drop the cache."""
        self.end_processes()
        for path in self.cache_files():
            drop_cache(path)
        self.restart()

    def end_processes(self) -> None:
        """Kill what carries this node's configuration in its environment: servers, overlays, Podman's pause process."""
        mark = f"CONTAINERS_CONF={self.node.base}/containers.conf".encode()

        def left() -> list[int]:
            return [pid for pid in all_processes() if mark in _environ(pid) and not _is_zombie(pid)]

        for pid in left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.node.end_servers()
        wait_for(lambda: not left(), f"the processes of {self.name} are gone")

    def measure(self, workload: str, count: int) -> Sample:
        """Run containers."""
        python = ["python3", "-c", WORKLOAD, workload, "", self.place.spec.json()]
        argv = [*self.command("run"), "--rm", NAME, *(["/bin/true"] if workload == "true" else python)]
        launcher = (PYTHON, str(self.place.lab / "launch.py"), str(count), str(LIMIT))
        done = self.place.user.run(*launcher, *argv, env=self.environment(), timeout=LIMIT + 60)
        if done.code:
            raise BenchError(f"{self.name}: the launcher failed: {done.err}")
        told = json.loads(done.out)
        for one in told["runs"]:
            if one["code"]:
                raise BenchError(f"{self.name}: {workload} ended with {one['code']}: {one['err'][-2000:]}")
        if workload == "true":
            return Sample(told["makespan"], None, None)
        found = [self.check(workload, one["out"]) for one in told["runs"]]
        first = [report["began"] - one["started"] for report, one in zip(found, told["runs"], strict=True)]
        return Sample(told["makespan"], statistics.median(one["seconds"] for one in found), statistics.median(first))

    def close(self) -> None:
        """End the node, if it was made."""
        if hasattr(self, "node"):
            self.end_processes()
            self.node.close()


class Native(PodmanStack):
    """Stock Podman on unpacked layers."""

    name = "native"
    about = "stock Podman, unpacked layers on the local file system, kernel overlay"

    def __init__(self, place: Place, node: Node) -> None:
        super().__init__(place)
        self.node = node

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


BY_HAND = r"""#!/bin/bash
# squashfuse_ll and fuse-overlayfs by hand: one squashfuse for the node, whatever lower directory Podman names
set -eu
at={at}
exec 9>"$at.lock"; flock 9
mountpoint -q "$at" || squashfuse_ll {squash} "$at" 9>&- >/dev/null 2>&1
exec fuse-overlayfs -o "$(sed "s|lowerdir=[^,]*|lowerdir=$at|" <<<"$2")" "$3" 9>&-
"""


class ByHand(PodmanStack):
    name = "squashfuse+fuse-overlayfs"
    about = "squashfuse_ll and fuse-overlayfs started by a ten-line mount program, our squash file"
    roots = ("fuse.fuse-overlayfs",)

    def make_node(self) -> Node:
        """Return a node with the script as its mount program."""
        place, user = self.place, self.place.user
        at = place.lab / "by-hand"
        at.mkdir()
        os.chown(at, user.uid, user.gid)
        lock = Path(f"{at}.lock")
        lock.touch()
        os.chown(lock, user.uid, user.gid)
        script = place.lab / "by-hand.sh"
        script.write_text(BY_HAND.format(at=at, squash=place.squash()))
        script.chmod(0o755)
        return Node(user, "by-hand", place.product, stores=(place.store,), mount_program=str(script))


class PodmanHpcStack(PodmanStack):
    name = "podman-hpc"
    about = "podman-hpc from PyPI: `podman-hpc migrate`, `podman-hpc run` (squashfuse_ll, fuse-overlayfs)"
    roots = ("fuse.fuse-overlayfs",)

    def __init__(self, place: Place, origin: Node) -> None:
        super().__init__(place)
        self.origin = origin
        self.tmp = Path(f"/tmp/containers-user-{place.user.uid}")
        self.makes_tmp = not self.tmp.exists()

    def prepare(self) -> None:
        """Install it, squash with it, make a node with an empty graphroot."""
        self.squash_dir = self.place.lab / "podman-hpc-store"
        self.squash_dir.mkdir()
        os.chown(self.squash_dir, self.place.user.uid, self.place.user.gid)
        self.hpc = PodmanHpc(self.place.lab, own_python())
        hooks = self.hpc.bin.parent / "share/containers/oci/hooks.d"
        hooks.mkdir(parents=True, exist_ok=True)  # Podman refuses a --hooks-dir that does not exist
        self.hpc.migrate(self.origin, NAME, self.squash_dir)
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

    def cache_files(self) -> list[Path]:
        """Return its squash."""
        return [path.resolve() for path in self.squash_dir.glob("overlay/l/*.squash")]


class BareStack(Stack):
    """A squash file mounted by root, without container or overlay: the readers alone."""

    bare = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.at = place.lab / self.name

    def prepare(self) -> None:
        """Make the mount point and see that it can be mounted."""
        self.at.mkdir()
        self.cold()
        self.rest()

    def rest(self) -> None:
        """Unmount: a user namespace made meanwhile would copy the mount and keep its superblock and its caches."""
        self.unmount()

    @abstractmethod
    def mount(self) -> None:
        """Mount the squash on `at`."""

    def cold(self) -> None:
        """Mount it anew, nothing of it in the page cache."""
        self.unmount()
        drop_cache(self.place.squash())
        self.mount()

    def unmount(self) -> None:
        """Unmount, if mounted."""
        if os.path.ismount(self.at):
            run("umount", str(self.at)).ok()

    def measure(self, workload: str, count: int) -> Sample:
        """Run the workload as root."""
        assert count == 1
        argv = (PYTHON, str(HERE / "workload.py"), workload, str(self.at), self.place.spec.json())
        done = run(*argv, timeout=LIMIT)
        if done.code:
            raise BenchError(f"{self.name}: {workload} ended with {done.code}: {done.err[-2000:]}")
        seconds = self.check(workload, done.out)["seconds"]
        return Sample(seconds, seconds, None)

    def close(self) -> None:
        """Unmount."""
        self.unmount()


class BareWire(BareStack):
    name = "bare-wire"
    about = "squashmount mount FILE DIR, as root"
    roots = ("fuse.squashmount",)

    def mount(self) -> None:
        """Use our command."""
        run(str(self.place.product / "bin/squashmount"), "mount", str(self.place.squash()), str(self.at)).ok()


class BareSquashfuse(BareStack):
    name = "bare-squashfuse_ll"
    about = "squashfuse_ll FILE DIR, as root"
    roots = ("fuse.squashfuse_ll", "fuse")

    def mount(self) -> None:
        """Use squashfuse."""
        run("squashfuse_ll", str(self.place.squash()), str(self.at)).ok()


class BareKernel(BareStack):
    name = "bare-kernel"
    about = "mount -t squashfs -o loop, as root: the kernel's own reader"
    roots = ("squashfs",)

    def mount(self) -> None:
        """Use a loop device; the lab's /dev has only those that existed when it began."""
        if held := run("losetup", "-j", str(self.place.squash())).ok():
            raise BenchError(f"{self.name}: mounted elsewhere, its caches are not cold: {held}")
        device = run("losetup", "-f").ok()
        if not os.path.exists(device):
            run("mknod", device, "b", "7", re.sub(r"\D", "", device)).ok()
        run("mount", "-t", "squashfs", "-o", "loop,ro", str(self.place.squash()), str(self.at)).ok()


def drop_cache(path: Path) -> None:
    """Ask the kernel to forget a file's pages; they were written back when the run began (posix_fadvise(2))."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return  # links of an unpacked image; its devices and FIFOs have no pages
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def make_stacks(place: Place, origin: Node, names: list[str]) -> list[Stack]:
    """Return the named stacks in the order of ALL."""
    stacks: list[Stack] = []
    for name, kind in ALL.items():
        if name not in names:
            continue
        stacks.append(kind(place, origin) if kind in {Native, PodmanHpcStack} else kind(place))
    return stacks


ALL: dict[str, Any] = {
    kind.name: kind
    for kind in (
        Native,
        OursWire,
        OursSquashfuse,
        OursWireFuse,
        ByHand,
        PodmanHpcStack,
        BareKernel,
        BareWire,
        BareSquashfuse,
    )
}

if __name__ == "__main__":
    sys.exit("run scripts/bench")
