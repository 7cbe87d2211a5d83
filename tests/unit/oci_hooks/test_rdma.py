"""Whose rdma-core a container uses: made-up cards in /sys, made ELF files, and Debian's real providers."""

import io
import os
import random
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from elf_files import AARCH64, library, link, patch_machine
from hypothesis import given, settings
from hypothesis import strategies as st
from squashmount.oci_hooks import module
from squashmount.oci_hooks.elf import NotElfError, read_entries
from squashmount.oci_hooks.libraries import Libraries
from squashmount.oci_hooks.module import Module
from squashmount.oci_hooks.plan import Contribution
from squashmount.oci_hooks.planners import Question, planner
from squashmount.oci_hooks.policy import SHIPPED_DIR, Policy
from squashmount.oci_hooks.tree import DirectoryTree
from squashmount.oci_hooks.verbs import Card, Node, abi_of, read_node, unfit

LIB = "usr/lib"
PRIVATE = "/run/squashmount/lib"
INFINIBAND = module.load(f"{SHIPPED_DIR}/infiniband.toml")
Planned = Callable[..., Contribution]


def card(
    top: Path, number: int = 0, *, driver: str = "mlx5_core", abi: int = 1, name: str = "", node: bool = True
) -> None:
    """Make a verbs device in /sys, and its node (a FIFO: mknod needs root)."""
    folder = top / f"sys/class/infiniband_verbs/uverbs{number}"
    folder.mkdir(parents=True)
    (folder / "abi_version").write_text(f"{abi}\n")
    (folder / "ibdev").write_text(f"{name or f'mlx5_{number}'}\n")
    (folder.parent / "abi_version").write_text("6\n")
    if driver:
        (top / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (folder / "device").mkdir()
        link(folder / "device/driver", f"/sys/bus/pci/drivers/{driver}")
    if node:
        (top / "dev/infiniband").mkdir(parents=True, exist_ok=True)
        os.mkfifo(top / f"dev/infiniband/uverbs{number}")


def rdma(top: Path, private: int = 34, *, newest: str = "IBVERBS_1.14", providers: tuple[str, ...] = ("mlx5",)) -> None:
    """Make rdma-core as distributions have it; of `providers` mlx5 is also a library that programs link with."""
    versions = {"IBVERBS_1.1": ["ibv_open"], newest: ["ibv_new"], f"IBVERBS_PRIVATE_{private}": ["verbs_init"]}
    libc = top / LIB / "libc.so.6"
    made = library(
        top / LIB / f"libibverbs.so.1.14.{private}",
        soname="libibverbs.so.1",
        defines=versions,
        uses=["printf"],
        needs=[libc],
    )
    link(top / LIB / "libibverbs.so.1", made.name)
    library(top / LIB / "librdmacm.so.1", defines={"RDMACM_1.0": ["rdma_bind"]}, uses=["ibv_open"], needs=[made])
    (top / "etc/libibverbs.d").mkdir(parents=True)
    for name in providers:
        (top / f"etc/libibverbs.d/{name}.driver").write_text(f"driver {name}\n")
        beside = top / LIB / f"libibverbs/lib{name}-rdmav{private}.so"
        if name == "mlx5":
            library(top / LIB / "libmlx5.so.1", defines={"MLX5_1.0": ["mlx5_open"]}, uses=["verbs_init"], needs=[made])
            link(beside, "../libmlx5.so.1")
        else:
            library(beside, uses=["verbs_init"], needs=[made])


@pytest.fixture
def tops(tmp_path: Path) -> tuple[Path, Path]:
    """Make a host with one card and rdma-core, and an image with a C library."""
    host, image = tmp_path / "host", tmp_path / "image"
    for top in (host, image):
        library(top / LIB / "libc.so.6", defines={"GLIBC_2.2.5": ["printf"]})
    card(host)
    rdma(host)
    return host, image


@pytest.fixture
def planned(tops: tuple[Path, Path]) -> Planned:
    def planned(one: Module = INFINIBAND, **annotations: str) -> Contribution:
        plan = planner(one.planner)
        assert plan is not None
        given = {f"squashmount.{name.replace('_', '.')}": value for name, value in annotations.items()}
        with DirectoryTree(str(tops[1])) as image, DirectoryTree(str(tops[0])) as host:
            return plan(Question(one, image, host, Policy(), given, {}, {}))

    return planned


SET = {
    f"{PRIVATE}/libibverbs.so.1": "/usr/lib/libibverbs.so.1.14.34",
    f"{PRIVATE}/librdmacm.so.1": "/usr/lib/librdmacm.so.1",
    f"{PRIVATE}/libmlx5-rdmav34.so": "/usr/lib/libmlx5.so.1",
    "/usr/lib/libibverbs": "/usr/lib/libibverbs",
    "/etc/libibverbs.d": "/etc/libibverbs.d",
}


def mounts(part: Contribution) -> dict[str, str]:
    assert not part.missing
    assert not part.errors
    return {mount.target: mount.source for mount in part.mounts}


@pytest.mark.parametrize("private", [34, 25, 55])
def test_the_images_own_when_it_knows_the_card(tops: tuple[Path, Path], planned: Planned, private: int) -> None:
    rdma(tops[1], private)
    part = planned()
    assert mounts(part) == {}
    assert part.env_prepend == {}
    assert part.reasons == (
        "/usr/lib/libibverbs.so.1 of the image has the providers for mlx5_0 (mlx5_core): it stays.",
    )


def unconfigured(image: Path) -> None:
    (image / "etc/libibverbs.d/mlx5.driver").unlink()


def of_another_build(image: Path) -> None:
    (image / LIB / "libibverbs/libmlx5-rdmav25.so").rename(image / LIB / "libibverbs/libmlx5-rdmav22.so")


def for_another_machine(image: Path) -> None:
    (image / LIB / "libibverbs/libmlx5-rdmav25.so").unlink()
    patch_machine(library(image / LIB / "libibverbs/libmlx5-rdmav25.so"), AARCH64)


def without_what_it_needs(image: Path) -> None:
    gone = library(image / LIB / "libgone.so.1")
    (image / LIB / "libmlx5.so.1").unlink()
    library(image / LIB / "libmlx5.so.1", needs=[gone])
    gone.unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (unconfigured, "/etc/libibverbs.d does not name the provider mlx5 for mlx5_0 (mlx5_core)"),
        (of_another_build, "libmlx5-rdmav25.so, the provider for mlx5_0 (mlx5_core), is not there"),
        (for_another_machine, "/usr/lib/libibverbs/libmlx5-rdmav25.so is for AARCH64 64-bit"),
        (without_what_it_needs, "libmlx5-rdmav25.so needs libgone.so.1, which is not there"),
    ],
)
def test_the_hosts_set_where_the_image_cannot(
    tops: tuple[Path, Path], planned: Planned, damage: Callable[[Path], None], why: str
) -> None:
    rdma(tops[1], 25, newest="IBVERBS_1.8")
    library(tops[0] / LIB / "libibverbs.so.1.14.34", soname="libibverbs.so.1", defines=VERSIONS_OF_BOTH)
    damage(tops[1])
    part = planned()
    # librdmacm is the same build in both
    assert mounts(part).items() >= SET.items() - {(f"{PRIVATE}/librdmacm.so.1", "/usr/lib/librdmacm.so.1")}
    assert mounts(part)[f"{PRIVATE}/libmlx5.so.1"] == "/usr/lib/libmlx5.so.1", "programs link with it, too"
    assert part.env_prepend == {"LD_LIBRARY_PATH": PRIVATE}
    assert part.reasons[0].startswith("rdma-core is the host's, as one set, for mlx5_0 (mlx5_core): ")
    assert why in part.reasons[0]


