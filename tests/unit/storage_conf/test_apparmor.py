"""Ubuntu's restriction of user namespaces: podman has a profile, this python has none."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from squashmount.storage_conf.doctor import live, privileges, squash
from squashmount.storage_conf.doctor.namespace import NamespaceError
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.probe import NotLookedAtError
from squashmount.storage_conf.finding import Fact, Finding

PACKAGED = """\
# This profile allows everything and only exists to give the
# application a name instead of having the label "unconfined"

abi <abi/4.0>,
include <tunables/global>

profile podman /usr/bin/podman flags=(unconfined) {
  userns,

  # Site-specific additions and overrides. See local/README for details.
  include if exists <local/podman>
}
"""
"""As Ubuntu 24.04 has it."""

REFUSED = NamespaceError("namespace", os.strerror(errno.EPERM), errno.EPERM)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    files = {
        "etc/apparmor.d/podman": PACKAGED,
        "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
        "proc/self/status": "NoNewPrivs:\t0\nCapBnd:\t000001ffffffffff\nSeccomp:\t0\n",
        "proc/self/mountinfo": "22 1 0:21 / / rw - ext4 /dev/vda1 rw\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    refuse(monkeypatch, REFUSED)
    return Node(environ={"PATH": "/nowhere", "HOME": "/nonexistent"}, uid=1000, gid=1000, root=str(tmp_path))


def refuse(monkeypatch: pytest.MonkeyPatch, refusal: NamespaceError) -> None:
    """Answer as that kernel does: there is none here."""

    def in_namespace(*_args: Any) -> NoReturn:
        raise refusal

    for module in (privileges, live, squash):
        monkeypatch.setattr(module, "in_namespace", in_namespace)


def told(found: Iterator[Finding | Fact]) -> list[str]:
    return [f"{one.severity.value} {one.id}" for one in found if isinstance(one, Finding)]


def test_podman_may_so_it_is_a_warning_and_what_python_may_not_is_not_looked_at(node: Node) -> None:
    found = list(privileges.process(node))
    assert told(iter(found)) == ["warning U31"]
    assert "to podman, but not to this python" in found[0].what
    for probe in (live.live, squash.self_test):
        with pytest.raises(NotLookedAtError, match="U31"):
            list(probe(node))


@pytest.mark.parametrize(
    "profile",
    [
        None,
        "",
        PACKAGED.replace("  userns,", "  # userns,"),
        PACKAGED.replace("userns,", "deny userns,"),
        PACKAGED.replace("profile podman /usr/bin/podman", "profile crun /usr/bin/crun"),
    ],
)
def test_without_such_a_profile_nobody_may(node: Node, profile: str | None) -> None:
    path = Path(node.path("/etc/apparmor.d/podman"))
    path.unlink()
    if profile is not None:
        path.write_text(profile)
    assert told(privileges.process(node)) == ["error U31"]
    assert told(live.live(node)) == ["error U42"]


def test_a_disabled_profile_does_not_count(node: Node) -> None:
    folder = Path(node.path("/etc/apparmor.d/disable"))
    folder.mkdir()
    (folder / "podman").symlink_to("/etc/apparmor.d/podman")
    assert told(privileges.process(node)) == ["error U31"]


def test_another_podman_than_the_one_of_the_profile_may_not(node: Node, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/podman").touch(mode=0o755)
    own = Node(environ={"PATH": f"{tmp_path}/bin"}, uid=1000, gid=1000, root=node.root)
    assert told(privileges.process(own)) == ["error U31"]


def test_what_newuidmap_says_is_told_all_the_same(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, NamespaceError("newuidmap", "write to uid_map failed: Operation not permitted"))
    assert told(live.live(node)) == ["error U42"]


def test_without_the_restriction_it_is_something_else(node: Node) -> None:
    Path(node.path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")).write_text("0\n")
    assert told(privileges.process(node)) == ["error U24"]
    assert told(live.live(node)) == ["error U42"]
