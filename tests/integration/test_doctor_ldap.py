"""The whole doctor for users whose name and ranges come from a directory: each fault is made, exactly its id is named.

Ids that need no directory are shown elsewhere; `SHOWN` says where, and a test compares it with what the doctor has.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from directory_lab import COUNT, FIRST_RANGE, NEEDS_DIRECTORY, SIZE, Account, Directory, Sssd, directory, sssd
from lab import Done, Node, User, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman, NEEDS_DIRECTORY]

_LAST_END = (1 << 32) - 1
_ELSEWHERE = FIRST_RANGE + SIZE * COUNT
_FREE = _ELSEWHERE + COUNT
_PLUGIN = "/usr/lib/x86_64-linux-gnu/libsubid_sss.so"


@dataclass(frozen=True)
class Answer:
    """What the doctor said of one fault."""

    done: Done

    @property
    def all(self) -> dict[str, object]:
        """Return its JSON."""
        said: dict[str, object] = json.loads(self.done.out)
        return said

    @property
    def findings(self) -> list[dict[str, str]]:
        """Return the findings."""
        found = self.all["findings"]
        assert isinstance(found, list)
        return found

    @property
    def ids(self) -> set[str]:
        """Return what was found as `error U07`; the lab's cgroups have no controllers, whatever is wrong besides."""
        return {f"{one['severity']} {one['id']}" for one in self.findings} - {"info U61"}

    @property
    def text(self) -> str:
        """Return all that was found, as text."""
        return json.dumps(self.findings, indent=1)


@dataclass
class Site:
    """One machine of a site: its directory, its sssd, and who logs in."""

    lab: Path
    product: Path
    slapd: Directory
    sssd: Sssd
    accounts: dict[str, Account]
    users: dict[str, User]

    def node(self, name: str) -> Node:
        """Let a user log in: a Podman of his own with a graphroot."""
        if name not in self.users:
            self.users[name] = self.sssd.login(self.accounts[name])
        node = Node(self.users[name], "doctor", self.product)
        node.graphroot.mkdir()
        os.chown(node.graphroot, node.user.uid, node.user.gid)
        return node

    def doctor(self, node: Node, *before: str) -> Answer:
        """Ask the doctor; `before` is put before the command."""
        return Answer(node.run(*before, str(node.product / "bin/squashmount-conf"), "doctor", "--json"))


def _accounts(lab: Path) -> dict[str, Account]:
    """Return users whose entries are wrong, each in one way; dave's is right."""

    def account(index: int, name: str, **changes: tuple[int, int] | int | None) -> Account:
        return replace(Account.number(index, name, str(lab / name)), **changes)  # type: ignore[arg-type]

    def both(start: int, count: int) -> dict[str, tuple[int, int]]:
        return {"subuid": (start, count), "subgid": (start, count)}

    made = (
        account(0, "dave"),
        account(1, "erin"),
        account(2, "nothing", subuid=None, subgid=None),
        account(3, "nosubgid", subgid=None),
        account(4, "nosubuid", subuid=None),
        account(5, "thousand", **both(_FREE, 1000)),
        account(6, "hundred", **both(_FREE, 100)),
        account(7, "inside", uid=1300007, **both(1300000, COUNT)),
        account(8, "behind", **both(_LAST_END - COUNT + 1, COUNT)),
        account(9, "homed", uid=1200000, **both(60001, COUNT)),
        account(10, "zero", uid=1200001, **both(0, COUNT)),
        account(11, "differing", subgid=(_FREE, COUNT)),
        account(12, "empty", **both(_FREE, 0)),
        account(13, "edge", **both(_LAST_END - COUNT, COUNT)),
        account(14, "negative", **both(-COUNT, COUNT)),
        account(15, "leaver"),
    )
    return {one.name: one for one in made}