VERSIONS_OF_BOTH = {
    "IBVERBS_1.1": ["ibv_open"],
    "IBVERBS_1.8": ["ibv_new"],
    "IBVERBS_1.14": ["ibv_newer"],
    "IBVERBS_PRIVATE_34": ["verbs_init"],
}


def test_an_image_without_verbs_gets_the_hosts(tops: tuple[Path, Path], planned: Planned) -> None:
    """NCCL and UCX look for libibverbs with dlopen."""
    part = planned()
    assert mounts(part) == SET
    assert "the image has no libibverbs" in part.reasons[0]
    (tops[1] / LIB / "libc.so.6").unlink()
    part = planned()
    assert (part.mounts, part.missing) == ((), ()), "nothing in it can use them"
    assert "the image has no libc.so.6" in part.rejected[0]


def test_an_old_libibverbs_does_not_ask_for_the_driver(tops: tuple[Path, Path], planned: Planned) -> None:
    rdma(tops[1], 17, newest="IBVERBS_1.14")
    assert "too old (private ABI 17) to know cards by their driver" in planned().reasons[0]


def test_a_newer_image_that_lacks_the_provider_stops(tops: tuple[Path, Path], planned: Planned) -> None:
    rdma(tops[1], 34, newest="IBVERBS_1.99", providers=("rxe",))
    part = planned()
    assert part.mounts == ()
    assert "the provider for mlx5_0 (mlx5_core), is not there" in part.missing[0]
    assert "abi-mismatch: /usr/lib/libibverbs.so.1 of the image is newer" in part.missing[0]


