"""The host's C library in the image: only as a whole, only when it is newer, only when everything is proven to fit."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from elf_files import AARCH64, library, link, patch_machine
from squashmount.oci_hooks.glibc import plan_for
from squashmount.oci_hooks.libraries import Libraries
from squashmount.oci_hooks.plan import Contribution
from squashmount.oci_hooks.tree import DirectoryTree

LIB = "usr/lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"
OLD = ["GLIBC_2.2.5", "GLIBC_2.31"]
NEW = [*OLD, "GLIBC_2.34"]
PARTS = ("libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")


def glibc(
    top: Path, versions: Sequence[str], *, folder: str = LIB, loader: str = LOADER, parts: Sequence[str] = PARTS
) -> None:
    """Make a C library with its loader and parts, as a distribution installs it."""
    made = library(top / folder / loader, defines={"GLIBC_2.2.5": ["__tls_get_addr"], "GLIBC_PRIVATE": ["_rtld"]})
    link(top / "lib64" / loader, f"/{folder}/{loader}")
    defines = {version: [f"f_{version.replace('.', '_')}"] for version in versions}
    libc = library(top / folder / "libc.so.6", defines=defines, uses=["_rtld"], needs=[made])
    for part in parts:
        own = {version: [f"p_{version.replace('.', '_')}"] for version in versions}
        library(top / folder / part, defines=own, uses=["f_GLIBC_2_2_5"], needs=[libc])


@pytest.fixture
def tops(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "image", tmp_path / "host"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def plan(stack: ExitStack, tops: tuple[Path, Path]) -> Contribution:
    image, host = (Libraries(stack.enter_context(DirectoryTree(str(top)))) for top in tops)
    return plan_for(image, host)


def targets(plan: Contribution) -> dict[str, str]:
    return {mount.target: mount.source for mount in plan.mounts}


def test_one_set_with_the_loader(tops: tuple[Path, Path], stack: ExitStack) -> None:
    image, host = tops
    glibc(image, OLD)
    glibc(host, NEW)
    (host / LIB / "gconv").mkdir()
    made = plan(stack, tops)
    names = (LOADER, "libc.so.6", *PARTS, "gconv")
    assert targets(made) == {f"/{LIB}/{name}": f"/{LIB}/{name}" for name in names}
    assert "glibc 2.34 takes the place of 2.31 of the image: 7 mounts, the loader too" in made.reasons[0]


def test_a_tree_of_another_layout(tops: tuple[Path, Path], stack: ExitStack) -> None:
    """Host Debian, image RHEL: the host's loader finds /usr/lib64 by the image's ld.so.cache only."""
    image, host = tops
    glibc(host, NEW)
    (image / "usr/lib64").mkdir(parents=True)
    link(image / "lib64", "usr/lib64")
    folder = "usr/lib64"
    made = library(image / folder / "ld-2.31.so", soname=LOADER, defines={"GLIBC_2.2.5": ["__tls_get_addr", "x"]})
    link(image / folder / LOADER, "ld-2.31.so")
    library(image / folder / "libc-2.31.so", soname="libc.so.6", defines={"GLIBC_2.2.5": ["a"]}, needs=[made])
    link(image / folder / "libc.so.6", "libc-2.31.so")
    assert "would not look in /usr/lib64, and there is no ld.so.cache" in plan(stack, tops).missing[0]
    ldconfig(image)
    assert targets(plan(stack, tops)) == {
        "/usr/lib64/libc-2.31.so": f"/{LIB}/libc.so.6",
        "/usr/lib64/ld-2.31.so": f"/{LIB}/{LOADER}",
    }


def ldconfig(top: Path) -> None:
    import subprocess

    (top / "etc").mkdir(exist_ok=True)
    (top / "etc/ld.so.conf").write_text("/usr/lib64\n")
    subprocess.run(["/sbin/ldconfig", "-r", str(top), "-X"], check=True, timeout=60)


@pytest.mark.parametrize("theirs", [NEW, [*NEW, "GLIBC_2.41"]])
def test_an_image_that_is_as_new(tops: tuple[Path, Path], stack: ExitStack, theirs: list[str]) -> None:
    glibc(tops[0], theirs)
    glibc(tops[1], NEW)
    made = plan(stack, tops)
    assert (made.mounts, made.missing) == ((), ())
    assert "is not older than the host's 2.34" in made.rejected[0]


def test_releases_are_compared_as_numbers(tops: tuple[Path, Path], stack: ExitStack) -> None:
    glibc(tops[0], ["GLIBC_2.2.5", "GLIBC_2.9"])
    glibc(tops[1], ["GLIBC_2.2.5", "GLIBC_2.9", "GLIBC_2.10"])
    assert plan(stack, tops).mounts


def test_an_image_without_glibc(tops: tuple[Path, Path], stack: ExitStack) -> None:
    glibc(tops[1], NEW)
    library(tops[0] / "lib/ld-musl-x86_64.so.1")
    assert plan(stack, tops) == Contribution(
        rejected=("The image has no libc.so.6 for X86_64 64-bit: its C library is left alone.",)
    )


def test_another_machine(tops: tuple[Path, Path], stack: ExitStack) -> None:
    glibc(tops[0], OLD)
    glibc(tops[1], NEW)
    for name in (LOADER, "libc.so.6", *PARTS):
        patch_machine(tops[0] / LIB / name, AARCH64)
    assert plan(stack, tops).mounts == ()


def test_any_architecture(tops: tuple[Path, Path], stack: ExitStack) -> None:
    for top, versions in zip(tops, (OLD, NEW), strict=True):
        glibc(top, versions, loader="ld-linux-aarch64.so.1")
        for name in ("ld-linux-aarch64.so.1", "libc.so.6", *PARTS):
            patch_machine(top / LIB / name, AARCH64)
    assert len(plan(stack, tops).mounts) == 2 + len(PARTS)


def test_another_loader(tops: tuple[Path, Path], stack: ExitStack) -> None:
    glibc(tops[0], OLD, loader="ld64.so.2")
    glibc(tops[1], NEW)
    made = plan(stack, tops)
    assert (made.mounts, made.missing) == (
        (),
        (f"The host's C library cannot be put into the image: its loader is not {LOADER}.",),
    )


def test_nothing_when_a_part_is_missing_on_the_host(tops: tuple[Path, Path], stack: ExitStack) -> None:
    glibc(tops[0], OLD)
    glibc(tops[1], NEW, parts=PARTS[1:])
    made = plan(stack, tops)
    assert (made.mounts, "the host has no libm.so.6" in made.missing[0]) == ((), True)


def test_nothing_when_a_version_would_be_lost(tops: tuple[Path, Path], stack: ExitStack) -> None:
    glibc(tops[0], ["GLIBC_2.2.5", "GLIBC_2.31", "GLIBC_2.31_VENDOR"])
    glibc(tops[1], NEW)
    made = plan(stack, tops)
    assert (made.mounts, "has GLIBC_2.31_VENDOR, which the host's" in made.missing[0]) == ((), True)