@pytest.fixture(scope="module")
def site(lab: Path, product: Path) -> Iterator[Site]:
    accounts = _accounts(lab)
    others = (Account.number(index) for index in range(len(accounts), SIZE))
    with directory(lab, [*accounts.values(), *others]) as slapd, sssd(slapd) as daemon:
        yield Site(lab, product, slapd, daemon, accounts, {})


@pytest.fixture
def enter(site: Site) -> Iterator[Callable[[str], Node]]:
    """Log users in; their Podman is gone after the test."""
    with ExitStack() as stack:

        def enter(name: str) -> Node:
            node = site.node(name)
            stack.callback(node.close)
            return node

        yield enter


@pytest.mark.parametrize("name", ["dave", "erin", "edge"])
def test_all_is_well(site: Site, enter: Callable[[str], Node], name: str) -> None:
    node = enter(name)
    for _ in range(2):  # without and with Podman's pause process
        answer = site.doctor(node)
        assert answer.done.code == 0, answer.text
        assert answer.ids == set(), answer.text
        facts = answer.all["facts"]
        assert isinstance(facts, dict)
        start, count = site.accounts[name].subuid or (0, 0)
        assert facts["subuid"] == facts["subgid"] == f"{start}:{count}"
        node.podman("unshare", "true").ok()


@pytest.mark.parametrize(
    ("name", "found", "seen"),
    [
        ("nothing", "error U07", "subuid of nothing: none; subgid of nothing: none"),
        ("nosubgid", "error U07", "subgid of nosubgid: none"),
        ("nosubuid", "error U07", "subuid of nosubuid: none"),
        ("thousand", "warning U09", f"{_FREE}:1000"),
        ("hundred", "error U09", f"{_FREE}:100"),
        ("empty", "error U07", ""),
        ("inside", "error U11", "1300000:65536"),
        ("behind", "error U13", f"{_LAST_END - COUNT + 1}:65536"),
        ("homed", "error U13", "60001:65536"),
        ("zero", "error U07", ""),  # sssd tells no range that begins with root
        ("negative", "error U13", f"{(1 << 32) - COUNT}:65536"),
        ("differing", "info U14", f"subgid {_FREE}:65536"),
    ],
)
def test_the_entry_is_wrong(site: Site, enter: Callable[[str], Node], name: str, found: str, seen: str) -> None:
    answer = site.doctor(enter(name))
    assert answer.ids == {found}, answer.text
    assert seen in answer.text
    assert answer.done.code == (11 if found.startswith("error") else 0)


# The login


@pytest.mark.parametrize(
    ("before", "found", "seen"),
    [
        (("env", "USER=erin"), "error U02", "export USER=dave"),
        (("env", "USER=root"), "error U02", "export USER=dave"),
        (("env", "USER=nobody-of-this-name"), "error U02", "export USER=dave"),
        (("setpriv", "--no-new-privs"), "error U21", "no_new_privs"),
        (("env", "XDG_RUNTIME_DIR=/run/user/0"), "error U50", "/run/user/0"),
    ],
)
def test_the_login_is_wrong(
    site: Site, enter: Callable[[str], Node], before: tuple[str, ...], found: str, seen: str
) -> None:
    answer = site.doctor(enter("dave"), *before)
    assert answer.ids == {found}, answer.text
    assert seen in answer.text


def test_another_group(enter: Callable[[str], Node]) -> None:
    if not shutil.which("sg"):
        pytest.xfail("this release has no sg of its own")
    node = enter("dave")
    with appended("/etc/group", "team:x:30001:dave\n"):
        answer = Answer(node.run("sg", "team", "-c", f"{node.product}/bin/squashmount-conf doctor --json"))
    assert answer.ids == {"error U03"}, answer.text
    assert "gid 30001, passwd: 20000" in answer.text


@contextmanager
def appended(path: str, text: str) -> Iterator[None]:
    """Add text to a file of the lab's /etc for a while."""
    before = Path(path).read_text()
    Path(path).write_text(before + text)
    try:
        yield
    finally:
        Path(path).write_text(before)


