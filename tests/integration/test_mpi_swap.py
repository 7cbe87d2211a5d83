"""The host's real MPICH in real containers of other releases: what changes, what is refused, and why.

Host: Debian 12 (MPICH 4.0.2, glibc 2.36). Images: bullseye (MPICH 3.4.1, glibc 2.31) and trixie (MPICH 4.2.1, 2.41).
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Done, Node, User, debian_tar, run

HOST = Path("/usr/lib/x86_64-linux-gnu/libmpich.so.12")
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.needs_podman,
    pytest.mark.skipif(not (HOST.exists() and b"4.0.2" in HOST.read_bytes()), reason="needs Debian 12's libmpich12"),
]

PROGRAM = r"""
// the MPICH ABI's constants: no headers needed
#include <stdio.h>
int MPI_Init(int *, char ***), MPI_Finalize(void), MPI_Comm_rank(int, int *), MPI_Comm_size(int, int *);
int MPI_Send(const void *, int, int, int, int, int), MPI_Recv(void *, int, int, int, int, int, void *);
int MPI_Get_library_version(char *, int *);
enum { WORLD = 0x44000000, INT = 0x4c000405 };
int main(int argc, char **argv)
{
    char version[8192], number[32] = "";
    int rank, size, length, token = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(WORLD, &rank);
    MPI_Comm_size(WORLD, &size);
    MPI_Get_library_version(version, &length);
    sscanf(version, "MPICH Version: %31s", number);
    for (int round = 0; size > 1 && round < 1000; round++) {
        if (rank)
            MPI_Recv(&token, 1, INT, rank - 1, 0, WORLD, (void *)1);
        token++;
        MPI_Send(&token, 1, INT, (rank + 1) % size, 0, WORLD);
        if (!rank)
            MPI_Recv(&token, 1, INT, size - 1, 0, WORLD, (void *)1);
    }
    if (!rank)
        printf("%d ranks, token %d: MPICH %s\n", size, token, number);
    MPI_Finalize();
}
"""
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
    (path / "ring.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-o", path / "ring", path / "ring.c", HOST], check=True, timeout=60)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def images(login: Node, store: Path) -> dict[str, str]:
    """Squash both images into the store; trixie has MPICH's starter and Open MPI, too."""
    names = {}
    for release, include in (("bullseye", "libmpich12"), ("trixie", "libmpich12,mpich,libopenmpi40")):
        names[release] = f"localhost/mpich/{release}:1"
        login.podman("import", str(debian_tar(release, include)), names[release], timeout=300).ok()
        login.migrate("mig", names[release], str(store), timeout=300).ok()
        login.podman("rmi", "--force", names[release]).ok()
    return names


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

    def ring(self, image: str, *options: str, ranks: int = 1) -> Done:
        start = ("mpiexec.hydra", "-n", str(ranks)) if ranks > 1 else ()
        volume = f"{self.top}/ring:/ring:ro"
        hooks = ("--hooks-dir", str(self.top / "hooks.d"))
        return self.node.podman(*hooks, "run", "--rm", "-v", volume, *options, image, *start, "/ring")


@pytest.fixture
def site(top: Path, make_node: Callable[..., Node], alice: User, store: Path) -> Site:
    return Site(top, make_node(alice, stores=(store,)))


def test_the_hosts_mpi_in_a_newer_image(site: Site, images: dict[str, str]) -> None:
    image = images["trixie"]
    assert site.ring(image).ok() == "1 ranks, token 0: MPICH 4.2.1"
    assert site.ring(image, *SWAP).ok() == "1 ranks, token 0: MPICH 4.0.2"
    assert site.ring(image, *SWAP, ranks=2).ok() == "2 ranks, token 2000: MPICH 4.0.2"
    plan = site.plan(image, *SWAP)
    assert "downgrade: the host's ABI version 12.2.2 is older than 12.4.1" in " ".join(plan["warnings"])
    assert not plan["errors"]


def test_whose_libraries_the_hosts_mpi_uses(site: Site, images: dict[str, str]) -> None:
    loaded = site.ring(images["trixie"], *SWAP, "-e", "LD_TRACE_LOADED_OBJECTS=1").ok()
    assert "libucp.so.0 => /run/squashmount/lib/libucp.so.0" in loaded, "what must fit the network is the host's"
    assert "libhwloc.so.15 => /lib/x86_64-linux-gnu/libhwloc.so.15" in loaded, "the image's own has all that is needed"
    assert "not found" not in loaded


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
