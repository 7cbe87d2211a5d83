"""`squashmount-conf ids check` on a real directory: slapd with 20,000 users in both schemas, sssd."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from directory_lab import (
    ADMIN,
    FIRST_RANGE,
    FREEIPA,
    NEEDS_DIRECTORY,
    PASSWORD,
    SECOND_SUFFIX,
    SIZE,
    SUFFIX,
    USERS,
    Account,
    Directory,
    directory,
    sssd,
)
from lab import Done, run

pytestmark = [pytest.mark.needs_root, NEEDS_DIRECTORY]

PROGRAM = str(Path(sys.executable).with_name("squashmount-conf"))


@pytest.fixture(scope="module")
def slapd(lab: Path) -> Iterator[Directory]:
    with directory(lab, map(Account.number, range(SIZE))) as slapd:
        yield slapd


def check(slapd: Directory, *more: str, base: str = SUFFIX) -> Done:
    asked = ("--uri", slapd.uri, "--base", base) if base else ()
    return run(PROGRAM, "ids", "check", *asked, *more, timeout=120)


def found(done: Done, code: int) -> dict[str, Any]:
    assert done.code == code, done
    said: dict[str, Any] = json.loads(done.out)
    return said


@pytest.mark.parametrize(
    ("source", "schema"), [("ldap", "auto"), ("ldap", "freeipa"), ("ldap", "sssd"), ("ldap3", "auto")]
)
def test_a_healthy_directory(slapd: Directory, source: str, schema: str) -> None:
    options = ("--anonymous", "--json", "--source", source, "--schema", schema, "--accounts", "ldap")
    said = found(check(slapd, *options), 0)
    assert said["ranges"] == {"uid": SIZE, "gid": SIZE}
    assert said["accounts"] == said["groups"] == SIZE
    assert {one["id"] for one in said["findings"]} == {"A04"}, "ids from 2^31 on are told"
    assert {one["severity"] for one in said["findings"]} == {"info"}


@pytest.mark.parametrize(("source", "program"), [("ldap", "ldapsearch"), ("ldap3", "ldap3")])
def test_an_answer_cut_off_is_no_verdict(slapd: Directory, source: str, program: str) -> None:
    done = check(slapd, "--anonymous", "--page", "0", "--source", source)
    assert done.code == 8
    assert f"A18: {program} ended with code 4" in done.err
    assert not done.out


def test_half_a_directory_is_told_and_never_a_baseline(slapd: Directory, tmp_path: Path) -> None:
    said = found(check(slapd, "--anonymous", "--json", base=FREEIPA), 0)
    assert [one["id"] for one in said["findings"] if one["severity"] == "warning"] == ["A18"]
    file = tmp_path / "baseline"
    words = (PROGRAM, "ids", "baseline", "save", str(file), "--uri", slapd.uri, "--anonymous", "--base")
    run(*words, SUFFIX).ok()
    before = file.read_bytes()
    done = run(*words, USERS)
    assert (done.code, "everything would be retired" in done.err) == (10, True)
    assert file.read_bytes() == before


def test_a_server_that_is_not_there(slapd: Directory) -> None:
    uri = slapd.uri + ":1"
    for source in ("ldap", "ldap3"):
        done = run(PROGRAM, "ids", "check", "--source", source, "--uri", uri, "--base", SUFFIX, "--anonymous")
        assert done.code == 8
        assert "A18" in done.err


def test_what_ldapsearch_prints_is_read_from_a_pipe(slapd: Directory, tmp_path: Path) -> None:
    dump = tmp_path / "dump.ldif"
    dump.write_text(slapd.search("-E", "pr=1000/noprompt").ok() + "\n")
    said = found(check(slapd, "--ldif", str(dump), "--json", base=""), 0)
    assert said["ranges"]["uid"] == SIZE
    wrapped = slapd.search("-E", "pr=1000/noprompt", "-o", "ldif-wrap=40", base=FREEIPA).ok()
    dump.write_text((wrapped + "\n").replace("\n", "\r\n"))
    said = found(check(slapd, "--ldif", str(dump), "--json", base=""), 0)
    assert said["ranges"]["uid"] == SIZE


def test_an_overlap_and_a_real_id_are_named(slapd: Directory) -> None:
    seven, eight = Account.number(7), Account.number(8)
    try:
        slapd.move(seven, FIRST_RANGE + 8 * 65536 + 1)
        said = found(check(slapd, "--anonymous", "--json", "--only", "A02,A03"), 11)
        assert [one["id"] for one in said["findings"]] == ["A02", "A02"], "uids and gids"
        assert seven.name in said["findings"][0]["items"][0]
        assert eight.name in said["findings"][0]["items"][0]
        slapd.move(seven, eight.uid)
        said = found(check(slapd, "--anonymous", "--json", "--only", "A02,A03"), 11)
        assert {one["id"] for one in said["findings"]} == {"A03"}
        assert f"user {eight.name} (uid {eight.uid}) in {seven.name}" in said["findings"][0]["items"][0]
    finally:
        slapd.move(seven, FIRST_RANGE + 7 * 65536)


def test_users_who_may_write_their_own_range(slapd: Directory, tmp_path: Path) -> None:
    owner = f"uid=eve,{SECOND_SUFFIX}"
    entry = (
        f"dn: {owner}\nobjectClass: account\nobjectClass: posixAccount\nobjectClass: simpleSecurityObject\nuid: eve\n"
        "cn: eve\nuidNumber: 900\ngidNumber: 900\nhomeDirectory: /\nuserPassword: secret\n\n"
        f"dn: cn=eve,{SECOND_SUFFIX}\nobjectClass: subordinateIdEntry\ncn: eve\nsubidRangeOwner: {owner}\n"
        "subUidNumber: 3000000000\nsubUidCount: 65536\nsubGidNumber: 3000000000\nsubGidCount: 65536\n"
    )
    slapd.modify(entry, SECOND_SUFFIX)
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    options = ("--password-file", str(password), "--probe-write", "--only", "A16", "--json")
    said = found(check(slapd, "--bind", owner, *options, base=SECOND_SUFFIX), 11)
    assert said["findings"][0]["items"] == [f"{owner} could write cn=eve,{SECOND_SUFFIX}"]
    # in the large directory nobody but the administrator may
    said = found(check(slapd, "--bind", owner, *options), 0)
    assert said["findings"] == []
    said = found(check(slapd, "--bind", f"{ADMIN},{SUFFIX}", *options), 11)
    assert said["findings"][0]["id"] == "A16"


def test_what_this_node_answers_through_sssd(slapd: Directory, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("".join(f"{Account.number(index).name}\n" for index in range(5)))
    with sssd(slapd):
        said = found(check(slapd, "--source", "nss", "--users", str(users), "--json", base=""), 0)
        assert said["source"] == {"kind": "nss", "name": "libsubid (sss)"}
        assert said["ranges"] == {"uid": 5, "gid": 5}
        one = Account.number(3)
        line = run(PROGRAM, "ids", "fingerprint", "--user", one.name).ok()
        answer = json.loads(line)["users"][one.name]
        assert answer == {"uid": one.uid, "subuid": [list(one.subuid or ())], "subgid": [list(one.subgid or ())]}
