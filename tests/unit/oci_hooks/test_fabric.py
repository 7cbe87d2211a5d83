"""libfabric-cxi together with a host MPI that is linked with another libfabric: one of them wins, for both."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elf_files import library, link
from squashmount.oci_hooks import module
from squashmount.oci_hooks.plan import Plan
from squashmount.oci_hooks.planning import Image, Site, make_plan
from squashmount.oci_hooks.policy import SHIPPED_DIR, Policy
from squashmount.oci_hooks.tree import DirectoryTree

PRIVATE = "/run/squashmount/lib"
CRAY = "/opt/cray/libfabric/1.22/lib64"
MODULES = {path.stem: module.load(str(path)) for path in Path(SHIPPED_DIR).glob("*.toml")}
OLD = {"FABRIC_1.0": ["fi_open"], "FABRIC_1.6": ["fi_six"]}
NEW = {**OLD, "FABRIC_1.7": ["fi_seven"]}
Planned = Callable[..., Plan]


def libfabric(
    folder: Path, versions: dict[str, list[str]], *, needs: tuple[Path, ...] = (), number: str = "1.26"
) -> Path:
    """Make a libfabric with its link and a directory of providers."""
    made = library(folder / f"libfabric.so.{number}", soname="libfabric.so.1", defines=versions, needs=needs)
    (folder / "libfabric.so.1").unlink(missing_ok=True)
    link(folder / "libfabric.so.1", made.name)
    library(folder / "libfabric/libopx-fi.so")
    return made


class Two:
    """A host with two of them: Cray's (with cxi), and the distribution's, which the MPI was linked with."""

    def __init__(self, top: Path) -> None:
        self.host, self.image = top / "host", top / "image"
        for tree in (self.host, self.image):
            library(tree / "usr/lib/libc.so.6", defines={"GLIBC_2.2.5": ["printf"]})
        self.cxi = library(self.host / "usr/lib/libcxi.so.1", defines={"": ["cxi"]})
        (self.host / "dev").mkdir()
        os.mkfifo(self.host / "dev/cxi0")
        libfabric(self.host / CRAY[1:], NEW, needs=(self.cxi,))
        self.linked = libfabric(self.host / "usr/lib", OLD, number="1.18")
        self.mpi(self.host, uses="fi_six", needs=(self.linked,))
        self.mpi(self.image)

    def mpi(self, tree: Path, uses: str = "printf", needs: tuple[Path, ...] = (), runpath: str = "") -> None:
        """Make the MPI of a tree."""
        needs = (tree / "usr/lib/libc.so.6", *needs)
        made = tree / "usr/lib/libmpi.so.12.2.2"
        library(
            made, soname="libmpi.so.12", defines={"": ["MPI_Init"]}, uses=["printf", uses], needs=needs, runpath=runpath
        )
        if not (made.parent / "libmpi.so.12").exists():
            link(made.parent / "libmpi.so.12", made.name)


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


@pytest.fixture
def planned(two: Two) -> Iterator[Planned]:
    with DirectoryTree(str(two.host)) as host, DirectoryTree(str(two.image)) as image:

        def planned(
            *names: str, environ: dict[str, str] | None = None, image_env: dict[str, str] | None = None
        ) -> Plan:
            annotations = {"squashmount.mpi": "auto"} | {f"squashmount.{name}": "on" for name in names}
            return make_plan(Site(MODULES, Policy(), host, environ or {}), Image(image, image_env or {}, annotations))

        yield planned


def sources(plan: Plan) -> dict[str, str]:
    assert plan.errors == ()
    return {mount.target: mount.source for mount in plan.mounts}


def test_the_one_with_cxi_is_what_the_mpi_gets(planned: Planned) -> None:
    plan = planned("libfabric-cxi")
    found = sources(plan)
    assert found["/usr/lib/libmpi.so.12.2.2"] == "/usr/lib/libmpi.so.12.2.2"
    assert found[f"{PRIVATE}/libfabric.so.1"] == f"{CRAY}/libfabric.so.1.26"
    assert found[f"{PRIVATE}/libfabric"] == f"{CRAY}/libfabric"
    assert found[f"{PRIVATE}/libcxi.so.1"] == "/usr/lib/libcxi.so.1"
    assert plan.env_set["FI_PROVIDER_PATH"] == f"{PRIVATE}/libfabric"
    why = "is used in the place of /usr/lib/libfabric.so.1: it has the provider cxi, which this node's network needs."
    assert f"mpich: {CRAY}/libfabric.so.1 {why}" in plan.reasons


def test_the_mpis_own_where_it_has_cxi_and_is_newer(two: Two, planned: Planned) -> None:
    newer = {**NEW, "FABRIC_1.8": ["fi_eight"]}
    libfabric(two.host / "usr/lib", newer, needs=(two.cxi,), number="1.30")
    plan = planned("libfabric-cxi")
    assert sources(plan)[f"{PRIVATE}/libfabric.so.1"] == "/usr/lib/libfabric.so.1.30"
    assert sources(plan)[f"{PRIVATE}/libfabric"] == "/usr/lib/libfabric"
    assert any(
        text.startswith("libfabric-cxi: /usr/lib/libfabric.so.1 is used in the place of") for text in plan.reasons
    )


def test_a_plugin_is_a_provider_too(two: Two, planned: Planned) -> None:
    libfabric(two.host / "usr/lib", {**NEW, "FABRIC_1.8": ["fi_eight"]}, number="1.30")
    assert CRAY in sources(planned("libfabric-cxi"))[f"{PRIVATE}/libfabric.so.1"]
    library(two.host / "usr/lib/libfabric/libcxi-fi.so", needs=[two.cxi])
    assert sources(planned("libfabric-cxi"))[f"{PRIVATE}/libfabric.so.1"] == "/usr/lib/libfabric.so.1.30"


def test_without_cxi_the_newer_one(two: Two, planned: Planned) -> None:
    """The module libfabric takes the loader's; the MPI brings its own by a run path."""
    (two.host / "dev/cxi0").unlink()
    own = libfabric(two.host / "opt/mpi/lib", NEW)
    two.mpi(two.host, uses="fi_six", needs=(own,), runpath="/opt/mpi/lib")
    plan = planned("libfabric")
    assert sources(plan)[f"{PRIVATE}/libfabric.so.1"] == "/opt/mpi/lib/libfabric.so.1.26"
    assert any(text.endswith("in the place of /usr/lib/libfabric.so.1: it is the newer one.") for text in plan.reasons)
    two.mpi(two.host, uses="fi_seven", needs=(own,), runpath="/opt/mpi/lib")
    assert any(text.endswith(": it has all that is needed of it.") for text in planned("libfabric").reasons)


