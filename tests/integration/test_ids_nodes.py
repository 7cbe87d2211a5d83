"""How a node is set up for subordinate ids, made wrong on a real one, and that `ids check` and `compare` name it.

Every id of `squashmount-conf ids` has a case in tests/integration: `SHOWN` says where, `NOT_SHOWN` why not.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from directory_lab import GENERIC, NEEDS_DIRECTORY, SIZE, SUFFIX, Account, Directory, directory, sssd
from lab import run
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.ids.checks import CHECKS
from squashmount.storage_conf.ids.site import versions

pytestmark = [pytest.mark.needs_root, NEEDS_DIRECTORY]

SHOWN = {
    "test_ids.py": ("A02", "A03", "A04", "A16", "A18"),
    "test_ids_entries.py": ("A01", "A05", "A06", "A07", "A08", "A10", "A17"),
    "test_ids_plan.py": ("A13",),
    "test_ids_nodes.py": ("A09", "A11", "A12", "A14", "A15"),
}
NOT_SHOWN = {
    "A19": "no release of Debian here has shadow 4.20.0 or 4.20.1: dpkg reads that version from a status file of ours"
}

PROGRAM = str(Path(sys.executable).with_name("squashmount-conf"))
ETC = Path("/etc")


def test_every_id_is_shown() -> None:
    told = sorted([*NOT_SHOWN, *(name for names in SHOWN.values() for name in names)])
    assert told == sorted({"A09", "A13", *(name for name, _ in CHECKS)})
    for file, names in SHOWN.items():
        text = (Path(__file__).parent / file).read_text().partition("def test_every_id_is_shown")
        asserted = set(re.findall(r'"(?:error |warning |info )?(A[0-9]{2})\b', text[2] or text[0]))
        assert not set(names) - asserted, file


@contextmanager
def files(**texts: str) -> Iterator[None]:
    """Have these files in the lab's /etc, `nsswitch_conf` for nsswitch.conf."""
    paths = {ETC / name.replace("_", "."): text for name, text in texts.items()}
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        for path, text in paths.items():
            path.write_text(text)
        yield
    finally:
        for path, content in before.items():
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)


def check(only: str, *more: str) -> set[str]:
    done = run(PROGRAM, "ids", "check", "--json", "--only", only, *more, timeout=120)
    assert done.out, done.err
    return {f"{one['severity']} {one['id']}" for one in json.loads(done.out)["findings"]}


def with_settings(**numbers: int) -> str:
    """Return the node's own login.defs with these settings instead of its own."""
    lines = (ETC / "login.defs").read_text().splitlines()
    kept = [line for line in lines if not any(line.startswith(name) for name in numbers)]
    return "\n".join([*kept, *(f"{name} {number}" for name, number in numbers.items()), ""])


# A09


def fingerprint(host: str) -> str:
    return run("unshare", "--uts", "sh", "-c", f"hostname {host} && exec {PROGRAM} ids fingerprint").ok()


def test_two_nodes_that_differ_in_files_and_in_nsswitch(tmp_path: Path) -> None:
    said = tmp_path / "fingerprints"
    with files(subuid="u1:100000:65536\n", subgid="u1:100000:65536\n", nsswitch_conf="passwd: files\n"):
        lines = [fingerprint(f"node{number}") for number in (1, 2)]
        said.write_text("\n".join(lines))
        assert run(PROGRAM, "ids", "compare", str(said)).code == 0
    with files(subuid="u1:165536:65536\n", subgid="u1:165536:65536\n", nsswitch_conf="passwd: files\nsubid: sss\n"):
        lines.append(fingerprint("node3"))
    said.write_text("\n".join(lines))
    done = run(PROGRAM, "ids", "compare", str(said), "--json")
    found = json.loads(done.out)
    assert done.code == 11
    assert {one["id"] for one in found["findings"]} == {"A09"}
    assert {one["what"] for one in found["findings"]} >= {
        f"1 of 3 nodes differ in {name}." for name in ("subid", "ranges")
    }
    assert [one["nodes"] for one in found["groups"]] == [["node1", "node2"], ["node3"]]


# A11, A19


