"""Squash files mounted by root, without container or overlay: the readers alone."""

import os
import re
import sys
from abc import abstractmethod
from pathlib import Path

from lab import run
from newest import newest_squashfuse
from servers import Cost, cost_of, servers_of
from stacks import HERE, LIMIT, PYTHON, BenchError, Place, Sample, Stack, drop_cache


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
        drop_cache(self.squash())
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
        return Sample(seconds, seconds)

    def cost(self, workload: str) -> Cost:
        """Mount, run, look at who serves."""
        self.cold()
        self.measure(workload, 1)
        found = cost_of(servers_of(self.squash()))
        self.rest()
        return found

    def close(self) -> None:
        """Unmount."""
        self.unmount()


class BareWire(BareStack):
    name = "bare-wire"
    about = "squashmount mount FILE DIR, as root"
    roots = ("fuse.squashmount",)

    def mount(self) -> None:
        """Use our command."""
        run(str(self.place.product / "bin/squashmount"), "mount", str(self.squash()), str(self.at)).ok()


class BarePyfuse3(BareStack):
    name = "bare-pyfuse3"
    about = (
        "squashmount mount --engine pyfuse3 FILE DIR, as root: the same reader behind libfuse; no engine of containers"
    )
    roots = ("fuse.squashmount",)

    def mount(self) -> None:
        """Use the checkout's installation: the product's is made without a compiler, which pyfuse3 needs."""
        program = Path(sys.prefix) / "bin/squashmount"
        run(str(program), "mount", "--engine", "pyfuse3", str(self.squash()), str(self.at)).ok()


class BareSquashfuse(BareStack):
    name = "bare-squashfuse_ll"
    about = "squashfuse_ll FILE DIR, as root"
    roots = ("fuse.squashfuse_ll", "fuse")

    def mount(self) -> None:
        """Use squashfuse."""
        run("squashfuse_ll", str(self.squash()), str(self.at)).ok()


class BareNewest(BareSquashfuse):
    name = "bare-squashfuse_ll-0.5"
    about = "the same with the newest squashfuse_ll (0.5.x)"

    def mount(self) -> None:
        """Use the newest squashfuse."""
        run(str(newest_squashfuse()), str(self.squash()), str(self.at)).ok()


class BareKernel(BareStack):
    name = "bare-kernel"
    about = "mount -t squashfs -o loop, as root: the kernel's own reader"
    roots = ("squashfs",)

    def mount(self) -> None:
        """Use a loop device; the lab's /dev has only those that existed when it began."""
        if held := run("losetup", "-j", str(self.squash())).ok():
            raise BenchError(f"{self.name}: mounted elsewhere, its caches are not cold: {held}")
        device = run("losetup", "-f").ok()
        if not os.path.exists(device):
            run("mknod", device, "b", "7", re.sub(r"\D", "", device)).ok()
        run("mount", "-t", "squashfs", "-o", "loop,ro", str(self.squash()), str(self.at)).ok()
