"""Where libraries are found: the loader's order, and copies the loader's cache knows nothing of."""

import os
import subprocess
from pathlib import Path

import pytest
from elf_files import AARCH64, library, link, patch_machine
from squashmount.oci_hooks.libraries import Libraries, find_libraries, is_glibc, split_name
from squashmount.oci_hooks.tree import DirectoryTree, SquashTree

from squashmount.squashfs.image import SquashImage


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("libmpi.so.12.2.2", ("libmpi", (12, 2, 2))),
        ("libmpich_gnu_71.so.3", ("libmpich_gnu_71", (3,))),
        ("libpython3.11.so", ("libpython3.11", ())),
        ("libodd.so.so.1", ("libodd.so", (1,))),
        ("libmpi.so.conf", ("", ())),
        ("libmpi.so.12.bak", ("", ())),
        ("mpi.so", ("", ())),
        ("libmpi.so." + "9" * 5000, ("libmpi", (999999999,))),
    ],
)
def test_names(name: str, expected: tuple[str, tuple[int, ...]]) -> None:
    assert split_name(name) == expected


def test_the_c_librarys_family() -> None:
    family = [
        "libc.so.6",
        "libm.so.6",
        "libpthread.so.0",
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
        "libdl.so.2",
    ]
    others = ["libcrypt.so.1", "libc++.so.1", "libstdc++.so.6", "libgcc_s.so.1", "libmpi.so.12", "libcuda.so.1"]
    assert [is_glibc(name) for name in family] == [True] * len(family)
    assert [is_glibc(name) for name in others] == [False] * len(others)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make an image where libdep.so.1 lies in five places and libmpi.so.12 below conda and in a system directory."""
    top = tmp_path / "image"
    for place in ("usr/lib", "opt/conf", "opt/env", "opt/rpath", "opt/runpath"):
        library(top / place / "libdep.so.1")
    (top / "etc/ld.so.conf.d").mkdir(parents=True)
    (top / "etc/ld.so.conf").write_text("# ours\ninclude ld.so.conf.d/*.conf\n")
    (top / "etc/ld.so.conf.d/x.conf").write_text("/opt/conf # first\ninclude /etc/ld.so.conf\n")
    library(top / "opt/conda/envs/a/lib/libmpi.so.12.1.10", soname="libmpi.so.12")
    link(top / "opt/conda/envs/a/lib/libmpi.so.12", "libmpi.so.12.1.10")
    library(top / "usr/lib64/mpich/lib/libmpi.so.12")
    library(top / "deep/er/libmpi.so.12")
    return top


def loaded(top: Path, path: str, **environ: str) -> str:
    with DirectoryTree(str(top)) as tree:
        libraries = Libraries(tree, environ)
        who = libraries.load(path)
        assert who is not None
        found = libraries.find("libdep.so.1", wanted_by=who)
        return found.path if found else ""


def test_the_loaders_order(image: Path) -> None:
    needs = [image / "usr/lib/libdep.so.1"]
    library(image / "opt/rpath/liba.so", needs=needs, rpath="$ORIGIN")
    library(image / "opt/runpath/liba.so", needs=needs, runpath="${ORIGIN}:/nothing")
    library(image / "opt/plain/liba.so", needs=needs)
    env = {"LD_LIBRARY_PATH": "relative::/opt/env"}
    assert loaded(image, "/opt/rpath/liba.so", **env) == "/opt/rpath/libdep.so.1", "RPATH comes before the environment"
    assert loaded(image, "/opt/runpath/liba.so", **env) == "/opt/env/libdep.so.1", "RUNPATH after it"
    assert loaded(image, "/opt/runpath/liba.so") == "/opt/runpath/libdep.so.1"
    assert loaded(image, "/opt/plain/liba.so") == "/opt/conf/libdep.so.1", "then ld.so.conf, also without a cache"
    subprocess.run(["/sbin/ldconfig", "-r", str(image), "-X"], check=True, timeout=60)
    (image / "etc/ld.so.conf").unlink()
    assert loaded(image, "/opt/plain/liba.so") == "/opt/conf/libdep.so.1", "the cache"
    (image / "etc/ld.so.cache").unlink()
    assert loaded(image, "/opt/plain/liba.so") == "/usr/lib/libdep.so.1", "then the default directories"


def test_another_machines_library_is_passed_by(image: Path) -> None:
    library(image / "opt/plain/liba.so", needs=[image / "usr/lib/libdep.so.1"])
    patch_machine(image / "opt/conf/libdep.so.1", AARCH64)
    assert loaded(image, "/opt/plain/liba.so") == "/usr/lib/libdep.so.1"


def test_closure(image: Path) -> None:
    third = library(image / "usr/lib/libthird.so.3")
    gone = library(image / "usr/lib/libgone.so.1")
    second = library(image / "usr/lib/libsecond.so.2", needs=[third, gone])
    libc = library(image / "usr/lib/libc.so.6")
    library(image / "usr/lib/libfirst.so.1", needs=[second, libc])
    gone.unlink()
    with DirectoryTree(str(image)) as tree:
        libraries = Libraries(tree)
        first = libraries.load("/usr/lib/libfirst.so.1")
        assert first is not None
        closure = libraries.closure([first])
    assert list(closure.libraries) == ["libsecond.so.2", "libthird.so.3"], "without the C library"
    assert [(name, who.path) for name, who in closure.missing] == [("libgone.so.1", "/usr/lib/libsecond.so.2")]


EVERYWHERE = {
    "/usr/lib64/mpich/lib/libmpi.so.12",
    "/opt/conda/envs/a/lib/libmpi.so.12",
    "/opt/conda/envs/a/lib/libmpi.so.12.1.10",
    "/deep/er/libmpi.so.12",
}


def test_copies_hidden_from_the_loader(image: Path) -> None:
    with DirectoryTree(str(image)) as tree:
        found = find_libraries(tree, ["libmpi.so", "libnothing.so"])
    assert {one.path for one in found["libmpi.so"]} == EVERYWHERE
    assert found["libnothing.so"] == []
    assert {one.real for one in found["libmpi.so"]} == EVERYWHERE - {"/opt/conda/envs/a/lib/libmpi.so.12"}


def test_the_same_from_a_squash_file(image: Path, tmp_path: Path) -> None:
    squash = tmp_path / "i.squash"
    subprocess.run(["mksquashfs", str(image), str(squash), "-quiet", "-no-progress"], check=True, timeout=60)
    with SquashImage.open(str(squash)) as opened, DirectoryTree(str(image)) as tree:
        assert find_libraries(SquashTree(opened), ["libmpi.so"]) == find_libraries(tree, ["libmpi.so"])


def test_prefixes_of_the_images_own_path_come_first(image: Path) -> None:
    library(image / "var/env/lib/libmpi.so.12")
    with DirectoryTree(str(image)) as tree:
        found = find_libraries(tree, ["libmpi.so"], environ={"PATH": "/var/env/bin:/usr/bin"})
        assert "/var/env/lib/libmpi.so.12" in {one.path for one in found["libmpi.so"]}


def test_a_hostile_tree(tmp_path: Path) -> None:
    top = tmp_path / "image"
    library(tmp_path / "outside/libmpi.so.12")
    for place in ("opt/a", "usr/lib", "etc"):
        (top / place).mkdir(parents=True)
    link(top / "opt/a/libmpi.so.12", "../../../outside/libmpi.so.12")
    link(top / "usr/lib/libmpi.so.12", str(tmp_path / "outside/libmpi.so.12"))
    link(top / "opt/circle", "../opt")
    link(top / "opt/loop", "loop")
    os.mkfifo(top / "opt/a/libmpi.so.13")
    (top / "opt/a/libmpi.so").write_text("GROUP ( libmpi.so.12 )\n")
    (top / "opt/a/libmpi.so.14").write_bytes(b"\x7fELF\x02\x01")
    (top / "etc/ld.so.conf").write_text("include /etc/ld.so.conf\n/opt/a\n")
    (top / "etc/ld.so.cache").write_text("nonsense")
    library(top / "opt/a\nb/libmpi.so.12")
    with DirectoryTree(str(top)) as tree:
        libraries = Libraries(tree)
        found = libraries.copies(lambda name: name.startswith("libmpi"))
    assert [one.path for one in found] == ["/opt/a\nb/libmpi.so.12"]
    unreadable = ["/etc/ld.so.cache", "'/opt/a/libmpi.so.13':", "'/opt/a/libmpi.so.14':"]
    assert [problem.split(" ")[0] for problem in libraries.problems] == unreadable
    assert not any("\n" in problem for problem in libraries.problems)


def test_a_tree_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squashmount.oci_hooks.libraries._MOST_DIRECTORIES", 50)
    for number in range(100):
        (tmp_path / f"opt/{number}").mkdir(parents=True)
    library(tmp_path / "opt/00/libmpi.so.12")
    with DirectoryTree(str(tmp_path)) as tree:
        libraries = Libraries(tree)
        assert len(libraries.copies(lambda name: name.startswith("libmpi"))) == 1, "the upper directories come first"
    assert "Only the first 51 directories" in libraries.problems[0]
