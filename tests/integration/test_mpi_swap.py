"""The host's real MPICH in real containers of other releases: what changes, what is refused, and why.

Host: Debian 12 (MPICH 4.0.2, glibc 2.36). Images: mpi_programs.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elf_files import library, link
from lab import Done, Node, User, run
from mpi_programs import NEEDS_MPICH, build_program

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.needs_podman,
    NEEDS_MPICH,
]

MODULES = {
    "mpich": 'planner = "mpich"\n[when]\nannotation = ["squashmount.mpi=auto", "squashmount.mpi=mpich"]\n',
    "glibc": 'planner = "glibc"\n',
}
SWAP = ("--annotation", "squashmount.mpi=mpich")


@pytest.fixture(scope="module")
def top(lab: Path) -> Iterator[Path]:
    # below the lab: the users must reach it
    path = lab / "mpi"
    (path / "modules").mkdir(parents=True)
    for name, text in MODULES.items():
        (path / "modules" / f"{name}.toml").write_text(text)
    build_program(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def images(mpi_image: Callable[[str], str]) -> dict[str, str]:
    return {release: mpi_image(release) for release in ("bullseye", "trixie")}


class Site:
    """A node whose Podman runs the hook, with the policy of a site."""

    def __init__(self, top: Path, node: Node) -> None:
        self.node, self.top, self.policy = node, top, top / "hooks.toml"
        self.rules()
        command = str(node.product / "bin/squashmount-hooks")
        run(command, "install", "--dir", str(top / "hooks.d"), "--policy", str(self.policy)).ok()

    def rules(self, mismatch: str = "warn") -> None:
        self.policy.write_text(f'modules = ["{self.top}/modules"]\nshipped = false\nmpi_mismatch = "{mismatch}"\n')

    def plan(self, image: str, *options: str) -> dict[str, list[str]]:
        """Return the plan, made from the squash file: no container is started."""
        command = str(self.node.product / "bin/squashmount-hooks")
        place = ("--store", str(self.node.stores[0]), "--policy", str(self.policy), "--json")
        made: dict[str, list[str]] = json.loads(self.node.run(command, "plan", image, *place, *options).out)
        return made

    def ring(self, image: str, *options: str, ranks: int = 1, runtime: str = "crun") -> Done:
        start = ("mpiexec.hydra", "-n", str(ranks)) if ranks > 1 else ()
        volume = f"{self.top}/ring:/ring:ro"
        hooks = ("--hooks-dir", str(self.top / "hooks.d"))
        return self.node.podman(
            "--runtime", runtime, *hooks, "run", "--rm", "-v", volume, *options, image, *start, "/ring"
        )


@pytest.fixture
def site(top: Path, make_node: Callable[..., Node], alice: User, store: Path) -> Site:
    return Site(top, make_node(alice, stores=(store,)))


def test_the_hosts_mpi_in_a_newer_image(site: Site, images: dict[str, str]) -> None:
    image = images["trixie"]
    assert site.ring(image).ok() == "1 ranks, token 0: MPICH 4.2.1"
    assert site.ring(image, *SWAP).ok() == "1 ranks, token 0: MPICH 4.0.2"
    for runtime in ("crun", "runc"):
        assert site.ring(image, *SWAP, ranks=2, runtime=runtime).ok() == "2 ranks, token 200: MPICH 4.0.2"
    plan = site.plan(image, *SWAP)
    assert "downgrade: the host's ABI version 12.2.2 is older than 12.4.1" in " ".join(plan["warnings"])
    assert not plan["errors"]


def test_whose_libraries_the_hosts_mpi_uses(site: Site, images: dict[str, str]) -> None:
    loaded = site.ring(images["trixie"], *SWAP, "-e", "LD_TRACE_LOADED_OBJECTS=1").ok()
    assert "libucp.so.0 => /run/squashmount/lib/libucp.so.0" in loaded, "what must fit the network is the host's"
    assert "libhwloc.so.15 => /lib/x86_64-linux-gnu/libhwloc.so.15" in loaded, "the image's own has all that is needed"
    assert "not found" not in loaded


@pytest.fixture
def slingshot(top: Path) -> Iterator[None]:
    """Make a network of two libfabrics: the MPI is linked with one, and the other has the provider cxi."""
    device = Path("/dev/cxi0")
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # as /dev/zero; the lab's /dev ends with it
    made = top / "made"
    versions = {"FABRIC_1.0": ["fi_open"], "FABRIC_1.6": ["fi_six"]}
    cxi = library(made / "cray/lib64/libcxi.so.1", defines={"": ["cxi_open"]})
    library(made / "cray/lib64/libfabric.so.1", defines=versions, uses=["cxi_open"], needs=[cxi], runpath="$ORIGIN")
    linked = library(made / "plain/libfabric.so.1", defines=versions | {"FABRIC_1.7": ["fi_seven"]})
    folder = str(made / "plain")
    library(made / "mpi/libmpich.so.12.9.9", soname="libmpich.so.12", uses=["fi_six"], needs=[linked], runpath=folder)
    link(made / "mpi/libmpich.so.12", "libmpich.so.12.9.9")
    primary = f'planner = "mpich"\n[[libraries]]\npath = "{made}/mpi/libmpich.so.12"\nrole = "primary"\n'
    listed = f'[[libraries]]\npath = "{made}/cray/lib64/libfabric.so.1"\nrole = "dependency"\n'
    rules = {"made": primary, "cxi": f'{listed}[[devices]]\npath = "/dev/cxi*"\noptional = false\n'}
    for name, text in rules.items():
        (top / "modules" / f"{name}.toml").write_text(text)
    run("chmod", "-R", "go-w", str(made)).ok()
    yield
    for name in rules:
        (top / "modules" / f"{name}.toml").unlink()
    device.unlink()


@pytest.mark.usefixtures("slingshot")
def test_the_loader_takes_the_libfabric_of_the_network(site: Site, images: dict[str, str]) -> None:
    trace = ("-e", "LD_TRACE_LOADED_OBJECTS=1", "--annotation", "squashmount.made=on")
    alone = site.ring(images["trixie"], *trace).ok()
    assert "libfabric.so.1 => /run/squashmount/lib/libfabric.so.1" in alone
    assert "libcxi" not in alone
    both = site.ring(images["trixie"], *trace, "--annotation", "squashmount.cxi=on").ok()
    assert "libfabric.so.1 => /run/squashmount/lib/libfabric.so.1" in both
    assert "libcxi.so.1 => /run/squashmount/lib/libcxi.so.1" in both, "only the one with cxi needs it"
    assert "not found" not in both


def test_open_mpi_is_left_alone(site: Site, images: dict[str, str]) -> None:
    plan = site.plan(images["trixie"], *SWAP)
    assert "libmpi.so.40" in plan["rejected"][0]
    assert "is Open MPI: the MPICH ABI does not fit it, so it is left alone" in plan["rejected"][0]
    assert not [mount for mount in plan["mounts"] if "openmpi" in str(mount) or "libmpi.so.40" in str(mount)]


def test_a_downgrade_is_refused_by_default(site: Site, images: dict[str, str]) -> None:
    site.rules("error")
    plan = site.plan(images["trixie"], *SWAP)
    assert "downgrade: the host's ABI version 12.2.2 is older than 12.4.1" in plan["errors"][0]
    assert plan["mounts"] == []
    done = site.ring(images["trixie"], *SWAP)
    assert done.code != 0
    assert "is older than 12.4.1" in done.err


def test_an_older_c_library_is_refused_with_its_symbols(site: Site, images: dict[str, str]) -> None:
    plan = site.plan(images["bullseye"], *SWAP)
    assert plan["mounts"] == []
    refused = plan["errors"][0]
    assert "libmpich.so.12: newer-glibc: needs " in refused
    assert "GLIBC_2.34 (" in refused
    assert "libc.so.6 (up to GLIBC_2.30) does not have" in refused, "2.31 added nothing to libc.so.6"
    done = site.ring(images["bullseye"], *SWAP)
    assert done.code != 0
    assert "newer-glibc" in done.err


def test_an_older_c_library_with_the_glibc_module(site: Site, images: dict[str, str]) -> None:
    glibc = ("--annotation", "squashmount.glibc=on")
    assert "GLIBC_2.34' not found" in site.ring(images["bullseye"]).err, "the program itself needs a newer one"
    assert site.ring(images["bullseye"], *glibc).ok() == "1 ranks, token 0: MPICH 3.4.1"
    assert site.ring(images["bullseye"], *glibc, *SWAP).ok() == "1 ranks, token 0: MPICH 4.0.2"
