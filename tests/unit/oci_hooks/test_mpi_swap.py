"""The swap of MPI libraries, planned for trees of real ELF files: every verdict, every layout, and nothing outside."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from elf_files import AARCH64, foreign, library, link, patch_machine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from squashmount.oci_hooks.elf import read_elf
from squashmount.oci_hooks.libraries import Libraries
from squashmount.oci_hooks.module import LibraryRule, Module
from squashmount.oci_hooks.mpi import is_mpi, plan_mpi
from squashmount.oci_hooks.plan import Contribution, Mount
from squashmount.oci_hooks.planners import Question, planner
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

LIB = "usr/lib"
PRIVATE = "/run/squashmount/lib"
OLD = {"GLIBC_2.2.5": ["printf"], "GLIBC_2.31": ["old_thing"]}
NEW = {**OLD, "GLIBC_2.34": ["pthread_create", "dlsym"]}


@dataclass
class World:
    """A host and an image, each with a C library; MPI libraries are added by the tests."""

    top: Path
    environ: dict[str, str] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def host(self) -> Path:
        return self.top / "host"

    @property
    def image(self) -> Path:
        return self.top / "image"

    def libc(self, *, host: bool = True, image: bool = True) -> "World":
        """Make the C libraries: new ones (GLIBC_2.34) or old ones (GLIBC_2.31)."""
        for top, new in ((self.host, host), (self.image, image)):
            library(top / LIB / "libc.so.6", defines=NEW if new else OLD)
        return self

    def plan(self, mpi: Sequence[str] = (), **options: object) -> Contribution:
        """Plan with the host's libraries at these paths, or all the loader knows."""
        host = Libraries(self.stack.enter_context(DirectoryTree(str(self.host))))
        image = Libraries(self.stack.enter_context(DirectoryTree(str(self.image))), self.environ)
        found = [one for path in mpi if (one := host.load(path))] if mpi else host.copies(is_mpi, walk=False)
        return plan_mpi(image, host, found, **options)  # type: ignore[arg-type]

    def mpi(
        self,
        top: Path,
        name: str = "libmpi.so.12.2.2",
        functions: Sequence[str] = ("MPI_Init", "MPI_Send"),
        uses: Sequence[str] = ("printf",),
        needs: Sequence[Path] = (),
        folder: str = LIB,
        **options: str,
    ) -> Path:
        """Make an MPI library with its links, as ldconfig would."""
        stem, _, numbers = name.partition(".so.")
        soname = options.pop("soname", f"{stem}.so.{numbers.split('.')[0]}")
        libc = top / LIB / "libc.so.6"
        path = top / folder / name
        library(path, soname=soname, defines={"": functions}, uses=uses, needs=[libc, *needs], **options)
        if soname != name and not (path.parent / soname).exists():
            link(path.parent / soname, name)
        return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.stack.close()


def swaps(plan: Contribution) -> set[tuple[str, str]]:
    return {(mount.source, mount.target) for mount in plan.mounts}


