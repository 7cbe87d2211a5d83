"""sssd's generic LDAP provider, which knows subordinate ids since 2.12: both schemas, and no tricks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from directory_lab import COUNT, FIRST_RANGE, GENERIC, GENERIC_FREEIPA, SIZE, Account, Directory, directory, sssd
from lab import Node, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


@pytest.fixture(scope="module")
def dave(lab: Path) -> Account:
    return Account.number(0, "dave", str(lab / "dave"))


@pytest.fixture(scope="module")
def slapd(lab: Path, dave: Account) -> Iterator[Directory]:
    with directory(lab, [dave, *(Account.number(index) for index in range(1, SIZE))]) as slapd:
        yield slapd


@pytest.mark.parametrize("provider", [GENERIC, GENERIC_FREEIPA], ids=["sssd", "freeipa"])
def test_podman_has_the_ids_of_the_directory(
    slapd: Directory, dave: Account, product: Path, provider: str, request: pytest.FixtureRequest
) -> None:
    with sssd(slapd, provider) as daemon:
        assert run("getsubids", "user00999").ok().endswith(f" {FIRST_RANGE + 999 * COUNT} {COUNT}")
        assert run("getsubids", "-g", "user00999").ok().endswith(f" {FIRST_RANGE + 999 * COUNT} {COUNT}")
        user = daemon.login(dave)
        node = Node(user, request.node.callspec.id, product)
        try:
            text = node.podman("unshare", "cat", "/proc/self/uid_map").ok()
            assert [list(map(int, line.split())) for line in text.splitlines()] == [
                [0, user.uid, 1],
                [1, FIRST_RANGE, COUNT],
            ]
        finally:
            node.close()
