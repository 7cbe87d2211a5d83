"""Every check of a site: a healthy one yields nothing, and each fault its own id."""

import io
import json
import os
import stat
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from squashmount.storage_conf import cli
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.finding import Severity
from squashmount.storage_conf.ids.checks import CHECKS, run_checks
from squashmount.storage_conf.ids.directory_schema import Directory, directory
from squashmount.storage_conf.ids.inventory import Inventory, from_entries, from_files
from squashmount.storage_conf.ids.ldap_search import Search
from squashmount.storage_conf.ids.ldif import read_ldif
from squashmount.storage_conf.ids.ranges import Account, Group, Range
from squashmount.storage_conf.ids.site import Formula, Site, read_login_defs, read_sssd
from squashmount.storage_conf.ids.verdict import Verdict

BASE = 200_000_0000  # above systemd's containers, below 2^31: nothing to tell
COUNT = 65536


def person(index: int) -> Account:
    return Account(f"user{index}", 20000 + index, 20000 + index)


def both(owner: str, start: int, count: int = COUNT, source: str = "") -> tuple[Range, Range]:
    return Range(owner, start, count, "uid", source), Range(owner, start, count, "gid", source)


ACCOUNTS = tuple(person(index) for index in range(4))
RANGES = tuple(item for index in range(4) for item in both(f"user{index}", BASE + index * COUNT))
LDAP = Inventory("ldap", "LDAP", RANGES, ACCOUNTS, (Group("staff", 50),))
FILES = replace(LDAP, kind="files", source="/etc")
HEALTHY = Site(
    LDAP,
    word="sss",
    login_defs={"SUB_UID_COUNT": "0", "SUB_GID_COUNT": "0"},
    sssd={"domain/hpc": {"id_provider": "ldap", "ldap_uri": "ldaps://ldap.hpc"}},
    versions={"shadow": (4, 17, 4), "sssd": (2, 12)},
    search=Search(Directory(), "ldaps://ldap.hpc"),
    formula=Formula(BASE, COUNT, 20000),
)
HEALTHY_FILES = Site(FILES, local=FILES, versions={"shadow": (4, 20, 2)})


def ids(site: Site) -> set[str]:
    return {verdict.finding.id for verdict in run_checks(site)}


def the_one(site: Site) -> Verdict:
    (found,) = run_checks(site)
    assert found.finding.what.endswith(".")
    assert "{" not in str(found.finding)
    return found


@pytest.mark.parametrize("site", [HEALTHY, HEALTHY_FILES], ids=["LDAP", "files"])
def test_a_healthy_site_yields_nothing(site: Site) -> None:
    assert run_checks(site) == []


def with_ranges(site: Site, *more: Range, drop: str = "") -> Site:
    kept = tuple(item for item in site.inventory.ranges if item.owner != drop)
    inventory = replace(site.inventory, ranges=kept + more)
    local = inventory if site.local is site.inventory else site.local
    return replace(site, inventory=inventory, local=local, formula=None)


OVERLAP = with_ranges(HEALTHY, *both("user3", BASE + COUNT), drop="user3")
REAL = with_ranges(HEALTHY, *both("user3", 19990, 100), drop="user3")
OTHERS_FILE = Inventory("files", "/etc", both("user3", BASE + 99 * COUNT, source="/etc/subuid"))
NESTED = Inventory("files", "/etc", both("lxd", BASE + 5, source="/etc/subuid"))
LONG = replace(FILES, ranges=tuple(Range(f"user{i % 4}", BASE + i, 1, "uid", "/etc/subuid", i) for i in range(1001)))
AD = {"domain/ad": {"id_provider": "ad"}}