# The node


@pytest.mark.parametrize(
    ("subid", "found", "seen"),
    [
        ("files sss", "error U04", "only `files` is used"),
        ("sss files", "warning U04", "only `sss` is used"),
        ("sss\nsubid: files", "warning U04", "only `sss` is used"),
        ("ldap", "error U05", "libsubid_ldap.so"),
        ("files", "error U07", "/etc/subuid and /etc/subgid gives none"),
        (None, "error U07", "/etc/subuid and /etc/subgid gives none"),
    ],
)
def test_nsswitch_is_wrong(site: Site, enter: Callable[[str], Node], subid: str | None, found: str, seen: str) -> None:
    node = enter("dave")
    site.sssd.nsswitch(subid)
    try:
        answer = site.doctor(node)
    finally:
        site.sssd.nsswitch("sss")
    assert answer.ids == {found}, answer.text
    assert seen in answer.text


def test_the_plugin_was_removed(site: Site, enter: Callable[[str], Node]) -> None:
    """Then newuidmap takes the files without a word: other ranges on this node, but not for the doctor."""
    node = enter("dave")
    line = f"dave:{_FREE}:{COUNT}\n"
    with covered(_PLUGIN, "/dev/null"), appended("/etc/subuid", line), appended("/etc/subgid", line):
        assert str(_FREE) in node.podman("unshare", "cat", "/proc/self/uid_map").ok()
        answer = site.doctor(node)
    assert answer.ids == {"error U05"}, answer.text
    assert "sssd-common" in answer.text


@contextmanager
def covered(path: str, by: str) -> Iterator[None]:
    """Put another file over one of the machine's, in the lab's mounts."""
    run("mount", "--bind", by, path).ok()
    try:
        yield
    finally:
        run("umount", "-l", path).ok()


def test_the_setuid_bit_is_gone(site: Site, enter: Callable[[str], Node], lab: Path) -> None:
    node, copy = enter("dave"), lab / "newgidmap"
    copy.write_bytes(Path("/usr/bin/newgidmap").read_bytes())
    copy.chmod(0o755)
    with covered("/usr/bin/newgidmap", str(copy)):
        answer = site.doctor(node)
    assert answer.ids == {"error U20"}, answer.text
    assert "chmod 4755 /usr/bin/newgidmap" in answer.text


def test_a_file_has_another_range(site: Site, enter: Callable[[str], Node]) -> None:
    """It does no harm while sssd is the source (A10 of `ids check` tells the site); on a node without, it does."""
    node = enter("dave")
    node.podman("unshare", "true").ok()
    line = f"dave:{_FREE}:{COUNT}\n"
    with appended("/etc/subuid", line), appended("/etc/subgid", line):
        assert site.doctor(node).ids == set()
        site.sssd.nsswitch("files")
        try:
            answer = site.doctor(node)
        finally:
            site.sssd.nsswitch("sss")
    assert answer.ids == {"error U51"}, answer.text
    assert "podman system migrate" in answer.text


# sssd and the directory


def test_the_user_has_left(site: Site, enter: Callable[[str], Node]) -> None:
    """His processes run on, his entry in the directory is gone."""
    node, account = enter("leaver"), site.accounts["leaver"]
    site.slapd.modify(f"dn: {account.dn}\nchangetype: delete\n")
    site.sssd.forget()
    try:
        answer = _as_uid(site, node, account.uid)
    finally:
        site.slapd.modify(account.user_ldif().partition("\n\n")[0] + "\n")
        site.sssd.forget()
    assert answer.ids == {"error U01"}, answer.text


