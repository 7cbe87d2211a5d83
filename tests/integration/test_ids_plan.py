"""`squashmount-conf ids plan` and a real directory: what it writes is taken, and then nothing is left to do."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from directory_lab import (
    ADMIN,
    COUNT,
    FIRST_RANGE,
    FIRST_UID,
    FREEIPA,
    NEEDS_DIRECTORY,
    PASSWORD,
    PLAIN,
    SUFFIX,
    USERS,
    Account,
    Directory,
    directory,
)
from lab import Done, run

pytestmark = [pytest.mark.needs_root, NEEDS_DIRECTORY]

OLD, NEW = 1500, 500


@pytest.fixture
def slapd(lab: Path) -> Iterator[Directory]:
    accounts = [Account.number(index) for index in range(OLD + NEW)]
    with directory(
        lab, [*accounts[:OLD], *(replace(one, subuid=None, subgid=None) for one in accounts[OLD:])]
    ) as slapd:
        yield slapd


def ids(product: Path, slapd: Directory, schema: str, *argv: str) -> Done:
    bases = ("--base", f"cn=accounts,{SUFFIX}") if schema == "freeipa" else ("--base", PLAIN, "--base", USERS)
    source = ("--source", "ldap", "--uri", slapd.uri, "--anonymous", *bases, "--schema", schema)
    return run(str(product / "bin/squashmount-conf"), "ids", *argv, *source)


@pytest.mark.parametrize(("schema", "below"), [("freeipa", FREEIPA), ("sssd", PLAIN)])
def test_the_plan_is_added_and_then_nothing_is_left_to_do(
    product: Path, slapd: Directory, tmp_path: Path, schema: str, below: str
) -> None:
    baseline, new = str(tmp_path / "baseline"), str(tmp_path / "new.ldif")
    ids(product, slapd, schema, "baseline", "save", baseline).ok()
    rule = ("--formula", f"{FIRST_RANGE}:{COUNT}:{FIRST_UID}", "--baseline", baseline)
    out = ids(product, slapd, schema, "plan", *rule, "--format", schema, "--ranges-dn", below, "-o", new).ok()
    assert f"{OLD:,} have their ranges, {NEW} get one, 0 cannot" in out
    bind = ("-x", "-H", slapd.uri, "-D", f"{ADMIN},{SUFFIX}", "-w", PASSWORD)
    run("ldapadd", *bind, "-f", new).ok()
    again = run("ldapadd", *bind, "-f", new)
    assert "Already exists (68)" in again.err  # a second time nobody gets a second range
    done = ids(product, slapd, schema, "plan", *rule, "--json").ok()
    said = json.loads(done)
    assert (said["kept"], said["new"]) == (OLD + NEW, [])
    assert (
        f"info A13: {NEW} users with ranges where there was none"
        in ids(product, slapd, schema, "baseline", "diff", baseline).ok()
    )
    # the accounts that got one are those of the formula, as the directory has it for the others
    last = slapd.search(
        "-b", below, f"({'ipaOwner' if schema == 'freeipa' else 'subidRangeOwner'}={_dn(OLD + NEW - 1)})"
    )
    assert f"UidNumber: {FIRST_RANGE + (OLD + NEW - 1) * COUNT}\n" in last.ok() + "\n"


def _dn(index: int) -> str:
    return Account.number(index).dn


def test_what_is_moved_in_the_directory_is_an_error_with_names_and_paths(
    product: Path, slapd: Directory, tmp_path: Path
) -> None:
    baseline = str(tmp_path / "baseline")
    ids(product, slapd, "freeipa", "baseline", "save", baseline).ok()
    moved = Account.number(7)
    slapd.move(moved, FIRST_RANGE + (OLD + 7) * COUNT)
    done = ids(product, slapd, "freeipa", "baseline", "diff", baseline)
    assert done.code == 11
    assert "error A13: 1 user with other ids than before" in done.out
    assert f"{moved.name} ({moved.uid}): {FIRST_RANGE + 7 * COUNT}:{COUNT} ->" in done.out
    assert f"~{moved.name}/.local/share/containers" in done.out
