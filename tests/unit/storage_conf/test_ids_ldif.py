"""The LDIF reader: what RFC 2849 allows, and what must be refused without eating memory."""

import base64
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squashmount.storage_conf.ids.directory_schema import normal_dn
from squashmount.storage_conf.ids.ldif import VALUE_LIMIT, VALUES_LIMIT, Entry, read_ldif

from squashmount.errors import DamagedError

DAVE = {"uid": [b"dave"], "uidnumber": [b"20000"]}


def read(text: bytes) -> list[Entry]:
    return list(read_ldif(io.BytesIO(text), name="dump.ldif", wanted=["uid", "uidNumber"]).entries())


@pytest.mark.parametrize(
    "text",
    [
        b"dn: uid=dave,dc=hpc\nuid: dave\nuidNumber: 20000\n",
        b"dn: uid=dave,dc=hpc\r\nuid: dave\r\nuidNumber: 20000\r\n\r\n",
        b"version: 1\ndn: uid=dave,dc=hpc\nUID:dave\nUIDNUMBER:   20000\n\n\n",
        b"version: 1\n\n# a comment\n  that goes on\ndn: uid=da\n ve,dc\n =hpc\nui\n d: dave\nuidNumber: 2\n 0000\n",
        b"dn:: " + base64.b64encode(b"uid=dave,dc=hpc") + b"\nuid:: ZGF2ZQ==\nuidNumber;x-old:: MjAwMDA=\n",
        b"\xef\xbb\xbfdn: uid=dave,dc=hpc\nuid: dave\ncn: x\ncn:< file:///etc/shadow\nuidNumber: 20000\n",
        b"dn: uid=dave,dc=hpc\nuid: dave\nuidNumber: 20000\n\nsearch: 2\nresult: 0 Success\n\n# numEntries: 1\n",
        b"dn: uid=dave,dc=hpc\njpegPhoto:: "
        + b"A" * 200_000
        + b"\n "
        + b"B" * 100_000
        + b"\nuid: dave\nuidNumber: 20000\n",
    ],
    ids=["plain", "crlf", "case", "folded", "base64", "mark and url of others", "not -LLL", "photo"],
)
def test_all_spellings_of_one_entry(text: bytes) -> None:
    (entry,) = read(text)
    assert entry.dn == "uid=dave,dc=hpc"
    assert entry.values == DAVE


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        (b"uid: dave\n", 1, "no dn"),
        (b"cn: dave\n", 1, "no dn"),
        (b" uid: dave\n", 1, "continues nothing"),
        (b"dn: x=y\n\n cn: a\n", 3, "continues nothing"),
        (b"dn: x=y\nuid: a\ndn: z=y\n", 3, "inside another"),
        (b"dn: x=y\nchangetype: delete\n", 2, "changes"),
        (b"dn: x=y\nuid:: %%%%\n", 2, "base64"),
        (b"dn: x=y\nuid:: QQ\n", 2, "base64"),
        (b"dn: x=y\nuid:< file:///etc/shadow\n", 2, "not followed"),
        (b"dn: x=y\nuid: da", 2, "cut off"),
        (b"dn: x=\xff\xff\n", 1, "UTF-8"),
        (b"\xff\xfed\0n\0:\0\n", 1, "UTF-16"),
        (b"dn: x=y\nwhat is this\n", 2, "attribute: value"),
        (b"dn: x=y\nu\x00id: 1\n", 2, "attribute: value"),
        (b"\x1f\x8b\x08\x00\x00\n", 1, "attribute: value"),
        (b"dn: x=y\nuid: " + b"7" * (VALUE_LIMIT + 9) + b"\n", 2, "longer than"),
        (b"dn: x=y\nuid: 7\n" + b" 7777777777\n" * VALUE_LIMIT, 5960, "larger than"),
        (b"dn: x=y\n" + b"uid: 7\n" * (VALUES_LIMIT + 1), VALUES_LIMIT + 2, "of one entry"),
        (b"dn: x=y\n\nsearch: 2\nresult: 4 Size limit exceeded\n", 4, "entries are missing"),
    ],
)
def test_damage_is_one_sentence_with_the_line(text: bytes, line: int, word: str) -> None:
    with pytest.raises(DamagedError, match=rf"^Line {line} of dump.ldif .*{word}") as caught:
        read(text)
    assert caught.value.brief.count("\n") == 0