def test_neither_has_it(tops: tuple[Path, Path], planned: Planned) -> None:
    card(tops[0], 1, driver="bnxt_en", name="bnxt_re0")
    rdma(tops[1])
    (text,) = planned().missing
    assert "cannot use mlx5_0 (mlx5_core), bnxt_re0 (bnxt_en) (libbnxt_re-rdmav34.so, the provider for bnxt_re0" in text
    assert "the host's cannot either" in text


def test_only_cards_whose_nodes_are_there_count(tops: tuple[Path, Path], planned: Planned) -> None:
    card(tops[0], 1, driver="efa", node=False)
    rdma(tops[1])
    assert mounts(planned()) == {}
    (tops[0] / "dev/infiniband/uverbs0").unlink()
    part = planned()
    assert part.reasons == ()
    assert "No verbs device is known" in part.rejected[0]


def test_cards(tmp_path: Path) -> None:
    card(tmp_path, 0, driver="ice", name="rocep1", abi=5)
    card(tmp_path, 1, driver="", name="rxe0", abi=2)
    card(tmp_path, 2, driver="", name="unknown")
    with DirectoryTree(str(tmp_path)) as tree:
        assert read_node(tree) == Node(
            (Card("rocep1", "ice", "irdma", 5), Card("rxe0", "rxe", "rxe", 2), Card("unknown", "", "", 1)), 6
        )


def test_nodes_of_subnet_managers_are_for_those_who_ask(tops: tuple[Path, Path], planned: Planned) -> None:
    for name in ("umad0", "issm0"):
        os.mkfifo(tops[0] / "dev/infiniband" / name)
    assert planned().devices == ()
    part = planned(infiniband_umad="on")
    assert {device.path for device in part.devices} == {"/dev/infiniband/umad0", "/dev/infiniband/issm0"}


def test_copies_behind_run_paths_are_of_the_set(tops: tuple[Path, Path], planned: Planned) -> None:
    """conda's programs find their own libibverbs by a run path, before LD_LIBRARY_PATH."""
    library(tops[1] / "opt/conda/lib/libibverbs.so.1", defines={"IBVERBS_1.1": ["ibv_open"]})
    assert mounts(planned())["/opt/conda/lib/libibverbs.so.1"] == "/usr/lib/libibverbs.so.1.14.34"


