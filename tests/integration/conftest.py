"""Fixtures of the lab (tests/lab.py): the installed product, users, a registry, images, a store.

Everything is made once a session inside scripts/lab and disappears with it. `alice` owns images and the store, `bob` is
another user with an id range of his own, `solo` has no range (single-id map).
"""

import functools
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Node, User, build_busybox, build_debian, install_product, make_user, registry, root_user
from mpi_programs import squash_image

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

# scripts/platform names it: some tests would enter another platform from there, others' host is Debian 12
_PLATFORM = os.environ.get("SQUASHMOUNT_PLATFORM")
_FIRST_PLATFORM_ONLY = [
    "test_second_platform.py",
    "test_unstable_platform.py",
    "test_mpi_swap.py",
    "test_bench_hooks.py",
    "test_slurm.py",
]
_UNSTABLE_ONLY = ["test_directory_generic.py"]  # sssd 2.12
collect_ignore = (_FIRST_PLATFORM_ONLY if _PLATFORM else []) + ([] if _PLATFORM == "sid" else _UNSTABLE_ONLY)


@pytest.fixture(scope="session")
def lab() -> Path:
    return Path(os.environ["LAB"])


@pytest.fixture(scope="session")
def product(lab: Path) -> Path:
    return install_product(lab)


@pytest.fixture(scope="session")
def alice(lab: Path) -> User:
    return make_user(lab, "alice", 2001)


@pytest.fixture(scope="session")
def bob(lab: Path) -> User:
    return make_user(lab, "bob", 2002)


@pytest.fixture(scope="session")
def solo(lab: Path) -> User:
    return make_user(lab, "solo", 2003, subids=None)


@pytest.fixture(scope="session")
def registry_address(lab: Path) -> Iterator[str]:
    with registry(lab) as address:
        yield address


_numbers = itertools.count(1)


@pytest.fixture
def make_node(product: Path) -> Iterator[Callable[..., Node]]:
    """Make nodes that are closed (and checked for leftovers) after the test."""
    nodes: list[Node] = []

    def make(user: User, **options: object) -> Node:
        node = Node(user, f"n{next(_numbers)}", product, **options)  # type: ignore[arg-type]
        nodes.append(node)
        return node

    yield make
    for node in reversed(nodes):
        node.close()


@pytest.fixture(scope="session")
def login(product: Path, alice: User) -> Iterator[Node]:
    """Alice's login node: an ordinary Podman that sees no store."""
    node = Node(alice, "login", product)
    yield node
    node.close()


@pytest.fixture(scope="session")
def store(lab: Path, alice: User) -> Path:
    """An empty DIR of alice's on the "shared file system"."""
    path = lab / "store"
    path.mkdir(mode=0o755)
    os.chown(path, alice.uid, alice.gid)
    return path


@pytest.fixture(scope="session")
def busybox(login: Node, store: Path, registry_address: str) -> str:
    """A small image: pushed to the registry, pulled from it, squashed into the store."""
    name = f"{registry_address}/busybox:1"
    build_busybox(login, name)
    login.podman("push", "--tls-verify=false", name).ok()
    login.podman("rmi", "--all", "--force").ok()
    login.podman("pull", "--tls-verify=false", name).ok()
    login.migrate("mig", name, str(store)).ok()
    return name


@pytest.fixture
def compute(make_node: Callable[..., Node], alice: User, store: Path) -> Node:
    """A compute node of alice's: an empty graphroot that sees only the store."""
    return make_node(alice, stores=(store,))


@pytest.fixture(scope="session")
def debian(login: Node, store: Path, registry_address: str) -> str:
    """A real Debian with Python in several layers: pushed, pulled and squashed like `busybox`."""
    name = f"{registry_address}/debian/python:3"
    build_debian(login, name)
    login.podman("push", "--tls-verify=false", name, timeout=300).ok()
    login.podman("rmi", "--force", name).ok()
    login.podman("pull", "--tls-verify=false", name, timeout=300).ok()
    login.migrate("mig", name, str(store), timeout=300).ok()
    return name


@pytest.fixture(scope="session")
def mpi_image(login: Node, store: Path) -> Callable[[str], str]:
    """Squash an image with MPI of a Debian release into the store and return its name; once each."""
    return functools.cache(functools.partial(squash_image, login, store))


@pytest.fixture(scope="session")
def solo_store(lab: Path, product: Path, solo: User, debian: str) -> Path:
    """A store made by a user without an id range: he pulled with ignore_chown_errors, all files are his on disk."""
    path = lab / "solo-store"
    path.mkdir(mode=0o755)
    os.chown(path, solo.uid, solo.gid)
    node = Node(solo, "login", product, ignore_chown_errors=True)
    node.podman("pull", "--tls-verify=false", debian, timeout=300).ok()
    node.migrate("mig", debian, str(path), timeout=300).ok()
    node.close()
    return path


@pytest.fixture(scope="session")
def root(lab: Path) -> User:
    """Root himself, for rootful Podman."""
    return root_user(lab)


@pytest.fixture
def fake_gpu() -> Iterator[Path]:
    """A device node of a GPU that is not here, as /dev/zero."""
    path = Path("/dev/fakegpu0")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    path.chmod(0o666)
    yield path
    path.unlink()