@given(
    st.lists(
        st.sampled_from([b"dn: x=y\n", b"uid: 1\n", b"\n", b" 2\n", b"uid:: QQ==\n", b"\r\n", b"xuid: 1\n", b"\0"])
    )
)
def test_whatever_it_is_it_is_read_or_damaged(parts: list[bytes]) -> None:
    try:
        found = read(b"".join(parts))
    except DamagedError:
        return
    assert len(found) == parts.count(b"dn: x=y\n")


def test_other_servers_are_counted() -> None:
    reader = read_ldif(io.BytesIO(b"dn: x=y\n\n# refldap://b/dc=x\n\n"), name="x", wanted=[])
    assert len(list(reader.entries())) == 1
    assert reader.references == 1


CHILD = """
import resource, sys
from squashmount.errors import DamagedError
from squashmount.storage_conf.ids.ldif import read_ldif
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
try:
    print(sum(1 for _ in read_ldif(sys.stdin.buffer, name="dump", wanted=["uid"]).entries()))
except DamagedError as err:
    print(err.brief)
# of this program alone: ru_maxrss begins with what the parent had at the fork (getrusage(2))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.parametrize(
    ("begin", "repeat", "answer"),
    [
        (b"", bytes(1 << 20), "Line 1 of dump is longer than 65536 bytes."),
        (b"# ", b"comment " * (1 << 17), "Line 1 of dump has no end: the file was cut off."),
        (b"dn: x=y\nuid: ", b"9" * (1 << 20), "Line 2 of dump is longer than 65536 bytes."),
        (b"dn: x=y\nphoto:: ", b"A" * (1 << 20), "Line 2 of dump has no end: the file was cut off."),
        (b"dn: x=y\n", b"photo:: " + b"A" * ((1 << 20) - 9) + b"\n", "1"),
        (b"", b"dn: x=y\nuid: 1\nphoto:: " + b"A" * ((1 << 19) - 25) + b"\n\n", "many"),
    ],
    ids=["zeros", "one comment", "one number", "one photo", "photos", "entries"],
)
def test_a_gigabyte_in_bounded_memory(begin: bytes, repeat: bytes, answer: str) -> None:
    repeats = (1 << 30) // len(repeat)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(begin)
            for _ in range(repeats):
                child.stdin.write(repeat)
            child.stdin.close()
        except BrokenPipeError:  # it has seen enough
            pass
        said, memory = child.stdout.read().decode().splitlines()
    assert said == (str(repeats) if answer == "many" else answer)
    assert int(memory) < 64 << 10, "KiB"


def test_a_sparse_gigabyte(tmp_path: Path) -> None:
    big = tmp_path / "big.ldif"
    with big.open("wb") as file:
        os.truncate(file.fileno(), 1 << 30)
    with big.open("rb") as file, pytest.raises(DamagedError, match=r"^Line 1 "):
        list(read_ldif(file, name="big", wanted=["uid"]).entries())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("uid=dave,cn=users,dc=hpc", "UID=Dave, CN = users,DC=hpc"),
        (r"cn=Doe\, Jane,dc=hpc", r"cn=doe\2C jane,dc=HPC"),
        ('cn="Doe, Jane",dc=hpc', r"cn=Doe\, Jane,dc=hpc"),
        ("uid=a+cn=b,dc=hpc", "CN=b+UID=a,dc=hpc"),
        (r"cn=J\C3\BCrgen,dc=hpc", "cn=jürgen,dc=hpc"),
    ],
)
def test_two_spellings_of_one_dn(one: str, other: str) -> None:
    assert normal_dn(one) == normal_dn(other)


def test_other_dns_stay_other() -> None:
    names = ["uid=dave,dc=hpc", r"uid=dave\,dc=hpc", "uid=dav,dc=hpc", "uid=dave+cn=x,dc=hpc"]
    assert len({normal_dn(name) for name in names}) == len(names)
