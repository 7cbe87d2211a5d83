"""Who the user is and what his files say, with another root in place of the node's."""

import errno
import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from squashmount.storage_conf.doctor import identity, podman_view, privileges
from squashmount.storage_conf.doctor.namespace import NamespaceError
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.finding import Finding, Severity
from squashmount.storage_conf.ids import libsubid

DAVE = pwd.struct_passwd(("dave", "x", 20000, 20000, "", "/home/dave", "/bin/sh"))


@dataclass(frozen=True)
class Place(Node):
    """A node with one user."""

    entry: pwd.struct_passwd | None = field(default=DAVE)

    @property
    def passwd(self) -> pwd.struct_passwd | None:
        return self.entry


@pytest.fixture
def node(tmp_path: Path) -> Place:
    (tmp_path / "etc").mkdir()
    return Place(environ={"USER": "dave"}, uid=20000, gid=20000, root=str(tmp_path))


def findings(run: object) -> list[Finding]:
    return [one for one in run if isinstance(one, Finding)]  # type: ignore[attr-defined]


def ids(run: object) -> list[str]:
    return [one.id for one in findings(run)]


def write(node: Node, name: str, text: str) -> None:
    path = Path(node.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_known_user_is_healthy(node: Place) -> None:
    assert ids(identity.account(node)) == []


def test_an_unset_user_is_healthy_and_so_is_root(node: Place) -> None:
    assert ids(identity.account(Place(environ={}, uid=20000, gid=20000, root=node.root))) == []
    root = pwd.struct_passwd(("root", "x", 0, 0, "", "/", "/bin/sh"))
    assert ids(identity.account(Place(environ={"USER": "x"}, uid=0, gid=5, root=node.root, entry=root))) == []


def test_auxiliary_groups_may_be_allowed(node: Place) -> None:
    other = Place(environ={}, uid=20000, gid=5, root=node.root)
    assert ids(identity.account(other)) == ["U03"]
    write(node, "/etc/login.defs", "# GRANT_AUX_GROUP_SUBIDS no\nGRANT_AUX_GROUP_SUBIDS\tyes\n")
    assert ids(identity.account(other)) == []


def test_a_line_that_gives_somebody_else_every_id_is_an_error(node: Place) -> None:
    write(node, "/etc/subuid", "eve:0:0\n")
    Path(node.path("/etc/subuid")).chmod(0o644)
    found = [one for one in findings(identity.source(node)) if "0:0" in one.what]
    assert [(one.severity, one.id, one.evidence) for one in found] == [
        (Severity.ERROR, "U06", "/etc/subuid:1: eve:0:0")
    ]
    assert "no range" not in found[0].why
    assert "root's and yours too" in found[0].why


def test_a_fifo_in_the_place_of_a_file_is_told_and_never_waited_for(node: Place) -> None:
    os.mkfifo(node.path("/etc/subuid"))
    assert [(one.id, one.what) for one in findings(identity.source(node))] == [
        ("U06", "/etc/subuid is no regular file.")
    ]
    assert node.text("/etc/subuid") is None


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("passwd: files\n#subid: sss\nsubids: x\n subid: late\n", []),
        ("subid:\nsubid: # nothing\nSUBID:\tsss files # two\n", [(3, ["sss", "files"])]),
    ],
)
def test_the_lines_of_nsswitch(text: str, lines: list[tuple[int, list[str]]]) -> None:
    assert libsubid.subid_lines(text) == lines


