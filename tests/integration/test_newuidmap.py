"""`ids.newuidmap` says what the installed newuidmap and newgidmap do: each case of a matrix, and 1,000 random files."""

import ctypes
import os
import pwd
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from lab import Node, User, run
from squashmount.storage_conf.ids import libsubid
from squashmount.storage_conf.ids.newuidmap import (
    DEBIAN_12,
    DEBIAN_13,
    UNSTABLE,
    Caller,
    Kind,
    Line,
    Reason,
    RefusedFileError,
    Triple,
    Verdict,
    Version,
    podman_map,
    podman_ranges,
    predict,
    read_file,
    read_lines,
)

pytestmark = pytest.mark.needs_root

FILES: dict[Kind, Path] = {"uid": Path("/etc/subuid"), "gid": Path("/etc/subgid")}
UID, GID = 23000, 23001
DAVE = Caller("dave", UID, GID)
# a second name of the same uid, a name that is a number, somebody else, and a group whose number is nobody's uid
USERS = {"dave": UID, "david": UID, "77": UID, "erin": 23007}
PASSWD = "".join(f"{name}:x:{uid}:{GID}::/:/bin/sh\n" for name, uid in USERS.items())
GROUP = f"dave:x:{GID}:\n"

_CLONE_NEWUSER, _PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 0x10000000, 1, 4
_libc = ctypes.CDLL(None, use_errno=True)


def installed_version() -> Version:
    text = run("dpkg-query", "-W", "-f", "${Version}", "uidmap").ok()  # 1:4.13+dfsg1-1+deb12u2
    major, minor = map(int, text.split(":")[-1].split("+")[0].split("-")[0].split(".")[:2])
    return major, minor