def test_what_cannot_work_is_one_clear_error(two: Two, planned: Planned) -> None:
    """The MPI needs what only a libfabric without cxi has."""
    newest = libfabric(two.host / "usr/lib", {**NEW, "FABRIC_1.8": ["fi_eight"]}, number="1.30")
    two.mpi(two.host, uses="fi_eight", needs=(newest,))
    plan = planned("libfabric-cxi")
    (error,) = plan.errors
    assert "missing-dependency: needs FABRIC_1.8 (fi_eight)" in error
    assert f"which the host's {CRAY}/libfabric.so.1 (up to FABRIC_1.7) does not have" in error


def test_each_by_itself_is_as_before(planned: Planned) -> None:
    assert sources(planned())[f"{PRIVATE}/libfabric.so.1"] == "/usr/lib/libfabric.so.1.18"


def test_a_provider_path_of_the_job_or_the_image_does_not_stand(two: Two, planned: Planned) -> None:
    plan = planned("libfabric-cxi", environ={"FI_PROVIDER_PATH": "/opt/host/only", "FI_CXI_OFLOW": "1"})
    assert plan.env_set == {"FI_CXI_OFLOW": "1", "FI_PROVIDER_PATH": f"{PRIVATE}/libfabric"}
    assert "FI_PROVIDER_PATH of the job is not passed on: a module sets it" in plan.rejected
    assert plan.passed == ("FI_CXI_OFLOW",)
    (two.host / CRAY[1:] / "libfabric/libopx-fi.so").unlink()
    (two.host / CRAY[1:] / "libfabric").rmdir()
    plan = planned("libfabric-cxi", image_env={"FI_PROVIDER_PATH": "/opt/image/prov"})
    assert plan.env_set == {"FI_PROVIDER_PATH": f"{PRIVATE}/libfabric"}, (
        "not the image's providers for the host's library"
    )
