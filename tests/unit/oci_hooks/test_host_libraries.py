"""Modules that list libraries of the host: what is brought along, and where to."""

from contextlib import ExitStack
from pathlib import Path

from elf_files import AARCH64, library, link, patch_machine
from squashmount.oci_hooks.module import LibraryRule, Module
from squashmount.oci_hooks.plan import Contribution
from squashmount.oci_hooks.planners import Question, planner
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

PRIVATE = "/run/squashmount/lib"
VERSIONS = {"FABRIC_1.0": ["fi_open"], "FABRIC_1.6": ["fi_six"]}


def asked(top: Path, *rules: LibraryRule, glibc: bool = False) -> Contribution:
    plan = planner("libraries")
    assert plan is not None
    with ExitStack() as stack:
        trees = [stack.enter_context(DirectoryTree(str(top / name))) for name in ("image", "host")]
        planners = ("glibc",) if glibc else ()
        return plan(Question(Module("x", libraries=rules), *trees, Policy(), {}, {}, {}, planners))


def make(top: Path) -> Path:
    """Make a host with two versions of libfabric (what Cray has), one with providers, and an image with a C library."""
    for place in ("image", "host"):
        library(top / place / "usr/lib/libc.so.6", defines={"GLIBC_2.2.5": ["printf"]})
    cxi = library(top / "host/usr/lib/libcxi.so.1", defines={"": ["cxi"]})
    for version in ("1.15", "1.22"):
        folder = top / "host/opt/cray/libfabric" / version / "lib64"
        library(folder / "libfabric.so.1.26.0", soname="libfabric.so.1", defines=VERSIONS, needs=[cxi])
        link(folder / "libfabric.so.1", "libfabric.so.1.26.0")
    library(folder / "libfabric/liblnx-fi.so")
    return folder


RULE = LibraryRule(path="/opt/cray/libfabric/*/lib64/libfabric.so.1", role="dependency")


def test_the_last_version_with_all_it_needs(tmp_path: Path) -> None:
    make(tmp_path)
    plan = asked(tmp_path, RULE)
    newest = "/opt/cray/libfabric/1.22/lib64"
    assert {(mount.source, mount.target) for mount in plan.mounts} == {
        (f"{newest}/libfabric.so.1.26.0", f"{PRIVATE}/libfabric.so.1"),
        (f"{newest}/libfabric", f"{PRIVATE}/libfabric"),
        ("/usr/lib/libcxi.so.1", f"{PRIVATE}/libcxi.so.1"),
    }
    assert plan.env_prepend == {"LD_LIBRARY_PATH": PRIVATE}
    assert plan.env_set == {"FI_PROVIDER_PATH": f"{PRIVATE}/libfabric"}
    assert not plan.missing


def test_copies_behind_run_paths(tmp_path: Path) -> None:
    make(tmp_path)
    newer = {**VERSIONS, "FABRIC_1.9": ["fi_nine"]}
    library(tmp_path / "image/opt/conda/lib/libfabric.so.1.30.0", soname="libfabric.so.1", defines=newer)
    library(tmp_path / "image/usr/lib/libfabric.so.1", defines=VERSIONS)
    targets = {mount.target for mount in asked(tmp_path, RULE).mounts}
    assert "/opt/conda/lib/libfabric.so.1.30.0" in targets, "also an older one: it must fit the network"
    assert "/usr/lib/libfabric.so.1" not in targets, "LD_LIBRARY_PATH comes first"


def test_an_image_for_another_machine(tmp_path: Path) -> None:
    make(tmp_path)
    patch_machine(tmp_path / "image/usr/lib/libc.so.6", AARCH64)
    plan = asked(tmp_path, RULE)
    assert plan.mounts == ()
    assert "wrong-machine: is for X86_64 64-bit, the image for AARCH64 64-bit" in plan.missing[0]


def test_what_is_not_on_the_host(tmp_path: Path) -> None:
    make(tmp_path)
    absent = LibraryRule(soname="libabsent.so.1")
    assert asked(tmp_path, absent).missing == ("The library libabsent.so.1 of the module is not on this host.",)
    assert asked(tmp_path, absent._replace(optional=True)) == Contribution(), "nothing left to do"


def test_a_c_library_that_is_too_old(tmp_path: Path) -> None:
    make(tmp_path)
    newer = {"GLIBC_2.2.5": ["printf"], "GLIBC_2.38": ["strlcpy"]}
    libc = library(tmp_path / "host/usr/lib/libc.so.6", defines=newer)
    library(tmp_path / "host/usr/lib/libnew.so.1", uses=["strlcpy"], needs=[libc])
    rule = LibraryRule(soname="libnew.so.1", role="provider")
    assert "newer-glibc: needs GLIBC_2.38 (strlcpy)" in asked(tmp_path, rule).missing[0]
    assert asked(tmp_path, rule, glibc=True).missing == ()
