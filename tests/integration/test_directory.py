"""Subordinate ids from a directory, with real parts: slapd, sssd, libsubid, newuidmap, Podman.

What docs/site-ids.md says of them is shown here.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from directory_lab import (
    COUNT,
    FIRST_RANGE,
    LIMIT,
    NEEDS_DIRECTORY,
    SIZE,
    Account,
    Directory,
    Sssd,
    directory,
    sssd,
)
from lab import Done, Node, User, build_busybox, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman, NEEDS_DIRECTORY]

_ELSEWHERE = FIRST_RANGE + SIZE * COUNT
"""An id behind the ranges of all users."""


@pytest.fixture(scope="module")
def dave(lab: Path) -> Account:
    return Account.number(0, "dave", str(lab / "dave"))


@pytest.fixture(scope="module")
def slapd(lab: Path, dave: Account) -> Iterator[Directory]:
    with directory(lab, [dave, *(Account.number(index) for index in range(1, SIZE))]) as slapd:
        yield slapd


@pytest.fixture(scope="module")
def daemon(slapd: Directory) -> Iterator[Sssd]:
    with sssd(slapd) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def user(daemon: Sssd, dave: Account) -> User:
    return daemon.login(dave)


@pytest.fixture(scope="module")
def node(user: User, product: Path) -> Iterator[Node]:
    node = Node(user, "directory", product)
    yield node
    node.close()


def uid_map(node: Node) -> list[list[int]]:
    """Return the uid map of the user's Podman."""
    return [list(map(int, line.split())) for line in _map(node).ok().splitlines()]


def _map(node: Node) -> Done:
    return node.podman("unshare", "cat", "/proc/self/uid_map")


def answer(name: str) -> str:
    """Return the first id and the count of a user, as libsubid tells it."""
    return run("getsubids", name).ok().partition(f"{name} ")[2]


def test_a_user_of_the_directory_has_the_ids_of_his_entry(node: Node, user: User) -> None:
    assert answer("dave") == f"{FIRST_RANGE} {COUNT}"
    assert uid_map(node) == [[0, user.uid, 1], [1, FIRST_RANGE, COUNT]]
    # nobody of an image, and the group of a terminal: beyond what a signed number of 32 bits holds
    chown = 'f=$(mktemp -p "$XDG_RUNTIME_DIR") && chown 65534:5 "$f" && stat -c %u:%g "$f"'
    assert node.podman("unshare", "sh", "-c", chown).ok() == "65534:5"


def test_every_user_of_20000_has_a_range_of_his_own(slapd: Directory) -> None:
    paged = slapd.search("-E", "pr=1000/noprompt", "(ipaSubUidNumber=*)", "ipaSubUidNumber").ok()
    starts = {line.split()[1] for line in paged.splitlines() if line.startswith("ipaSubUidNumber:")}
    assert len(starts) == SIZE
    whole = slapd.search("(ipaSubUidNumber=*)", "ipaSubUidNumber")
    assert whole.code == 4, "a search that is not paged is cut off"
    assert whole.out.count("ipaSubUidNumber: ") == LIMIT


def test_sssd_tells_the_old_range_until_its_cache_is_removed(
    slapd: Directory, daemon: Sssd, node: Node, user: User, dave: Account
) -> None:
    old = [[0, user.uid, 1], [1, FIRST_RANGE, COUNT]]
    assert uid_map(node) == old
    try:
        slapd.move(dave, _ELSEWHERE)
        daemon.stop()
        daemon.start()
        assert answer("dave") == f"{FIRST_RANGE} {COUNT}", "a restart of sssd keeps the cache"
        daemon.forget()
        assert answer("dave") == f"{_ELSEWHERE} {COUNT}"
        assert uid_map(node) == old, "Podman's pause process has the map it began with"
        node.podman("system", "migrate").ok()
        assert uid_map(node) == [[0, user.uid, 1], [1, _ELSEWHERE, COUNT]]
    finally:
        slapd.move(dave, FIRST_RANGE)
        daemon.forget()
        node.podman("system", "migrate").ok()
    assert uid_map(node) == old


def test_a_squash_file_serves_the_new_range(
    slapd: Directory, daemon: Sssd, node: Node, user: User, dave: Account, product: Path, lab: Path
) -> None:
    """Unpacked layers have ids of the host, a squash file those of the container."""
    name, store = "localhost/busybox:1", lab / "dave-store"
    store.mkdir()
    os.chown(store, user.uid, user.gid)
    build_busybox(node, name)
    node.migrate("mig", name, str(store)).ok()
    owner = ("run", "--rm", name, "stat", "-c", "%u:%g", "/work/mine")
    compute = Node(user, "compute", product, stores=(store,))
    try:
        assert node.podman(*owner).ok() == compute.podman(*owner).ok() == "33:33"
        slapd.move(dave, _ELSEWHERE)
        daemon.forget()
        for one in (node, compute):
            one.podman("system", "migrate").ok()
        assert uid_map(compute)[1][1] == _ELSEWHERE
        assert compute.podman(*owner).ok() == "33:33"
        assert node.podman(*owner).ok() == "65534:65534", "the unpacked layers are nobody's now"
    finally:
        slapd.move(dave, FIRST_RANGE)
        daemon.forget()
        for one in (node, compute):
            one.podman("system", "migrate").ok()
        compute.close()


def test_a_directory_that_is_down_is_no_harm_to_whom_sssd_knows(slapd: Directory, daemon: Sssd) -> None:
    stranger, friend = "user00077", "user00078"
    answer(friend)
    slapd.stop()
    try:
        assert answer(friend) == f"{FIRST_RANGE + 78 * COUNT} {COUNT}"
        assert "Error fetching ranges" in run("getsubids", stranger).err
    finally:
        slapd.start()
        daemon.forget()
    assert answer(stranger) == f"{FIRST_RANGE + 77 * COUNT} {COUNT}"


def test_only_the_first_word_of_nsswitch_counts(daemon: Sssd) -> None:
    try:
        daemon.nsswitch("files sss")
        assert "Error fetching ranges" in run("getsubids", "dave").err
        daemon.nsswitch("sss files")
        assert answer("dave") == f"{FIRST_RANGE} {COUNT}"
    finally:
        daemon.nsswitch("sss")


def test_a_range_over_somebody_elses_uid_reads_his_files(
    slapd: Directory, daemon: Sssd, lab: Path, product: Path
) -> None:
    """Why an overlap with a real uid is an error: newuidmap does not look."""
    victim = Account.number(300, "erin", str(lab / "erin"))
    thief = Account("mallory", 60300, (victim.uid, 1000), (victim.uid, 1000), str(lab / "mallory"))
    slapd.modify(victim.user_ldif() + thief.user_ldif() + thief.freeipa_ldif())
    daemon.forget()
    erin, mallory = daemon.login(victim), daemon.login(thief)
    secret = erin.home / "secret"
    erin.run("sh", "-c", 'umask 077 && echo "only mine" > "$0"', str(secret)).ok()
    assert mallory.run("cat", str(secret)).code != 0
    node = Node(mallory, "directory", product)
    try:
        assert node.podman("unshare", "cat", str(secret)).ok() == "only mine"
    finally:
        node.close()