class Target:
    """A process of dave's in a user namespace of its own that has no map yet."""

    def __init__(self) -> None:
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setgroups([])
                os.setresgid(GID, GID, GID)
                os.setresuid(UID, UID, UID)
                _libc.prctl(_PR_SET_DUMPABLE, 1)  # else /proc/PID is root's
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if _libc.unshare(_CLONE_NEWUSER) == 0:
                    os.write(tell, b"1")
                    signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(ready, 1) == b"1"
        os.close(ready)

    def read(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Machine:
    """The real programs, asked as dave; a target serves until it has a map, which can be written once."""

    def __init__(self) -> None:
        self.version = installed_version()
        self.target = Target()
        self.uids = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}

    def write(self, data: bytes, kind: Kind = "uid") -> None:
        FILES[kind].write_bytes(data)

    def lines(self, kind: Kind = "uid") -> list[Line] | RefusedFileError:
        try:
            return read_file(str(FILES[kind]), self.version)
        except RefusedFileError as err:
            return err

    def predict(self, triples: list[Triple], kind: Kind = "uid", caller: Caller = DAVE) -> Verdict:
        return predict(triples, self.lines(kind), caller, kind, version=self.version, uid_of=self.uids.get)

    def ask(self, triples: list[Triple], kind: Kind = "uid", *, group: int = GID) -> tuple[int, str]:
        """Run newuidmap or newgidmap; return its status and what it says, after comparing what it wrote."""
        numbers = [str(number) for triple in triples for number in triple]
        done = subprocess.run(
            [f"new{kind}map", str(self.target.pid), *numbers],
            user=UID,
            group=group,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        if done.returncode == 0:
            written = [tuple(map(int, line.split())) for line in self.target.read(f"{kind}_map").splitlines()]
            assert written == [tuple(triple) for triple in triples]
            self.renew()
        return done.returncode, os.fsdecode(done.stderr)

    def renew(self) -> None:
        self.target.close()
        self.target = Target()

    def agree(self, triples: list[Triple], kind: Kind = "uid") -> Verdict:
        """Assert that the prediction is what happens, in the words of the program, and return it."""
        verdict = self.predict(triples, kind)
        code, text = self.ask(triples, kind)
        said = f"{FILES[kind].read_bytes()[:300]!r}\n{triples[:3]} {kind}\n{code} {text!r}\n{verdict}"
        assert (code == 0) == verdict.allowed, said
        if verdict.reason is Reason.NOT_ALLOWED:
            assert f"{verdict.detail}\n" in text, said
        elif verdict.reason is not Reason.REFUSED_FILE:
            assert verdict.reason.value in text, said
        return verdict


@pytest.fixture(scope="module")
def machine(alice: User) -> Iterator[Machine]:
    """dave and the others in the lab's private /etc; what was there comes back, as other tests' users live there."""
    assert alice.name in FILES["uid"].read_text()  # made before: useradd(8) refuses what is written here
    texts = {"/etc/passwd": PASSWD, "/etc/group": GROUP}
    before = {path: Path(path).read_bytes() for path in [*texts, *map(str, FILES.values())]}
    for path, text in texts.items():
        Path(path).write_bytes(before[path] + text.encode())
    made = Machine()
    yield made
    made.target.close()
    for path, data in before.items():
        Path(path).write_bytes(data)


MATRIX: dict[str, tuple[bytes, Triple, bool]] = {
    "by name": (b"dave:100000:1000\n", Triple(0, 100000, 1000), True),
    "by uid": (b"23000:100000:1000\n", Triple(0, 100000, 1000), True),
    "by another name of the uid": (b"david:100000:1000\n", Triple(0, 100000, 1000), True),
    "somebody else's": (b"erin:100000:1000\n", Triple(0, 100000, 1000), False),
    "union of name and uid": (b"dave:100000:500\n23000:100500:500\n", Triple(0, 100000, 1000), True),
    "adjacent lines in any order": (b"dave:100500:500\ndave:100000:500\n", Triple(0, 100000, 1000), True),
    "lines that overlap": (b"dave:100000:500\ndave:100300:700\n", Triple(0, 100000, 1000), True),
    "across a gap": (b"dave:100000:499\ndave:100500:500\n", Triple(0, 100000, 1000), False),
    "a part of it": (b"dave:100000:1000\n", Triple(0, 100900, 100), True),
    "one id too many": (b"dave:100000:1000\n", Triple(0, 100000, 1001), False),
    "one id before": (b"dave:100000:1000\n", Triple(0, 99999, 10), False),
    "shared with another user": (b"erin:100000:1000\ndave:100000:1000\n", Triple(0, 100000, 1000), True),
    "another user's real uid": (b"dave:23007:1\n", Triple(0, 23007, 1), True),
    "root of the host": (b"dave:0:1000\n", Triple(0, 0, 1000), True),
    "0 ids from elsewhere are none": (b"dave:100000:0\n", Triple(0, 100000, 1), False),
    "own id without a line": (b"", Triple(0, UID, 1), True),
    "own id and the next": (b"", Triple(0, UID, 2), False),
    "up to the last id": (b"dave:4294967000:295\n", Triple(0, 4294967000, 294), True),
    "one beyond the last id": (b"dave:4294967000:300\n", Triple(0, 4294967000, 296), False),
    "no id at all": (b"dave:100000:1000\n", Triple(0, 100000, 0), False),
    "inside beyond the last id": (b"dave:100000:1000\n", Triple(4294967295, 100000, 1), False),
    "comments and blank lines": (b"# dave\n\n#dave:1:1\n\ndave:100000:1000\n", Triple(0, 100000, 1000), True),
    "in a comment": (b"#dave:100000:1000\n", Triple(0, 100000, 1000), False),
    "junk and unknown users": (b"junk\nnobody-here:1:2\n:1:2\ndave:100000:1000\n", Triple(0, 100000, 1000), True),
    "blank before the name": (b" dave:100000:1000\n", Triple(0, 100000, 1000), False),
    "blank after the name": (b"dave :100000:1000\n", Triple(0, 100000, 1000), False),
    "blanks before numbers": (b"dave: 100000:\t1000\n", Triple(0, 100000, 1000), True),
    "blank after a number": (b"dave:100000 :1000\n", Triple(0, 100000, 1000), False),
    "CR LF": (b"dave:100000:1000\r\n", Triple(0, 100000, 1000), False),
    "comment behind the numbers": (b"dave:100000:1000 # c\n", Triple(0, 100000, 1000), False),
    "other case": (b"Dave:100000:1000\n", Triple(0, 100000, 1000), False),
    "two fields": (b"dave:100000\n", Triple(0, 100000, 1), False),
    "no count": (b"dave:100000:\n", Triple(0, 100000, 1), False),
    "hexadecimal": (b"dave:0xF4240:0x3e8\n", Triple(0, 1000000, 1000), True),
    "hexadecimal without digits": (b"dave:0x:1000\n", Triple(0, 0, 1), False),
    "leading zero is octal": (b"dave:01000000:1000\n", Triple(0, 262144, 1000), True),
    "leading zero is not decimal": (b"dave:01000000:1000\n", Triple(0, 1000000, 1000), False),
    "no octal digit": (b"dave:0900:1000\n", Triple(0, 900, 1), False),
    "plus sign": (b"dave:+100000:+1000\n", Triple(0, 100000, 1000), True),
    "2^64": (b"dave:18446744073709551616:1000\n", Triple(0, 0, 1000), False),
    "2^64 ids": (b"dave:100000:18446744073709551615\n", Triple(0, 100000, 1), False),
    "NIS": (b"+dave:100000:1000\n", Triple(0, 100000, 1000), False),
    "line of 1023 bytes": (b"dave:100000:%01011d\n" % 0o1000, Triple(0, 100000, 10), True),
    "line of 1024 bytes": (b"dave:100000:%01012d\n" % 0o1000, Triple(0, 100000, 10), False),
    "long line before": (b"#" * 9000 + b"\ndave:100000:1000\n", Triple(0, 100000, 1000), True),
    "NUL byte in the last line": (b"dave:100000:1000\nx\x00\n", Triple(0, 100000, 1000), False),
    "last line fills the buffer": (b"dave:100000:1000\n" + b"x" * 4095, Triple(0, 100000, 1000), False),
    "last line fills it but one": (b"dave:100000:1000\n" + b"x" * 4094 + b"\n", Triple(0, 100000, 1000), True),
}

# what depends on the version: the answer of 4.13, of 4.17 and of 4.20
CHANGED: dict[str, tuple[bytes, Triple, tuple[bool, bool, bool]]] = {
    "no final newline": (b"dave:100000:1000", Triple(0, 100000, 1000), (True, True, False)),
    "no newline after a comment": (b"dave:100000:1000\n#", Triple(0, UID, 1), (True, True, False)),
    "NUL byte joins two lines": (b"dave:100\x00 gone\n000:1000\n", Triple(0, 100000, 1000), (True, True, False)),
    "NUL byte in a comment": (b"dave:100000:1000\n#\x00\n\n", Triple(0, 100000, 1000), (True, True, False)),
    "four fields": (b"dave:100000:1000:x\n", Triple(0, 100000, 1000), (True, True, False)),
    "fourth field empty": (b"dave:100000:1000:\n", Triple(0, 100000, 1000), (True, True, False)),
    "by a name that is another number": (b"77:100000:1000\n", Triple(0, 100000, 1000), (True, True, False)),
    "uid with a leading zero": (b"023000:100000:1000\n", Triple(0, 100000, 1000), (False, False, True)),
    "uid behind a blank": (b"\t 23000:100000:1000\n", Triple(0, 100000, 1000), (False, False, True)),
    "uid with a sign": (b" +23000:100000:1000\n", Triple(0, 100000, 1000), (False, False, True)),
    "uid with a minus": (b" -23000:100000:1000\n", Triple(0, 100000, 1000), (False, False, False)),
    "uid in hexadecimal": (b"0x59d8:100000:1000\n", Triple(0, 100000, 1000), (False, False, False)),
    "uid of more than 32 bits": (b"4294990296:100000:1000\n", Triple(0, 100000, 1000), (False, False, False)),
    "0 ids from 0 are all ids": (b"dave:0:0\n", Triple(0, 0, 4294967294), (True, True, False)),
    "2^32 ids": (b"dave:0:4294967296\n", Triple(0, 100000, 1000), (True, True, False)),
    "2^32 - 1 ids": (b"dave:1:4294967295\n", Triple(0, 100000, 1000), (True, True, True)),
    "the last of them is 2^32": (b"dave:2:4294967295\n", Triple(0, 100000, 1000), (True, True, False)),
    "2^63 ids": (b"dave:100000:9223372036854775808\n", Triple(0, 100000, 1000), (True, True, False)),
    "binary": (b"dave:0b1100100:0b1010\n", Triple(0, 100, 10), (False, True, True)),
    "minus": (b"dave:-10:20\n", Triple(0, 0, 5), (False, False, False)),
    "minus as a count": (b"dave:100000:-100\n", Triple(0, 100000, 1), (False, False, False)),
    "huge by minus": (b"dave:10:-100\n", Triple(0, 100000, 1), (True, False, False)),
}


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_the_matrix(machine: Machine, kind: Kind, name: str) -> None:
    data, triple, allowed = MATRIX[name]
    if name.startswith("own id") and kind == "gid":
        triple = triple._replace(lower=GID)
    machine.write(data, kind)
    assert machine.agree([triple], kind).allowed is allowed


@pytest.mark.parametrize("name", CHANGED)
def test_what_the_versions_read_differently(machine: Machine, name: str) -> None:
    data, triple, answers = CHANGED[name]
    machine.write(data)
    versions = [DEBIAN_12, DEBIAN_13, UNSTABLE]
    ours = max(version for version in versions if version <= machine.version)
    assert machine.agree([triple]).allowed is answers[versions.index(ours)]
    for version, answer in zip(versions, answers, strict=True):
        try:
            lines: list[Line] | RefusedFileError = list(read_lines(BytesIO(data), version))
        except RefusedFileError as err:
            lines = err
        assert predict([triple], lines, DAVE, version=version, uid_of=USERS.get).allowed is answer


def test_a_file_that_is_missing_a_link_or_a_directory_is_refused(machine: Machine, tmp_path: Path) -> None:
    path = FILES["uid"]
    good = tmp_path / "subuid"
    good.write_text("dave:100000:1000\n")
    changes: list[Callable[[], None]] = [lambda: None, lambda: path.symlink_to(good), path.mkdir]
    for change in changes:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        change()
        verdict = machine.predict([Triple(0, 100000, 1000)])
        assert verdict.reason is Reason.REFUSED_FILE, verdict
        assert machine.ask([Triple(0, 100000, 1000)])[0] == 1
    path.rmdir()
    path.touch()
    path.chmod(0o600)  # root's program reads it; getsubids(1) and Podman cannot
    machine.write(b"dave:100000:1000\n")
    assert machine.agree([Triple(0, 100000, 1000)]).allowed
    path.chmod(0o644)


def test_another_group_of_the_process(machine: Machine) -> None:
    machine.write(b"dave:100000:1000\n")
    other = Caller("dave", UID, GID, process_gid=12345)
    verdict = machine.predict([Triple(0, 100000, 1000)], caller=other)
    code, text = machine.ask([Triple(0, 100000, 1000)], group=12345)
    assert (verdict.allowed, code) == (False, 1)
    assert verdict.reason.value in text


def test_maps_the_kernel_refuses(machine: Machine) -> None:
    machine.write(b"dave:0:4000000000\n")
    assert machine.agree([Triple(i, 2 * i, 1) for i in range(340)]).allowed
    assert machine.agree([Triple(i, 2 * i, 1) for i in range(341)]).reason is Reason.KERNEL_INVALID
    long = [Triple(1000 + 2 * i, 3000000000 + i, 1) for i in range(300)]
    fits = next(n for n in range(300, 0, -1) if machine.predict(long[:n]).allowed)
    assert machine.agree(long[:fits]).allowed
    assert machine.agree(long[: fits + 1]).reason is Reason.KERNEL_INVALID
    assert machine.agree([Triple(0, 100, 10), Triple(10, 109, 10)]).reason is Reason.KERNEL_INVALID
    assert machine.agree([Triple(0, 100, 10), Triple(9, 200, 10)]).reason is Reason.KERNEL_INVALID


def test_setgroups_is_denied_where_no_range_is_used(machine: Machine) -> None:
    for data, triples, word in (
        (b"", [Triple(0, GID, 1)], "deny"),
        (b"dave:100000:1000\n", [Triple(0, GID, 1), Triple(1, 100000, 1000)], "allow"),
        (b"dave:23001:1\n", [Triple(0, GID, 1)], "allow"),
    ):
        machine.write(data, "gid")
        verdict = machine.predict(triples, "gid")
        target = machine.target
        machine.renew = lambda: None  # type: ignore[method-assign] # its setgroups file is read first
        try:
            assert machine.ask(triples, "gid")[0] == 0
            assert target.read("setgroups").strip() == word == ("allow" if verdict.setgroups else "deny")
        finally:
            del machine.renew
            machine.renew()


def test_1000_random_files(machine: Machine) -> None:
    seen: dict[tuple[str, str], int] = {}
    for seed in range(1000):
        source = random.Random(seed)
        data = random_file(source)
        for kind in FILES:
            machine.write(data, kind)
            for triples in random_requests(source, machine.lines(kind)):
                reason = machine.agree(triples, kind).reason
                seen[kind, reason.name] = seen.get((kind, reason.name), 0) + 1
    # no answer is rare: a predictor that always says no would not do
    for kind in FILES:
        assert min(seen[kind, "WRITTEN"], seen[kind, "NOT_ALLOWED"]) > 400, seen
        assert min(seen[kind, "REFUSED_FILE"], seen[kind, "OVERFLOW"], seen[kind, "KERNEL_INVALID"]) > 20, seen


OWNERS = (
    ["dave"] * 8
    + ["23000"] * 3
    + ["david", "77", "erin", "root", "0", " dave", "dave ", "023000", " 23000", " +23000", "Dave", "", "+dave"]
)


def random_number(source: random.Random, *, count: bool) -> str:
    small = [0, 1, 2, 5, 10, 100, 1000, 65536]
    places = [*small, 65535, 100000, 100010, 100100, 2**31 - 1, 2**31, 2**32 - 1000, 2**32 - 2, 2**32 - 1, 2**32, 2**63]
    value = source.choice(small if count and source.random() < 0.8 else places) + source.choice([0, 0, 0, 1, 7])
    form = source.choice(
        ["{}"] * 12 + ["0x{:x}", "0X{:X}", "0{:o}", "0b{:b}", "-{}", "+{}", " {}", "{} ", "0{}", "{}x", "\t{}"]
    )
    return source.choice([form.format(value)] * 30 + ["", "0x", "18446744073709551615", "-1", "99999999999999999999"])


def random_line(source: random.Random) -> bytes:
    fields = [source.choice(OWNERS), random_number(source, count=False), random_number(source, count=True)]
    if source.random() < 0.05:
        fields = fields[:2] if source.random() < 0.5 else [*fields, source.choice(["", "x"])]
    line = ":".join(fields).encode() + source.choice([b"\n"] * 20 + [b"\r\n", b" # c\n", b"\n\n", b"\x00\n"])
    return source.choice(
        [line] * 25 + [b"# a comment\n", b"\xff\xfe:1:2\n", b"#" * source.randrange(4090, 4100) + b"\n"]
    )


def random_file(source: random.Random) -> bytes:
    data = b"".join(random_line(source) for _ in range(source.randrange(1, 12)))
    return data.rstrip(b"\n") if source.random() < 0.1 else data


def random_requests(source: random.Random, lines: list[Line] | RefusedFileError) -> Iterator[list[Triple]]:
    """Ask for what lines give, often dave's, for a little less or more, or for two that meet."""
    known = lines if isinstance(lines, list) and lines else [Line(1, "dave", 100000, 1000)]
    own = [line for line in known if line.owner in USERS or line.owner == str(UID)] or known
    for _ in range(3):
        triples, inside = [], 0
        for line in source.choices(own if source.random() < 0.8 else known, k=source.choice([1, 1, 1, 2, 3])):
            first = max(0, line.start % 2**32 + source.choice([0] * 6 + [1, -1]))
            room = 2**32 - 1 - max(first, inside) + source.choice([0] * 15 + [1])
            size = line.count + source.choice([0] * 6 + [-1, 1])
            triple = Triple(inside, first, max(source.choice([0] + [1] * 9), min(size, room)))
            triples.append(source.choice([triple] * 9 + [Triple(inside, UID, 1), Triple(inside, first, 1)]))
            inside = max(0, inside + triples[-1].count - source.choice([0] * 25 + [1]))
        yield triples


PODMAN = {
    "by name and by uid": b"alice:300000:1000\n2001:100000:65536\n",
    "by uid": b"2001:100000:65536\n",
    "somebody else beside": b"bob:1:1\nalice:100000:65536\n",
    "octal": b"alice:01000000:65536\n",
    "no range": b"bob:100000:65536\n",
}


@pytest.mark.needs_fuse
@pytest.mark.needs_podman
@pytest.mark.parametrize("name", PODMAN)
def test_podman_maps_what_we_say(machine: Machine, make_node: Callable[..., Node], alice: User, name: str) -> None:
    assert (alice.name, alice.uid) == ("alice", 2001)
    for kind in FILES:
        machine.write(PODMAN[name], kind)
    ranges = podman_ranges(
        read_file("/etc/subuid", machine.version),
        "alice",
        "uid",
        version=machine.version,
        uid_of={"alice": 2001}.get,
        gid_of={"alice": 2001}.get,
    )
    expected = [tuple(triple) for triple in podman_map(ranges, alice.uid)]
    done = make_node(alice).podman("unshare", "cat", "/proc/self/uid_map")
    assert [tuple(map(int, line.split())) for line in done.ok().splitlines()] == expected


@pytest.mark.needs_fuse
@pytest.mark.needs_podman
def test_podman_stops_where_we_say(machine: Machine, make_node: Callable[..., Node], alice: User) -> None:
    for kind in FILES:
        machine.write(b"alice:1990:65536\n", kind)
    lines = read_file("/etc/subuid", machine.version)
    with pytest.raises(ValueError, match="includes the user's own id 2001"):
        podman_map(lines, alice.uid)
    assert "includes the user UID" in make_node(alice).podman("unshare", "true").err
    for kind in FILES:
        machine.write(b"alice:100000:65536\nalice:100000:65536\n", kind)
    triples = podman_map(read_file("/etc/subuid", machine.version), alice.uid)
    alice_calls = Caller("alice", alice.uid, alice.gid)
    assert machine.predict(triples, caller=alice_calls).reason is Reason.KERNEL_INVALID
    done = make_node(alice).podman("unshare", "true")
    assert re.search(r"write to [ug]id_map failed: Invalid argument", done.err), done


@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_libsubid_lists_the_ranges_we_say(machine: Machine, kind: Kind) -> None:
    """Podman asks libsubid for the name, and for the uid where that gives nothing."""
    groups = {"dave": GID}
    owners = ["dave", "23000", "023000", " 23000", "david", str(GID), "77", "erin", "23007", "nobody-here"]
    every_owner = "".join(f"{owner}:{number}000:1\n" for number, owner in enumerate(owners, 1)).encode()
    listed = 0
    for data in [every_owner, *(random_file(random.Random(seed)) for seed in range(200))]:
        machine.write(data, kind)
        lines = machine.lines(kind)
        for name, uid in USERS.items():
            found = [] if isinstance(lines, RefusedFileError) else lines
            ours = podman_ranges(found, name, kind, version=machine.version, uid_of=USERS.get, gid_of=groups.get)
            said = libsubid.ranges_of((name, str(uid)), kind)
            assert sorted((line.start, line.count) for line in ours) == said, (name, data)
            listed += len(said)
    assert listed > 200