REAL = next(iter(Path("/usr/lib").glob("*/libibverbs")), Path("/usr/lib64/libibverbs"))
REAL_PARTS = ("libibverbs.so.1", "librdmacm.so.1", "libmlx5.so.1", "libmlx4.so.1", "libc.so.6", "libnl-3.so.200")


def real(top: Path) -> Path:
    """Copy the distribution's rdma-core into a tree."""
    folder = top / REAL.parent.relative_to("/")
    folder.mkdir(parents=True)
    shutil.copytree(REAL, folder / "libibverbs")
    for name in (*REAL_PARTS, "libnl-route-3.so.200"):
        if (REAL.parent / name).exists():
            shutil.copy(REAL.parent / name, folder / name)
    shutil.copytree("/etc/libibverbs.d", top / "etc/libibverbs.d")
    return folder / "libibverbs"


def test_the_real_providers_show_their_abi(tmp_path: Path) -> None:
    """The numbers are those of rdma-core's sources: kernel-headers/rdma/*-abi.h."""
    folder = real(tmp_path)
    expected = {"mlx5": (1, 1), "mlx4": (2, 4), "rxe": (1, 2), "bnxt_re": (1, 1), "siw": (1, 1)}
    with DirectoryTree(str(tmp_path)) as tree:
        libraries = Libraries(tree)
        for name, known in expected.items():
            (path,) = folder.glob(f"lib{name}-rdmav*.so")
            provider = libraries.load(str(path).removeprefix(str(tmp_path)))
            assert provider is not None
            assert abi_of(libraries, provider, name) == known


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 60))
def test_a_damaged_provider_is_an_error_or_says_something_but_never_crashes(seed: int, flips: int) -> None:
    (path,) = REAL.glob("librxe-rdmav*.so")
    data, chance = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(flips):
        # headers and the relocations are where the reader looks
        data[chance.randrange(4, min(len(data), 8192))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    with suppress(NotElfError):
        assert all(len(entry) == 8 for entry in read_entries(io.BytesIO(data), "rxe", 8))


def test_a_hostile_directory_of_drivers(tops: tuple[Path, Path], planned: Planned) -> None:
    """A FIFO, a link that leads out, and a file that is none: none is read, and the host's set comes."""
    rdma(tops[1], 34)
    folder = tops[1] / "etc/libibverbs.d"
    (folder / "mlx5.driver").unlink()
    os.mkfifo(folder / "a.driver")
    outside = tops[1].parent / "mlx5.driver"
    outside.write_text("driver mlx5\n")
    link(folder / "b.driver", str(outside))
    link(folder / "c.driver", f"../../../{outside.name}")
    (folder / "d.driver").write_bytes(b"driver\n\0\xff driver mlx5\ndriver mlx55\n")
    assert "does not name the provider mlx5" in planned().reasons[0]


@pytest.mark.parametrize(
    ("driver", "abi", "why"),
    [
        ("mlx5_core", 1, ""),
        ("mlx4_core", 4, ""),
        ("mlx5_core", 2, r"knows the driver's ABI 1 to 1, and .* has 2"),
        ("newcard", 1, r"libnewcard-rdmav\d+.so, the provider for .*, is not there"),
    ],
)
def test_the_real_libraries_and_the_kernels_driver(tmp_path: Path, driver: str, abi: int, why: str) -> None:
    real(tmp_path / "image")
    card(tmp_path / "host", driver=driver, abi=abi)
    with ExitStack() as stack:
        image = Libraries(stack.enter_context(DirectoryTree(str(tmp_path / "image"))))
        node = read_node(stack.enter_context(DirectoryTree(str(tmp_path / "host"))))
        (own,) = image.named("libibverbs.so.1")
        said = unfit(image, own, node)
        assert not image.problems
        assert [bool(re.search(why, text)) for text in said] == ([True] if why else [])
        assert "the kernel 7" in unfit(image, own, node.__class__(node.cards, 7))[0]