def test_a_swap(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    plan = world.plan()
    assert plan.mounts == (Mount("/usr/lib/libmpi.so.12.2.2", "/usr/lib/libmpi.so.12.1.10", create="none"),)
    assert plan.env_prepend == {}, "nothing else is needed"
    assert plan.reasons == ("/usr/lib/libmpi.so.12 takes the place of /usr/lib/libmpi.so.12 (libmpi.so.12.1.10).",)
    assert not plan.missing
    assert not plan.errors
    assert not plan.warnings


def test_a_newer_glibc_is_named_with_its_symbols(world: World) -> None:
    world.libc(image=False).mpi(world.host, uses=["printf", "pthread_create", "dlsym"])
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    plan = world.plan()
    assert plan.mounts == ()
    assert len(plan.missing) == 1
    assert "newer-glibc: needs GLIBC_2.34 (dlsym, pthread_create), which the image's " in plan.missing[0]
    assert "libc.so.6 (up to GLIBC_2.31) does not have" in plan.missing[0]
    assert world.plan(host_glibc=True).missing == (), "with the host's C library in the container it fits"
    assert len(world.plan(host_glibc=True).mounts) == 1


def test_an_image_without_glibc(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    (world.image / LIB / "libc.so.6").unlink()
    assert "missing-dependency: the image has no libc.so.6 (musl?)" in world.plan().missing[0]


def test_another_machine(world: World) -> None:
    world.libc().mpi(world.host)
    patch_machine(world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"]), AARCH64)
    plan = world.plan()
    assert plan.mounts == ()
    assert "wrong-machine: is for X86_64 64-bit, the image's " in plan.missing[0]
    assert plan.missing[0].endswith(" for AARCH64 64-bit")


def test_a_second_machine_in_the_image_does_not_stop_the_first(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    patch_machine(world.mpi(world.image, "libmpi.so.12.1.9", functions=["MPI_Init"], folder="opt/other"), AARCH64)
    plan = world.plan()
    assert swaps(plan) == {("/usr/lib/libmpi.so.12.2.2", "/usr/lib/libmpi.so.12.1.10")}
    assert [text for text in plan.rejected if "wrong-machine" in text]


KINDS = {
    "386 32-bit": {"bits": 32, "little": True, "machine": 3},
    "S390 64-bit big-endian": {"bits": 64, "little": False, "machine": 22},
    "PPC64 64-bit": {"bits": 64, "little": True, "machine": 21},
    "PPC64 64-bit big-endian": {"bits": 64, "little": False, "machine": 21},
    "PPC 32-bit big-endian": {"bits": 32, "little": False, "machine": 20},
}


def of_kind(tree: Path, kind: str, number: str) -> None:
    for name, needs in (
        ("libc.so.6", ()),
        (f"libmpi.so.12.{number}", ("libc.so.6", "libnet.so.1")),
        ("libnet.so.1", ()),
    ):
        soname = "libmpi.so.12" if "mpi" in name else name
        foreign(tree / LIB / name, soname=soname, needs=needs, **KINDS[kind])  # type: ignore[arg-type]
    link(tree / LIB / "libmpi.so.12", f"libmpi.so.12.{number}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_and_byte_order(world: World, kind: str) -> None:
    """Hand-built files: of two of the same kind one replaces the other, and none replaces that of another machine."""
    of_kind(world.host, kind, "2.2")
    of_kind(world.image, kind, "1.0")
    plan = world.plan()
    assert not plan.missing
    assert swaps(plan) == {("/usr/lib/libmpi.so.12.2.2", "/usr/lib/libmpi.so.12.1.0")}
    for name in ("libc.so.6", "libnet.so.1"):
        library(world.host / LIB / name)
    library(world.host / LIB / "libmpi.so.12.2.2", soname="libmpi.so.12")
    plan = world.plan()
    assert plan.mounts == ()
    assert plan.missing[0].endswith(f" for {kind}")
    assert "wrong-machine: is for X86_64 64-bit" in plan.missing[0]


def test_musl(world: World) -> None:
    """Alpine: MPICH linked with musl; the host's C library cannot be put there, either."""
    world.libc()
    (world.image / LIB / "libc.so.6").unlink()
    musl = library(world.image / "lib/ld-musl-x86_64.so.1", soname="libc.musl-x86_64.so.1", defines={"": ["printf"]})
    link(world.image / "lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1")
    made = world.image / LIB / "libmpi.so.12.1.10"
    library(made, soname="libmpi.so.12", defines={"": ["MPI_Init"]}, uses=["printf"], needs=[musl])
    link(world.image / LIB / "libmpi.so.12", made.name)
    world.mpi(world.host)
    for injected in (False, True):
        plan = world.plan(host_glibc=injected)
        assert plan.mounts == ()
        assert "the image has no libc.so.6 (musl?)" in plan.missing[0]
    # also when no symbol version says that glibc is needed
    library(world.host / LIB / "libc.so.6", defines={"": ["printf"]})
    library(world.host / LIB / "libmpi.so.12.2.2", soname="libmpi.so.12", needs=[world.host / LIB / "libc.so.6"])
    assert "the image has no libc.so.6 (musl?)" in world.plan(mismatch="warn").missing[0]


@pytest.mark.parametrize("how", ["-static", "-static-pie"])
def test_a_static_program_keeps_its_mpi(world: World, how: str) -> None:
    world.libc().mpi(world.host)
    program = world.image / "usr/bin/solver"
    program.parent.mkdir(parents=True)
    source = "void MPI_Init(void) {} void _start(void) { MPI_Init(); for (;;); }"
    argv = ["gcc", how, "-fPIE", "-nostdlib", "-x", "c", "-", "-o", str(program)]
    subprocess.run(argv, input=source, text=True, check=True, timeout=60)
    with program.open("rb") as file:
        assert (read_elf(file).interpreter, read_elf(file).needed) == ("", ())
    plan = world.plan()
    assert (plan.mounts, plan.missing) == ((), ())
    assert "linked in statically keeps it" in plan.rejected[0]
    assert "no MPI library" in world.plan(required=True).missing[0]


def test_conda_beside_a_cache_that_does_not_know_it(world: World) -> None:
    """The distribution's ldconfig writes the cache; conda and spack are found by run paths only."""
    world.libc().mpi(world.host)
    for folder in (LIB, "opt/conda/lib", "home/user/spack/opt/spack/linux/mpich-4.1/lib"):
        world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"], folder=folder)
    (world.image / "etc").mkdir()
    subprocess.run(["/sbin/ldconfig", "-r", str(world.image)], check=True, timeout=60)
    cache = (world.image / "etc/ld.so.cache").read_bytes()
    assert b"libmpi.so.12" in cache
    assert b"conda" not in cache
    assert {mount.target for mount in world.plan().mounts} == {
        "/usr/lib/libmpi.so.12.1.10",
        "/opt/conda/lib/libmpi.so.12.1.10",
        "/home/user/spack/opt/spack/linux/mpich-4.1/lib/libmpi.so.12.1.10",
    }


@pytest.mark.parametrize(("theirs", "chosen"), [("GLIBCXX_3.4.28", "host"), ("GLIBCXX_3.4.30", "image")])
def test_the_runtimes_of_the_compilers(world: World, theirs: str, chosen: str) -> None:
    """Host: its MPI is partly C++ and has a Fortran library of gfortran 8 or newer; the image has an older gfortran."""
    world.libc()
    defines = {"GLIBCXX_3.4": ["cxx"], "GLIBCXX_3.4.28": ["cxx_28"], "GLIBCXX_3.4.30": ["cxx_30"]}
    cxx = library(world.host / LIB / "libstdc++.so.6.0.30", soname="libstdc++.so.6", defines=defines)
    link(world.host / LIB / "libstdc++.so.6", cxx.name)
    own = {name: functions for name, functions in defines.items() if name <= theirs}
    library(
        world.image / LIB / "libstdc++.so.6", defines={**own, f"{theirs}.1": ["newer"]} if chosen == "image" else own
    )
    fortran = library(world.host / LIB / "libgfortran.so.5", defines={"GFORTRAN_8": ["f8"]})
    library(world.image / LIB / "libgfortran.so.4", defines={"GFORTRAN_7": ["f7"]})
    ours = world.mpi(world.host, uses=["cxx_30"], needs=[cxx])
    world.mpi(
        world.host, "libmpifort.so.12.2.2", functions=["mpi_init_"], uses=["MPI_Init", "f8"], needs=[ours, fortran]
    )
    old = world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    world.mpi(world.image, "libmpifort.so.12.1.10", functions=["mpi_init_"], uses=["MPI_Init"], needs=[old])
    plan = world.plan()
    assert not plan.missing
    found = {mount.target for mount in plan.mounts}
    assert f"{PRIVATE}/libgfortran.so.5" in found, "another SONAME: both may be loaded"
    assert (f"{PRIVATE}/libstdc++.so.6" in found) is (chosen == "host")


def test_what_not_even_the_host_has(world: World) -> None:
    world.libc()
    gone = library(world.host / LIB / "libgone.so.1")
    world.mpi(world.host, needs=[gone])
    gone.unlink()
    world.mpi(world.image, functions=["MPI_Init"])
    plan = world.plan()
    assert plan.mounts == ()
    assert plan.missing[0].endswith("missing-dependency: needs libgone.so.1, which is not on this host")


def test_the_closure_comes_along(world: World) -> None:
    world.libc()
    deep = library(world.host / "opt/net/libdeep.so.2", defines={"": ["deep"]})
    net = library(world.host / "opt/net/libnet.so.1", defines={"": ["net"]}, needs=[deep], runpath="/opt/net")
    world.mpi(world.host, needs=[net], runpath="/opt/net")
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    plan = world.plan()
    assert swaps(plan) == {
        ("/usr/lib/libmpi.so.12.2.2", "/usr/lib/libmpi.so.12.1.10"),
        ("/opt/net/libnet.so.1", f"{PRIVATE}/libnet.so.1"),
        ("/opt/net/libdeep.so.2", f"{PRIVATE}/libdeep.so.2"),
    }
    assert plan.env_prepend == {"LD_LIBRARY_PATH": PRIVATE}


@pytest.mark.parametrize(
    ("ours", "theirs", "uses", "chosen"),
    [
        (["V_1", "V_2"], ["V_1"], "V_2", "host"),
        (["V_1", "V_2"], ["V_1"], "V_1", "image"),
        (["V_1"], ["V_1", "V_2"], "V_1", "image"),
        (["V_1", "V_X"], ["V_1", "V_Y"], "V_1", "image"),
    ],
)
def test_whose_dependency(world: World, ours: list[str], theirs: list[str], uses: str, chosen: str) -> None:
    """The image's, when it has the versions that are needed."""
    world.libc()
    needs = [library(world.host / LIB / "libz.so.1", defines={v: [f"f_{v}", "h" + v] for v in ours})]
    library(world.image / LIB / "libz.so.1", defines={v: [f"f_{v}"] for v in theirs})
    world.mpi(world.host, uses=[f"f_{uses}"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    plan = world.plan()
    assert not plan.missing
    assert (("/usr/lib/libz.so.1", f"{PRIVATE}/libz.so.1") in swaps(plan)) is (chosen == "host")
    assert ("LD_LIBRARY_PATH" in plan.env_prepend) is (chosen == "host")


@pytest.mark.parametrize(("theirs", "chosen"), [(["a", "b", "c"], "image"), (["a"], "host")])
def test_whose_dependency_without_versions(world: World, theirs: list[str], chosen: str) -> None:
    """By symbols, where there are no versions."""
    world.libc()
    needs = [library(world.host / LIB / "libhwloc.so.15.6.1", soname="libhwloc.so.15", defines={"": ["a", "b"]})]
    link(world.host / LIB / "libhwloc.so.15", "libhwloc.so.15.6.1")
    library(world.image / LIB / "libhwloc.so.15", defines={"": theirs})
    world.mpi(world.host, uses=["b"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    assert (f"{PRIVATE}/libhwloc.so.15" in {mount.target for mount in world.plan().mounts}) is (chosen == "host")


def test_the_images_own_is_no_help_without_what_it_needs_itself(world: World) -> None:
    world.libc()
    needs = [library(world.host / LIB / "libz.so.1", defines={"": ["z"]})]
    gone = library(world.image / LIB / "libgone.so.1")
    library(world.image / LIB / "libz.so.1", defines={"": ["z", "more"]}, needs=[gone])
    gone.unlink()
    world.mpi(world.host, uses=["z"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    assert f"{PRIVATE}/libz.so.1" in {mount.target for mount in world.plan().mounts}


def test_what_only_a_spurned_library_needs_stays_behind(world: World) -> None:
    world.libc()
    deep = library(world.host / LIB / "libdeep.so.1", defines={"": ["deep"]})
    needs = [library(world.host / LIB / "libz.so.1", defines={"": ["z"]}, uses=["deep"], needs=[deep])]
    library(world.image / LIB / "libz.so.1", defines={"": ["z"]})
    world.mpi(world.host, uses=["z"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    assert len(world.plan().mounts) == 1


def verbs(top: Path, newest: str, *, providers: bool = True) -> list[Path]:
    """Make rdma-core: libibverbs with its providers, and libmlx5, which is one of them."""
    versions = {"IBVERBS_1.0": ["ibv_open"], newest: ["ibv_new"], f"IBVERBS_PRIVATE_{newest[-2:]}": ["verbs_init"]}
    made = library(top / LIB / "libibverbs.so.1.14", soname="libibverbs.so.1", defines=versions)
    link(top / LIB / "libibverbs.so.1", "libibverbs.so.1.14")
    mlx5 = library(top / LIB / "libmlx5.so.1", defines={"MLX5_1.0": ["mlx5_open"]}, uses=["verbs_init"], needs=[made])
    if providers:
        link(top / LIB / "libibverbs/libmlx5-rdmav34.so", "../libmlx5.so.1")
        library(top / LIB / "libibverbs/librxe-rdmav34.so", uses=["verbs_init"], needs=[made])
        (top / "etc/libibverbs.d").mkdir(parents=True)
    return [made, mlx5]


@pytest.mark.parametrize(
    ("theirs", "providers", "whose"),
    [
        ("IBVERBS_1.14", True, "image"),
        ("IBVERBS_1.14", False, "host"),
        ("IBVERBS_1.10", True, "host"),
        ("", False, "host"),
    ],
)
def test_rdma_core_is_one_set(world: World, theirs: str, *, providers: bool, whose: str) -> None:
    world.libc()
    needs = verbs(world.host, "IBVERBS_1.14")
    if theirs:
        verbs(world.image, theirs, providers=providers)
    library(world.image / LIB / "libother.so")
    world.mpi(world.host, uses=["ibv_open", "mlx5_open"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    plan = world.plan()
    expected = {
        ("/usr/lib/libibverbs.so.1.14", f"{PRIVATE}/libibverbs.so.1"),
        ("/usr/lib/libmlx5.so.1", f"{PRIVATE}/libmlx5.so.1"),
        ("/usr/lib/libmlx5.so.1", f"{PRIVATE}/libmlx5-rdmav34.so"),
        ("/usr/lib/libibverbs", "/usr/lib/libibverbs"),
        ("/etc/libibverbs.d", "/etc/libibverbs.d"),
    }
    if whose == "image" and theirs == "IBVERBS_1.14":
        # the same builds in both trees are no news: what counts is that none of them comes along
        assert not swaps(plan) & expected
    else:
        assert expected <= swaps(plan)
    assert not plan.missing


def test_rdma_core_of_the_image_must_know_the_cards(world: World) -> None:
    """As new as the host's and complete, but without the provider for the card of this node."""
    world.libc()
    needs = verbs(world.host, "IBVERBS_1.34")
    verbs(world.image, "IBVERBS_1.34")
    device = world.host / "sys/class/infiniband_verbs/uverbs0/device"
    device.mkdir(parents=True)
    link(device / "driver", "/sys/bus/pci/drivers/bnxt_en")
    (world.host / "sys/bus/pci/drivers/bnxt_en").mkdir(parents=True)
    (world.host / "dev/infiniband").mkdir(parents=True)
    os.mkfifo(world.host / "dev/infiniband/uverbs0")
    world.mpi(world.host, uses=["ibv_open"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    plan = world.plan()
    assert ("/usr/lib/libibverbs", "/usr/lib/libibverbs") in swaps(plan)
    (said,) = [text for text in plan.reasons if "rdma-core" in text]
    assert "is the host's: " in said
    assert "uverbs0 (bnxt_en)" in said


def test_dependencies_that_exclude_each_other(world: World) -> None:
    world.libc()
    needs = [library(world.host / LIB / "libz.so.1", defines={"V_1": ["a"], "V_X": ["x"]})]
    library(world.image / LIB / "libz.so.1", defines={"V_1": ["a"], "V_Y": ["y"]})
    world.mpi(world.host, uses=["x"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    plan = world.plan()
    assert plan.mounts == ()
    assert "abi-mismatch: the image needs its own" in plan.missing[0]
    assert "libz.so.1" in plan.missing[0]


def test_the_same_build_stays(world: World) -> None:
    world.libc()
    needs = [library(top / LIB / "libz.so.1", defines={"": ["z"]}) for top in (world.host, world.image)]
    world.mpi(world.host, needs=needs[:1])
    world.mpi(world.image, functions=["MPI_Init"])
    assert len(world.plan().mounts) == 1


def test_fabric_libraries_are_the_hosts_even_when_older(world: World) -> None:
    world.libc()
    needs = [library(world.host / LIB / "libfabric.so.1", defines={"FABRIC_1.0": ["fi_open"]})]
    library(world.image / LIB / "libfabric.so.1", defines={"FABRIC_1.0": ["fi_open"], "FABRIC_1.7": ["fi_new"]})
    library(world.host / LIB / "libfabric/libcxi-fi.so")
    world.mpi(world.host, uses=["fi_open"], needs=needs)
    world.mpi(world.image, functions=["MPI_Init"])
    plan = world.plan()
    assert ("/usr/lib/libfabric.so.1", f"{PRIVATE}/libfabric.so.1") in swaps(plan)
    assert ("/usr/lib/libfabric", f"{PRIVATE}/libfabric") in swaps(plan), "its providers, too"
    assert plan.env_set == {"FI_PROVIDER_PATH": f"{PRIVATE}/libfabric"}
    assert "it must fit the host's network" in plan.warnings[0]


@pytest.mark.parametrize(("newer", "verdict"), [(False, ""), (True, "pinned-by-rpath")])
def test_pinned_by_run_path(world: World, newer: bool, verdict: str) -> None:
    """conda: programs find libz beside libmpi by DT_RPATH, which comes before LD_LIBRARY_PATH."""
    world.libc()
    defines = {"V_1": ["a"], "V_2": ["b"]}
    needs = [library(world.host / LIB / "libz.so.1", defines=defines)]
    theirs = {"V_1": ["a"], "V_3": ["c"]} if newer else {"V_1": ["a"]}
    library(world.image / "opt/conda/lib/libz.so.1", defines=theirs)
    world.mpi(world.host, uses=["b"], needs=needs)
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"], folder="opt/conda/lib")
    plan = world.plan()
    if not newer:
        assert ("/usr/lib/libz.so.1", "/opt/conda/lib/libz.so.1") in swaps(plan), "in its place, for the run path"
        assert ("/usr/lib/libz.so.1", f"{PRIVATE}/libz.so.1") in swaps(plan)
    else:
        assert plan.mounts == ()
        assert (
            f"{verdict}: the run path that finds the MPI library beside it leads to /opt/conda/lib" in plan.missing[0]
        )


def test_run_path_of_the_hosts_own_library(world: World) -> None:
    world.libc()
    needs = [library(world.host / "opt/net/lib/libnet.so.1", defines={"V_2": ["net"]})]
    library(world.image / "opt/net/lib/libnet.so.1", defines={"": ["other"]})
    world.mpi(world.host, uses=["net"], needs=needs, rpath="/opt/net/lib")
    world.mpi(world.image, functions=["MPI_Init"])
    assert ("/opt/net/lib/libnet.so.1", "/opt/net/lib/libnet.so.1") in swaps(world.plan())


def test_a_downgrade_is_judged_by_the_policy(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(
        world.image, "libmpi.so.12.4.1", functions=["MPI_Init", "MPI_Send", "MPI_Session_new", "PMPI_Session_new"]
    )
    plan = world.plan()
    assert plan.mounts == ()
    assert "downgrade: the host's ABI version 12.2.2 is older than 12.4.1 of " in plan.errors[0]
    assert "1 functions are lost (MPI_Session_new)" in plan.errors[0]
    warned = world.plan(mismatch="warn")
    assert len(warned.mounts) == 1
    assert (warned.errors, warned.warnings) == ((), plan.errors)


def test_several_copies(world: World) -> None:
    world.libc().mpi(world.host)
    for folder in (LIB, "opt/conda/envs/a/lib", "opt/spack/mpich-3.4/lib", "usr/lib64/mpich/lib"):
        world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"], folder=folder)
    plan = world.plan()
    assert {mount.target for mount in plan.mounts} == {
        "/usr/lib/libmpi.so.12.1.10",
        "/opt/conda/envs/a/lib/libmpi.so.12.1.10",
        "/opt/spack/mpich-3.4/lib/libmpi.so.12.1.10",
        "/usr/lib64/mpich/lib/libmpi.so.12.1.10",
    }


def test_debians_name_and_the_common_one(world: World) -> None:
    """Host Debian (libmpich.so.12, also needed by its Fortran library), image RHEL (libmpi.so.12)."""
    world.libc()
    ours = world.mpi(world.host, "libmpich.so.12.2.2")
    world.mpi(world.host, "libmpichfort.so.12.2.2", functions=["mpi_init_"], uses=["MPI_Init"], needs=[ours])
    theirs = world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    world.mpi(world.image, "libmpifort.so.12.1.10", functions=["mpi_init_"], uses=["MPI_Init"], needs=[theirs])
    assert swaps(world.plan()) == {
        ("/usr/lib/libmpich.so.12.2.2", "/usr/lib/libmpi.so.12.1.10"),
        ("/usr/lib/libmpichfort.so.12.2.2", "/usr/lib/libmpifort.so.12.1.10"),
        ("/usr/lib/libmpich.so.12.2.2", f"{PRIVATE}/libmpich.so.12"),
    }


def test_cray_names_in_the_image(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image, "libmpich_gnu_71.so.3.0.1", functions=["MPI_Init"], folder="opt/cray/lib")
    link(world.image / "opt/cray/lib/libmpi.so.12", "libmpich_gnu_71.so.3")
    plan = world.plan()
    assert swaps(plan) == {("/usr/lib/libmpi.so.12.2.2", "/opt/cray/lib/libmpich_gnu_71.so.3.0.1")}
    assert "do not tell which is newer; no function of MPI is lost" in " ".join(plan.reasons)


def test_cray_names_on_the_host(world: World) -> None:
    world.libc()
    world.mpi(world.host, "libmpich_gnu_71.so.3.0.1", folder="opt/cray/lib")
    link(world.host / "opt/cray/lib/libmpi.so.12", "libmpich_gnu_71.so.3")
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    plan = world.plan(["/opt/cray/lib/libmpi.so.12"])
    assert swaps(plan) == {("/opt/cray/lib/libmpich_gnu_71.so.3.0.1", "/usr/lib/libmpi.so.12.1.10")}


def test_a_cray_library_without_the_common_name_is_left_alone(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image, "libmpich_gnu_71.so.3.0.1")
    plan = world.plan()
    assert plan.mounts == ()
    assert "libmpich_gnu_71.so.3 is not of the MPICH ABI" in plan.rejected[0]


def test_intel_names(world: World) -> None:
    """Intel MPI: libmpi.so.12.0.0 in /opt/intel, with functions of its own that no program of the ABI uses."""
    world.libc().mpi(world.host)
    folder = "opt/intel/oneapi/mpi/2021.11/lib/release"
    world.mpi(world.image, "libmpi.so.12.0.0", functions=["MPI_Init", "MPIX_Intel_only"], folder=folder)
    assert swaps(world.plan()) == {("/usr/lib/libmpi.so.12.2.2", f"/{folder}/libmpi.so.12.0.0")}


@pytest.mark.parametrize("name", ["libmpi.so.40.30.4", "libmpi.so.12.0.3"])
def test_open_mpi_is_left_alone(world: World, name: str) -> None:
    """Also Open MPI 1.10, whose library has the very SONAME of the MPICH ABI."""
    world.libc().mpi(world.host)
    needs = [library(world.image / LIB / "libopen-pal.so.13", defines={"": ["opal_init"]})]
    made = world.mpi(world.image, name, needs=needs, folder="usr/lib/openmpi/lib")
    world.mpi(world.image, "libmpi_usempif08.so.40.40.3", needs=[made], folder="usr/lib/openmpi/lib")
    plan = world.plan()
    assert len(plan.rejected) == 1, "one sentence, not one for each of its libraries"
    assert (plan.mounts, plan.missing, plan.errors) == ((), (), ())
    assert "is Open MPI: the MPICH ABI does not fit it, so it is left alone" in plan.rejected[0]
    assert world.plan(required=True).missing == plan.rejected, "asked for by name it is an error for the policy"


def test_pmix_means_open_mpi_in_an_image_with_both(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image)
    world.mpi(world.image, "libmpi.so.40.30.4", folder="usr/lib/openmpi/lib")
    assert len(world.plan().mounts) == 1
    plan = world.plan(by_pmix=True)
    assert plan.mounts == ()
    assert "libmpi.so.12.2.2) is left alone: PMIx has started this job" in plan.rejected[-1]
    assert len(world.plan(by_pmix=True, required=True).mounts) == 1
    (world.image / "usr/lib/openmpi/lib/libmpi.so.40.30.4").unlink()
    assert len(world.plan(by_pmix=True).mounts) == 1


def test_an_image_without_mpi(world: World) -> None:
    world.libc().mpi(world.host)
    why = "The image has no MPI library: there is nothing to replace (what is linked in statically keeps it)."
    assert world.plan() == Contribution(rejected=(why,))


def test_a_host_without_fitting_mpi(world: World) -> None:
    world.libc().mpi(world.host, "libmpi.so.40.30.4")
    world.mpi(world.image)
    assert "The host has no MPI library of the MPICH ABI" in world.plan().missing[0]


def test_the_standard_abi(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.host, "libmpi_abi.so.0.1.0")
    world.mpi(world.image, "libmpi_abi.so.0.0.0", functions=["MPI_Init"])
    assert swaps(world.plan()) == {("/usr/lib/libmpi_abi.so.0.1.0", "/usr/lib/libmpi_abi.so.0.0.0")}


def test_the_standard_abi_is_not_the_mpich_abi(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image, "libmpi_abi.so.0.0.0", functions=["MPI_Init"])
    plan = world.plan()
    assert plan.mounts == ()
    assert "abi-mismatch: the host has nothing in its place (libmpi_abi.so.0 is needed)" in plan.missing[0]


def wrappers(world: World, kind: str, ours: Sequence[str] | None, theirs: Sequence[str], uses: Sequence[str]) -> None:
    """Make C libraries and wrappers on both sides; `uses` is what the image's wrapper takes from its C library."""
    world.libc()
    host_c = world.mpi(world.host)
    image_c = world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init", "MPIR_internal"])
    if ours is not None:
        world.mpi(world.host, f"{kind}.so.12.2.2", functions=ours, uses=["MPI_Init"], needs=[host_c])
    world.mpi(world.image, f"{kind}.so.12.1.10", functions=theirs, uses=uses, needs=[image_c])


@pytest.mark.parametrize(("kind", "name"), [("libmpifort", "mpi_send_"), ("libmpicxx", "_ZN3MPI4InitEv")])
def test_wrappers_are_replaced(world: World, kind: str, name: str) -> None:
    wrappers(world, kind, ours=[name], theirs=[name], uses=["MPI_Init"])
    assert (f"/usr/lib/{kind}.so.12.2.2", f"/usr/lib/{kind}.so.12.1.10") in swaps(world.plan())


def test_a_fortran_library_of_another_compiler_stays(world: World) -> None:
    theirs = ["mpi_send_", "__mpi_f08_MOD_mpi_send_f08"]
    wrappers(world, "libmpifort", ours=["mpi_send_", "mpi_f08_mp_mpi_send_f08_"], theirs=theirs, uses=["MPI_Init"])
    plan = world.plan()
    assert {mount.target for mount in plan.mounts} == {"/usr/lib/libmpi.so.12.1.10"}
    assert "the host's lacks __mpi_f08_MOD_mpi_send_f08, and it works with the host's C library" in plan.reasons[-1]


def test_wrappers_the_host_has_not(world: World) -> None:
    wrappers(world, "libmpicxx", ours=None, theirs=["_ZN3MPI4InitEv"], uses=["MPI_Init"])
    assert "the host has none, and it works with the host's C library" in world.plan().reasons[-1]


def test_a_wrapper_that_needs_what_only_its_own_c_library_has(world: World) -> None:
    wrappers(world, "libmpicxx", ours=None, theirs=["_ZN3MPI4InitEv"], uses=["MPI_Init", "MPIR_internal"])
    plan = world.plan()
    assert len(plan.mounts) == 1, "programs in C do not need it"
    assert "stays the image's, but the host's C library lacks MPIR_internal: it may not load." in plan.warnings[0]


@pytest.mark.parametrize(("lost", "stops"), [("mpi_send_", True), ("__mpi_f08_types_MOD_mpi_comm_f08_ne_f", False)])
def test_a_wrapper_that_loses_names(world: World, lost: str, stops: bool) -> None:
    """The ABI promises mpif.h; the names of Fortran modules belong to the compiler, and may change between releases."""
    uses = ["MPI_Init", "MPIR_internal"]
    wrappers(world, "libmpifort", ours=["mpi_init_"], theirs=["mpi_init_", lost], uses=uses)
    plan = world.plan()
    said = plan.errors if stops else plan.warnings
    assert f"abi-mismatch: /usr/lib/libmpifort.so.12 (libmpifort.so.12.1.10) has {lost}, which it lacks" in said[0]
    assert len(world.plan(mismatch="warn").mounts) == 2
    assert bool(plan.mounts) is not stops


def test_links_of_a_hostile_image(world: World) -> None:
    """No target lies outside: a mount point is where the link leads inside, or nothing."""
    world.libc().mpi(world.host)
    outside = library(world.top / "libmpi.so.12")
    (world.image / "opt").mkdir()
    link(world.image / "opt/libmpi.so.12", str(outside))
    link(world.image / "usr/local/lib/libmpi.so.12", "../../../../../../libmpi.so.12")
    assert world.plan().mounts == ()


PLACES = st.sampled_from(["usr/lib", "usr/lib64", "opt/a/lib", "opt/a\nb", "usr/local/lib", "etc", "run/squashmount"])
TARGETS = st.sampled_from(["/../../host", "..", "/", "/etc", "/proc/self/root", "loop", "/usr/lib/libmpi.so.12.1.10"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(links=st.lists(st.tuples(PLACES, TARGETS), max_size=6), mpi=PLACES)
def test_no_target_is_ever_outside(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[str, str]], mpi: str
) -> None:
    world = World(tmp_path_factory.mktemp("world")).libc()
    needs = [library(world.host / LIB / "libnet.so.1", defines={"": ["net"]})]
    world.mpi(world.host, needs=needs)
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"], folder=mpi)
    for number, (place, target) in enumerate(links):
        (world.image / place).mkdir(parents=True, exist_ok=True)
        link(world.image / place / (f"d{number}" if number % 2 else f"libmpi.so.12.{number + 20}"), target)
    with world.stack:
        plan = world.plan()
    for mount in plan.mounts:
        inside = world.image / mount.target.lstrip("/")
        assert mount.target.startswith(f"{PRIVATE}/") or (
            inside.resolve() == inside and inside.is_file() and inside.is_relative_to(world.image)
        )
        assert ".." not in mount.target.split("/")


def asked(world: World, *rules: LibraryRule, mismatch: str = "error", **facts: dict[str, str]) -> Contribution:
    module = Module("mpich", planner="mpich", libraries=rules, allow_env=("MPI_HOME",))
    trees = [world.stack.enter_context(DirectoryTree(str(top))) for top in (world.image, world.host)]
    tables = [facts.get(name, {}) for name in ("annotations", "environ", "image_env")]
    plan = planner("mpich")
    assert plan is not None
    return plan(Question(module, *trees, Policy(mpi_mismatch=mismatch), *tables))


def test_as_a_module_asks(world: World) -> None:
    world.libc().mpi(world.host, folder="opt/site/lib")
    world.mpi(world.image, "libmpi.so.12.4.1", functions=["MPI_Init"])
    rule = LibraryRule(path="$MPI_HOME/lib/libmpi*.so.12")
    expected = {("/opt/site/lib/libmpi.so.12.2.2", "/usr/lib/libmpi.so.12.4.1")}
    site = {"MPI_HOME": "/opt/site", "OTHER": "/opt/site"}
    assert "downgrade" in asked(world, rule, environ=site).errors[0]
    assert swaps(asked(world, rule, environ=site, mismatch="warn")) == expected
    assert asked(world, rule).missing == ("The library $MPI_HOME/lib/libmpi*.so.12 of the module is not on this host.",)
    other = LibraryRule(path="$OTHER/lib/libmpi.so.12")
    assert asked(world, other, environ=site).missing, "a variable that the module may not read"
    assert "libmpi.so.12" in asked(world, environ=site).missing[0], "without rules: what the loader knows, nothing here"


def test_asked_for_by_name(world: World) -> None:
    world.libc().mpi(world.host)
    assert asked(world, annotations={"squashmount.mpi": "auto"}).missing == ()
    assert "no MPI library" in asked(world, annotations={"squashmount.mpi": "mpich"}).missing[0]


def test_what_comes_along(world: World) -> None:
    world.libc().mpi(world.host)
    world.mpi(world.image, "libmpi.so.12.1.10", functions=["MPI_Init"])
    library(world.host / "opt/gtl/libmpi_gtl_cuda.so.0")
    library(world.host / LIB / "libpals.so.0")
    rules = [LibraryRule(soname="libmpi.so.12"), LibraryRule(path="/opt/gtl/*.so.?", role="provider")]
    rules.append(LibraryRule(soname="libpals.so.0", role="dependency"))
    plugin = library(world.host / "opt/plugins/libplugin.so")
    plugin.write_bytes(plugin.read_bytes().replace(b"libplugin.so\0", b"\0" * 13))  # plugins may have no SONAME
    rules.append(LibraryRule(path="/opt/plugins/*.so", role="dependency"))
    rules.append(LibraryRule(soname="libabsent.so.0", role="dependency", optional=True))
    assert swaps(asked(world, *rules)) == {
        ("/usr/lib/libmpi.so.12.2.2", "/usr/lib/libmpi.so.12.1.10"),
        ("/opt/gtl/libmpi_gtl_cuda.so.0", f"{PRIVATE}/libmpi_gtl_cuda.so.0"),
        ("/usr/lib/libpals.so.0", f"{PRIVATE}/libpals.so.0"),
        ("/opt/plugins/libplugin.so", f"{PRIVATE}/libplugin.so"),
    }