def _as_uid(site: Site, node: Node, uid: int) -> Answer:
    """Ask the doctor as a uid; not even setpriv looks at passwd before."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(node.user.home), "USER": node.user.name, **node.environment()}
    command = (f"{site.product}/bin/squashmount-conf", "doctor", "--json")
    return Answer(run(*command, env=environ, cwd="/", user=uid, group=uid, extra_groups=[]))


def test_sssd_is_stopped(site: Site, enter: Callable[[str], Node]) -> None:
    node = enter("dave")
    run("getent", "passwd", "dave").ok()
    site.sssd.stop()
    try:
        known = site.doctor(node)  # sssd's memory cache still tells his name
        for path in Path("/var/lib/sss/mc").iterdir():
            path.unlink()
        unknown = _as_uid(site, node, node.user.uid)
    finally:
        site.sssd.start()
    assert known.ids == {"error U07"}, known.text
    assert "is sssd running" in known.text
    assert unknown.ids == {"error U01"}, unknown.text
    assert "sssd" in unknown.text


def test_the_directory_is_down_for_a_user_whose_ranges_were_never_asked_for(
    site: Site, enter: Callable[[str], Node]
) -> None:
    node = enter("dave")
    site.sssd.forget()
    node.run("true").ok()
    site.slapd.stop()
    try:
        answer = site.doctor(node)
    finally:
        site.slapd.start()
        site.sssd.forget()
    assert answer.ids == {"error U07"}, answer.text
    assert "does not answer" in answer.text


def test_the_directory_is_slow(site: Site, enter: Callable[[str], Node]) -> None:
    node = enter("dave")
    site.sssd.forget()
    run("getent", "passwd", "dave").ok()
    site.slapd.pause(2.5)
    answer = _as_uid(site, node, node.user.uid)
    assert answer.ids == {"warning U08"}, answer.text


def test_the_entry_belongs_to_a_dn_that_is_not_the_users(site: Site, enter: Callable[[str], Node]) -> None:
    node, account = enter("erin"), site.accounts["erin"]
    change = "dn: ipaUniqueID=erin,cn=subids,cn=accounts,dc=example,dc=org\nchangetype: modify\nreplace: ipaOwner\n"
    site.slapd.modify(f"{change}ipaOwner: uid=erin,ou=People,dc=example,dc=org\n")
    site.sssd.forget()
    try:
        answer = site.doctor(node)
    finally:
        site.slapd.modify(f"{change}ipaOwner: {account.dn}\n")
        site.sssd.forget()
    assert answer.ids == {"error U07"}, answer.text


def test_the_range_moves(site: Site, enter: Callable[[str], Node]) -> None:
    """The old range in sssd's cache, the old map of the pause process, the old owners of layers."""
    node, account = enter("dave"), site.accounts["dave"]
    layer = node.graphroot / "overlay/abc/diff/etc"

    def make_a_file() -> None:
        node.podman("unshare", "sh", "-c", 'mkdir -p "$0" && touch "$0/f" && chown 33:33 "$0/f"', str(layer)).ok()

    node.podman("unshare", "true").ok()
    try:
        site.slapd.move(account, _ELSEWHERE)
        cached = site.doctor(node)
        site.sssd.forget()
        moved = site.doctor(node)
        make_a_file()
        both = site.doctor(node)
        node.podman("system", "reset", "--force").ok()
        assert not layer.exists()
        site.slapd.move(account, FIRST_RANGE)
        site.sssd.forget()
        node.podman("system", "migrate").ok()
        make_a_file()
        site.slapd.move(account, _ELSEWHERE)
        site.sssd.forget()
        node.podman("system", "migrate").ok()
        too_late = site.doctor(node)
    finally:
        site.slapd.move(account, FIRST_RANGE)
        site.sssd.forget()
        node.podman("system", "migrate").ok()
    assert cached.ids == set(), "the node still agrees with itself: `ids compare` sees that nodes differ"
    assert moved.ids == {"error U51"}, moved.text
    assert both.ids == {"error U51", "error U54"}, "two things to do, and in this order"
    assert "podman system reset, while" in both.text
    assert too_late.ids == {"error U54"}, too_late.text
    assert str(FIRST_RANGE + 32) in too_late.text
    assert site.doctor(node).ids == set()