BROKEN: dict[str, tuple[str, Site, Severity]] = {
    "overlap": ("A02", OVERLAP, Severity.ERROR),
    "the same line twice": ("A02", with_ranges(HEALTHY_FILES, *both("20003", BASE + 3 * COUNT)), Severity.ERROR),
    "nested containers": ("A04", replace(HEALTHY, local=NESTED), Severity.ERROR),
    "no range": ("A05", with_ranges(HEALTHY, drop="user3"), Severity.WARNING),
    "stale": ("A05", with_ranges(HEALTHY_FILES, *both("gone", BASE + 9 * COUNT)), Severity.WARNING),
    "small": ("A06", with_ranges(HEALTHY, *both("user3", BASE + 3 * COUNT, 60000), drop="user3"), Severity.WARNING),
    "off the grid": ("A06", with_ranges(HEALTHY, *both("user3", BASE + 9 * COUNT + 1), drop="user3"), Severity.INFO),
    "two ranges": ("A07", with_ranges(HEALTHY, *both("user3", BASE + 9 * COUNT)), Severity.ERROR),
    "two files": ("A10", replace(HEALTHY, local=OTHERS_FILE), Severity.ERROR),
    "useradd": ("A12", replace(HEALTHY, login_defs={}), Severity.WARNING),
    "useradd is full": ("A12", replace(HEALTHY_FILES, login_defs={"SUB_UID_MAX": "300000"}), Severity.WARNING),
    "formula": ("A14", replace(HEALTHY, formula=Formula(BASE - COUNT, COUNT, 20000)), Severity.ERROR),
    "wrap": (
        "A14",
        replace(HEALTHY_FILES, login_defs={"UNSAFE_SUB_UID_DETERMINISTIC_WRAP": "yes"}),
        Severity.ERROR,
    ),
    "no plugin": ("A15", replace(HEALTHY, plugin=False), Severity.ERROR),
    "old sssd": ("A15", replace(HEALTHY, versions={"sssd": (2, 10, 1)}), Severity.ERROR),
    "long cache": (
        "A15",
        replace(HEALTHY, sssd={"domain/x": {"id_provider": "ipa", "entry_cache_timeout": "99999"}}),
        Severity.INFO,
    ),
    "sssctl": ("A15", replace(HEALTHY, config_check="[rule/x]: option not allowed"), Severity.WARNING),
    "writable": ("A16", replace(HEALTHY, write_probe="anybody could write cn=x"), Severity.ERROR),
    "unreadable": ("A16", replace(HEALTHY, inventory=replace(LDAP, ranges=())), Severity.ERROR),
    "plain LDAP": ("A17", replace(HEALTHY, search=Search(Directory(), "ldap://ldap.hpc")), Severity.WARNING),
    "no certificate": ("A17", replace(HEALTHY, ldap_conf={"TLS_REQCERT": "never"}), Severity.WARNING),
    "plain sssd": (
        "A17",
        replace(
            HEALTHY,
            sssd={"domain/x": {"id_provider": "ldap", "ldap_uri": "ldap://a", "ldap_id_use_start_tls": "false"}},
        ),
        Severity.WARNING,
    ),
    "references": ("A18", replace(HEALTHY, inventory=replace(LDAP, references=2)), Severity.WARNING),
    "shadow 4.20.1": ("A19", replace(HEALTHY, versions={"shadow": (4, 20, 1)}), Severity.WARNING),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_site_yields_that_id(case: str) -> None:
    name, site, severity = BROKEN[case]
    found = run_checks(site)
    assert {verdict.finding.id for verdict in found} == {name}
    assert {verdict.finding.severity for verdict in found} == {severity}
    assert all(verdict.items and verdict.finding.what.endswith(".") and verdict.finding.fix for verdict in found)


def test_a_real_id_in_a_range_is_an_error() -> None:
    found = [verdict for verdict in run_checks(REAL) if verdict.finding.id == "A03"]
    assert [len(verdict.items) for verdict in found] == [4, 4], "uids, and primary gids"
    assert found[0].items[0] == "user user0 (uid 20000) in user3: subuid 19990-20089 ()".replace(" ()", " ()")
    assert "A04" not in ids(REAL)


@pytest.mark.parametrize(
    ("start", "severity"),
    [(500, "error"), (60100, "error"), (61200, "error"), (65000, "error"), (600000, "info"), (1 << 31, "info")],
)
def test_windows(start: int, severity: str) -> None:
    site = with_ranges(HEALTHY, *both("user3", start, 1000), drop="user3")
    found = {verdict.finding.severity.value for verdict in run_checks(site) if verdict.finding.id == "A04"}
    assert found == {severity}


def test_ids_that_sssd_computes_for_active_directory() -> None:
    site = replace(with_ranges(HEALTHY, *both("user3", 600000), drop="user3"), sssd=AD)
    assert "A04" in {verdict.finding.id for verdict in run_checks(site) if verdict.finding.severity is Severity.ERROR}


def test_long_files_are_slow_with_new_shadow_only() -> None:
    site = Site(LONG, local=LONG, versions={"shadow": (4, 20, 2)})
    assert "A11" in ids(site)
    assert "A11" not in ids(replace(site, versions={"shadow": (4, 17, 4)}))


def test_unequal_is_an_info() -> None:
    other = Range("user3", BASE + 9 * COUNT, COUNT, "gid")
    kept = tuple(item for item in RANGES if item != RANGES[-1])
    found = the_one(replace(HEALTHY, formula=None, inventory=replace(LDAP, ranges=(*kept, other))))
    assert (found.finding.id, found.finding.severity, found.items) == ("A08", Severity.INFO, ("user3",))


def test_the_formula_says_who_fits_no_more() -> None:
    plan = Formula(1 << 31, COUNT, 20000)
    last = Account("last", 20000 + 32766, 1)
    site = replace(
        HEALTHY, formula=plan, inventory=replace(LDAP, accounts=(last,), ranges=both("last", plan.start(last.uid)))
    )
    texts = [verdict.finding.what for verdict in run_checks(site) if verdict.finding.id == "A14"]
    assert texts == ["The formula has room for 0 uids more."]
    first = replace(last, uid=last.uid + 1)
    over = replace(site, inventory=replace(LDAP, accounts=(first,), ranges=()))
    texts = [verdict.finding.why for verdict in run_checks(over) if verdict.finding.id == "A14"]
    assert texts[0].startswith("The first uid that does not fit any more is 52767;"), "32,767 users, as FreeIPA has"


def test_a_thousand_users_with_one_problem_are_one_finding() -> None:
    ranges = tuple(Range(f"user{index}", BASE, COUNT, "uid") for index in range(1000))
    accounts = tuple(person(index) for index in range(1000))
    site = replace(HEALTHY, formula=None, inventory=replace(LDAP, ranges=ranges, accounts=accounts))
    found = [verdict for verdict in run_checks(site) if verdict.finding.id == "A02"]
    assert len(found) == 1
    assert len(found[0].items) == 999
    assert found[0].finding.evidence.count("\n") == 10
    assert found[0].finding.evidence.endswith("… and 989 more")


def test_every_check_has_a_case() -> None:
    tested = {name for name, _, _ in BROKEN.values()} | {"A01", "A03", "A08", "A11"}
    assert tested == {name for name, _ in CHECKS}


# -- entries of a directory


def ldif(text: str, names: Directory | None = None) -> Inventory:
    names = names or Directory()
    reader = read_ldif(io.BytesIO(textwrap.dedent(text).encode()), name="dump", wanted=names.attributes)
    return from_entries(reader.entries(), names, kind="ldif", source="dump")


USER = """
dn: uid=dave,dc=hpc
objectClass: posixAccount
uid: dave
uidNumber: 20000
gidNumber: 20000
"""
ENTRY = """
dn: cn=1,dc=hpc
objectClass: subordinateIdEntry
subidRangeOwner: UID=Dave, DC=hpc
subUidNumber: 2000000000
subUidCount: 65536
subGidNumber: 2000000000
subGidCount: 65536
"""
IPA = """
dn: ipaUniqueID=1,dc=hpc
objectClass: ipaSubordinateIdEntry
objectClass: ipaSubordinateId
ipaOwner: uid=dave,dc=hpc
ipaSubUidNumber: 2000000000
ipaSubUidCount: 65536
ipaSubGidNumber: 2000000000
ipaSubGidCount: 65536
"""


@pytest.mark.parametrize("text", [USER + ENTRY, ENTRY + USER, IPA + USER, IPA + USER + ENTRY])
def test_both_schemas_in_any_order(text: str) -> None:
    found = ldif(text)
    assert [(item.owner, item.start, item.count, item.kind) for item in found.ranges] == [
        ("dave", 2000000000, 65536, "uid"),
        ("dave", 2000000000, 65536, "gid"),
    ]
    assert not found.flaws
    assert not run_checks(Site(found))


def test_attributes_of_a_site_on_the_account_itself() -> None:
    names = directory("auto", ["subuid=myStart", "subuid-count=myCount", "subgid=myStart", "subgid-count=myCount"])
    found = ldif(USER + "myStart: 2000000000\nmyCount: 65536\n", names)
    assert [(item.owner, item.start, item.kind) for item in found.ranges] == [
        ("dave", 2000000000, "uid"),
        ("dave", 2000000000, "gid"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("subUidNumber: 2000000000", "x: y", "has no subUidNumber"),
        ("subUidCount: 65536", "subUidCount: 0", "subUidCount is 0"),
        ("subUidCount: 65536", "subUidCount: 6553 6", "no integer"),
        ("subUidCount: 65536", "subUidCount: ٦٥", "no integer"),
        ("subUidNumber: 2000000000", "subUidNumber: -2147483648", "signed 32-bit"),
        ("subUidNumber: 2000000000", f"subUidNumber: {2**64}", "larger than 32 bits"),
        ("subUidNumber: 2000000000", f"subUidNumber: {'9' * 5000}", "no integer"),
        ("subUidNumber: 2000000000", "subUidNumber: 4294967000", "past 2^32-1"),
        ("subUidNumber: 2000000000", "subUidNumber: 1\nsubUidNumber: 2", "2 values of subUidNumber"),
        ("subidRangeOwner: UID=Dave, DC=hpc", "x: y", "without subidRangeOwner"),
        ("UID=Dave, DC=hpc", "uid=gone,dc=hpc", "no account"),
        ("UID=Dave, DC=hpc", "uid=dave,dc=hpc\nsubidRangeOwner: uid=b,dc=hpc", "2 values of subidRangeOwner"),
    ],
)
def test_an_entry_that_cannot_be_right(old: str, new: str, word: str) -> None:
    found = [
        verdict for verdict in run_checks(Site(ldif(USER + ENTRY.replace(old, new)))) if verdict.finding.id == "A01"
    ]
    assert len(found) == 1
    assert word in str(found[0].finding)
    assert "cn=1,dc=hpc" in found[0].items[0]


def test_odd_names_can_be_printed() -> None:
    found = ldif(USER.replace("uid: dave", "uid:: ZGF2ZRtbMm0K") + ENTRY)
    assert found.ranges[0].owner == r"dave\x1b[2m\n"
    assert str(found.ranges[0]).isprintable()


# -- files of a node


PLACES = {"login_defs": "login.defs", "sssd": "sssd/sssd.conf", "sssd_more": "sssd/conf.d/x.conf"}


def image(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "etc/sssd/conf.d").mkdir(parents=True)
    passwd = "".join(f"user{index}:x:{20000 + index}:100::/:/bin/bash\n" for index in range(2))
    lines = f"user0:{BASE}:65536\n20001:{BASE + COUNT}:65536\n"
    given = {"passwd": passwd, "subuid": lines, "subgid": lines, "group": "users:x:100:\n", **files}
    for name, text in given.items():
        (tmp_path / "etc" / PLACES.get(name, name)).write_text(text)
    return tmp_path


def command(*argv: str) -> list[str]:
    return ["ids", "check", *argv]


def test_files_of_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = image(tmp_path)
    assert cli.main(command("--root", str(root))) == 0
    assert capsys.readouterr().out == (
        f"{root}/etc (files): 2 ranges of subuids, 2 of subgids, 2 accounts and 1 groups: nothing wrong\n"
    )


@pytest.mark.parametrize(
    ("line", "where"),
    [("user1 :1:1\n", "/etc/subuid:3"), ("user1:1:1\r\n", "/etc/subuid:3"), (f"user1:{2**64}:1\n", "/etc/subuid:3")],
)
def test_a_line_nobody_reads(tmp_path: Path, line: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = image(tmp_path)
    with (root / "etc/subuid").open("a", newline="") as file:
        file.write(line)
    assert cli.main(command("--root", str(root), "--json")) == 11
    found = json.loads(capsys.readouterr().out)
    assert [(one["id"], one["items"][0].partition(": ")[0]) for one in found["findings"]] == [("A01", where)]


def test_an_overlap_in_hexadecimal_is_seen(tmp_path: Path) -> None:
    lines = f"user0:{BASE}:65536\nuser1:{hex(BASE)}:65536\n"
    found = run_checks(Site(from_files(Node(root=str(image(tmp_path, subuid=lines))))))
    assert {"A01", "A02"} <= {verdict.finding.id for verdict in found}


def test_configuration_of_a_node(tmp_path: Path) -> None:
    root = image(
        tmp_path,
        login_defs="# x\nSUB_UID_COUNT 0 # none\nSUB_UID_MIN\t0x10000\n",
        sssd="[domain/a]\nid_provider = ldap\n",
        sssd_more="[domain/a]\nid_provider = ipa\n",
    )
    node = Node(root=str(root))
    assert read_login_defs(node) == {"SUB_UID_COUNT": "0", "SUB_UID_MIN": "0x10000"}
    assert read_sssd(node) == {"domain/a": {"id_provider": "ipa"}}
    assert Site(LDAP, login_defs=read_login_defs(node)).number("SUB_UID_MIN", 1) == 65536


@pytest.mark.parametrize(
    ("text", "size", "word"),
    [
        ("", 1 << 30, "has more than 134217728 bytes"),
        ("junk\n" * 100_001, 0, "has more than 100000 lines that cannot be right"),
        ("".join(f"a{index}:7:1\n" for index in range(1_000_001)), 0, "has more than 1000000 ranges"),
    ],
    ids=["a gigabyte", "junk", "ranges without end"],
)
def test_a_file_that_is_none_of_ranges(
    tmp_path: Path, text: str, size: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image(tmp_path, subuid=text)
    if size:
        os.truncate(root / "etc/subuid", size)
    assert cli.main(command("--root", str(root))) == 10
    assert word in capsys.readouterr().err


# -- the command


def test_ranges_that_moved_since_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, baseline = image(tmp_path), str(tmp_path / "baseline")
    assert cli.main(["ids", "baseline", "save", baseline, "--root", str(root)]) == 0
    assert cli.main(command("--root", str(root), "--baseline", baseline)) == 0
    for name in ("subuid", "subgid"):
        (root / "etc" / name).write_text(f"user0:{BASE + 2 * COUNT}:65536\n20001:{BASE + COUNT}:65536\ngone:{BASE}:9\n")
    capsys.readouterr()
    assert cli.main(command("--root", str(root), "--baseline", baseline, "--only", "A13", "--json")) == 11
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["id"], found["severity"], found["count"]) == ("A13", "error", 1)
    assert found["items"][0].startswith("user0 (20000): ")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--only", "A02,A77"], "no check A77"),
        (["--formula", "1:2"], "BASE:COUNT:UID_MIN"),
        (["--attribute", "color=blue"], "no KEY=ATTRIBUTE"),
        (["--attribute", "subuid=a)(b"], "no KEY=ATTRIBUTE"),
        (["--source", "ldif"], "--ldif FILE"),
        (["--bind", "cn=x", "--uri", "ldap://x"], "belong together"),
        (["--source", "nss", "--root", "/mnt"], "this node only"),
        (["--ldif", "/nowhere/x"], "does not exist"),
    ],
)
def test_wrong_use(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = argv if "--attribute" not in argv else [*argv, "--ldif", "/dev/null"]
    assert cli.main(command(*argv)) == 2
    assert word in capsys.readouterr().err


@pytest.fixture
def ldapsearch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put an ldapsearch on PATH that fails in a way of which no server can be convinced."""

    def make(script: str) -> None:
        program = tmp_path / "bin/ldapsearch"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return make


@pytest.mark.parametrize(
    ("script", "code", "word"),
    [
        (f"cat <<'E'\n{USER}\nE\necho 'Size limit exceeded (4)' >&2; exit 4", 8, "A18: ldapsearch ended with code 4"),
        (f"cat <<'E'\n{USER}\nE\nexit 3", 8, "time limit"),
        ("printf 'dn: uid=dave'; kill -9 $$", 8, "no complete answer"),
        ("printf 'dn: uid=dave'; exit 0", 10, "cut off"),
        ("exec sleep 60", 8, "did not finish in 0.5 s"),
        ("exec cat /dev/zero", 10, "longer than"),
        ("exec yes", 10, "attribute: value"),
    ],
)
def test_no_verdict_on_a_part(
    ldapsearch: Any, script: str, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ldapsearch(script)
    assert cli.main(command("--uri", "ldap://x", "--timeout", "0.5")) == code
    said = capsys.readouterr()
    assert word in said.err
    assert not said.out


def test_libsubid_is_asked_user_by_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = tmp_path / "users"
    users.write_text("root\nnobody-of-that-name\n")
    assert cli.main(command("--source", "nss", "--users", str(users), "--only", "A02")) == 0
    assert "libsubid (files) (nss): 0 ranges of subuids" in capsys.readouterr().out