@pytest.mark.parametrize(("abi", "severity"), [(4, Severity.WARNING), (6, Severity.ERROR)])
def test_no_final_newline(node: Place, monkeypatch: pytest.MonkeyPatch, abi: int, severity: Severity) -> None:
    if os.geteuid():
        pytest.skip("the owner of the file must be root")
    monkeypatch.setattr(libsubid, "abi", lambda: abi)
    write(node, "/etc/subuid", "dave:100000:65536")
    found = findings(identity.source(node))
    assert [(one.id, one.severity) for one in found] == [("U06", severity)]
    assert "/etc/subuid" in found[0].fix


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(100000, 65536)], []),
        ([(1 << 31, 65536)], []),
        ([(100000, 32768), (165536, 32768)], []),
        ([(100000, 65535)], ["U09"]),
        ([(100000, 65536), (165535, 65536)], ["U10"]),
        ([(19990, 100), (100000, 65536)], ["U11"]),
        ([(2000 + 2 * number, 1) for number in range(339)], ["U09"]),  # 340 lines with the own id
        ([(2000 + 2 * number, 1) for number in range(340)], ["U09", "U12"]),
        ([((1 << 31) + 400 * number, 399) for number in range(200)], ["U12"]),
        ([(4294901759, 65536)], []),
        ([(4294901760, 65536)], ["U13"]),
        ([(999, 1), (100000, 65536)], ["U13"]),
        ([(60001, 1), (100000, 65536)], ["U13"]),
        ([(65534, 1), (100000, 65536)], ["U13"]),
    ],
)
def test_ranges_are_judged(pairs: list[tuple[int, int]], expected: list[str]) -> None:
    found = list(identity.judged("uid", pairs, 20000, "dave"))
    assert [one.id for one in found] == expected
    assert all(one.evidence and one.fix for one in found)


def test_a_map_has_one_form() -> None:
    assert podman_view.expected_map(7, [(300, 10), (200, 100)]) == [(0, 7, 1), (1, 200, 110)]
    assert podman_view.merged([(1, 200, 5), (6, 206, 5)]) == [(1, 200, 5), (6, 206, 5)]


def test_a_free_range_is_behind_all_others(node: Place) -> None:
    assert identity._free_start(node) == 524288
    write(node, "/etc/subuid", "a:100000:65536\njunk\nb:x:1\n")
    assert identity._free_start(node) == 524288
    write(node, "/etc/subgid", "a:4000000:65536\n")
    assert identity._free_start(node) == 4128768


@pytest.mark.parametrize(
    ("limits", "seccomp", "code", "expected"),
    [
        ({}, "0", 0, []),
        ({}, "2", 0, [("U23", Severity.INFO)]),
        ({"user/max_user_namespaces": "0"}, "0", 28, [("U30", Severity.ERROR)]),
        ({"user/max_user_namespaces": "999"}, "0", 0, [("U30", Severity.WARNING)]),
        ({"user/max_user_namespaces": "1000"}, "0", 28, [("U30", Severity.ERROR)]),
        ({"kernel/unprivileged_userns_clone": "0"}, "2", 1, [("U31", Severity.ERROR)]),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, "0", 1, [("U31", Severity.ERROR)]),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, "0", 0, []),
        ({}, "2", 1, [("U23", Severity.ERROR)]),
        ({}, "0", 1, [("U24", Severity.ERROR)]),
        ({"user/max_user_namespaces": "999"}, "0", 1, [("U30", Severity.WARNING), ("U24", Severity.ERROR)]),
        ({}, "0", errno.EINVAL, [("U31", Severity.ERROR)]),
    ],
)
def test_limits_and_what_refuses_a_namespace(
    node: Place,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, str],
    seccomp: str,
    code: int,
    expected: list[tuple[str, Severity]],
) -> None:
    for name, value in limits.items():
        write(node, f"/proc/sys/{name}", f"{value}\n")
    write(node, "/proc/self/status", f"NoNewPrivs:\t0\nCapBnd:\t000001ffffffffff\nSeccomp:\t{seccomp}\n")
    write(node, "/proc/self/mountinfo", "22 1 0:21 / / rw - ext4 /dev/vda1 rw\n")
    refusal = NamespaceError("unshare", os.strerror(code), code) if code else None
    monkeypatch.setattr(privileges, "_refused", lambda _node: refusal)
    assert [(one.id, one.severity) for one in privileges.process(node)] == expected


def test_a_node_reads_sysctls() -> None:
    assert (Node().text("/proc/sys/user/max_user_namespaces") or "").strip().isdigit()


def test_file_capabilities(tmp_path: Path) -> None:
    assert privileges.file_capabilities(str(tmp_path)) == (0, False)