def test_a_long_file_is_told_where_shadow_looks_up_each_line() -> None:
    text = "".join(f"{100000 + number}:{2**31 + number * 65536}:65536\n" for number in range(1001))
    slow = versions(Node())["shadow"] >= (4, 20)
    with files(subuid=text, subgid=text):
        assert check("A11", "--source", "files") == ({"warning A11"} if slow else set())
    with files(subuid=text[:100].rpartition("\n")[0] + "\n"):
        assert check("A11", "--source", "files") == set()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1:4.13+dfsg1-1", set()),
        ("1:4.20.0-1", {"warning A11", "warning A19"}),
        ("1:4.20.1-2", {"warning A11", "warning A19"}),
        ("1:4.20.2-1", {"warning A11"}),
    ],
)
def test_what_dpkg_says_of_shadow_in_a_node_image(tmp_path: Path, version: str, expected: set[str]) -> None:
    text = "".join(f"{100000 + number}:{2**31 + number * 65536}:65536\n" for number in range(1001))
    for name in ("etc", "var/lib/dpkg/info", "var/lib/dpkg/updates"):
        (tmp_path / name).mkdir(parents=True)
    for kind in ("uid", "gid"):
        (tmp_path / f"etc/sub{kind}").write_text(text)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: uidmap\nStatus: install ok installed\nMaintainer: nobody <nobody@example.org>\nArchitecture: amd64\n"
        f"Source: shadow\nVersion: {version}\nDescription: made for a test\n"
    )
    assert check("A11,A19", "--source", "files", "--root", str(tmp_path)) == expected


# A12


@pytest.fixture(scope="module")
def slapd(lab: Path) -> Iterator[Directory]:
    with directory(lab, map(Account.number, [*range(5), SIZE - 1])) as slapd:
        yield slapd


def asked(slapd: Directory) -> tuple[str, ...]:
    return "--uri", slapd.uri, "--base", SUFFIX, "--anonymous"


def test_useradd_that_gives_ranges_beside_those_of_the_directory(slapd: Directory) -> None:
    with files(nsswitch_conf="passwd: files\nsubid: sss\n"):
        assert check("A12", *asked(slapd)) == {"warning A12"}, "login.defs as Debian ships it"
        with files(login_defs=with_settings(SUB_UID_COUNT=0, SUB_GID_COUNT=0)):
            assert check("A12", *asked(slapd)) == set()


def test_useradd_has_no_room_for_all() -> None:
    same = {name: (ETC / name).read_text() for name in ("passwd", "shadow", "group", "gshadow")}
    room = with_settings(SUB_UID_MIN=3000000000, SUB_UID_MAX=3000131071)
    with files(**same, subuid="", subgid="", nsswitch_conf="passwd: files\n", login_defs=room):
        made = [run("/usr/sbin/useradd", "--no-create-home", f"room{number}") for number in range(3)]
        assert [one.code == 0 for one in made] == [True, True, False], made
        assert "subordinate UID range" in made[2].err
        run("/usr/sbin/useradd", "--system", "--no-create-home", "--shell", "/bin/sh", "--uid", "64001", "room3").ok()
        assert check("A12", "--source", "files") == {"warning A12"}
        with files(login_defs=with_settings(SUB_UID_MIN=3000000000, SUB_UID_MAX=4294967294)):
            assert check("A12", "--source", "files") == set()


# A14


def test_ranges_off_the_formula() -> None:
    right, wrong = f"1005:{2**31 + 5 * 65536}:65536\n", f"1006:{2**31 + 7 * 65536}:65536\n"
    formula = ("--source", "files", "--formula", "2147483648:65536:1000")
    users = "root:x:0:0::/root:/bin/sh\n" + "".join(f"u{uid}:x:{uid}:{uid}::/:/bin/sh\n" for uid in (1005, 1006))
    with files(passwd=users, subuid=right, subgid=right):
        assert check("A14", *formula) == set()
    with files(passwd=users, subuid=right + wrong, subgid=right + wrong):
        assert check("A14", *formula) == {"error A14"}


# A15


def test_sssd_that_does_not_answer_for_ranges(slapd: Directory) -> None:
    one = Account.number(3)
    with sssd(slapd, GENERIC):
        assert run("getent", "passwd", one.name).code == 0, "it knows the user"
        old = versions(Node())["sssd"] < (2, 12)
        assert (f" {(one.subuid or (0, 0))[0]} " not in run("getsubids", one.name).out) == old
        assert ("error A15" in check("A15", *asked(slapd))) == old


def test_sssd_that_repeats_an_answer_for_hours(slapd: Directory) -> None:
    with sssd(slapd, GENERIC.replace("id_provider = ldap", "id_provider = ldap\nentry_cache_user_timeout = 86400")):
        assert "info A15" in check("A15", *asked(slapd))


def test_a_plugin_that_is_not_there(slapd: Directory) -> None:
    with files(nsswitch_conf="passwd: files\nsubid: nowhere\n"):
        assert check("A15", *asked(slapd)) == {"error A15"}
    with files(nsswitch_conf="passwd: files\n"):
        assert check("A15", *asked(slapd)) == set()
