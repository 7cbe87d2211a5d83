"""Profiles as text, as recorded from requests, and as replayed: no kernel, a directory stands in for the mount."""

import json
import os
import struct
from pathlib import Path

import pytest
from squash_images import mksquash, noise

from squashmount.errors import StoreError
from squashmount.profile import ABSENT, FILE, LINK, LIST, MAX_BYTES, STAT, Need, Profile, merged, parse, squash_id
from squashmount.server import recording
from squashmount.server.prefetch import Hot
from squashmount.server.recording import LOOKUP, READ, READDIRPLUS, READLINK, Recorder
from squashmount.server.replay import Replay
from squashmount.server.tree import ROOT, Tree
from squashmount.server.wire import Request
from squashmount.squashfs.image import SquashImage

ODD = bytes(value for value in range(1, 256) if value != ord("/"))[:200]


def test_what_is_written_is_read() -> None:
    one = Profile(
        (b"", b"usr/lib", b"odd/" + ODD),
        (Need(0, LIST), Need(1, FILE, b"caf\xe9", (0, 4096, 8192, 8193)), Need(2, ABSENT, ODD), Need(1, LINK, b"so")),
        "abc",
        ((4096, 100), (0, 96)),
        "2026-01-02T03:04:05Z",
    )
    text = one.to_json()
    assert text.isascii()
    assert parse(text.encode(), where="x") == one
    assert one.files() == [b"usr/lib/caf\xe9"]
    assert one.file_bytes() == 4097


def changed(**members: object) -> bytes:
    good: dict[str, object] = {"format": 1, "directories": ["", "a"], "needs": [[1, "f", "b", 0, 9]], "extents": []}
    return json.dumps(good | members).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        b"[" * 1_000_000,
        b"{" + b" " * MAX_BYTES + b"}",
        changed(format=2),
        changed(format=True),
        changed(directories=["a/../b"]),
        changed(directories=["..", ""]),
        changed(directories=["/etc", ""]),
        changed(directories=["a//b", ""]),
        changed(directories=["", "a" * 256]),
        changed(directories=["", "/".join("a" * 4000)]),
        changed(directories=["", "\ud800"]),
        changed(directories=["", 7]),
        changed(directories=["", "nul\0"]),
        changed(needs=7),
        changed(needs=[7]),
        changed(needs=[[0, "f"]]),
        changed(needs=[[2, "f", "b"]]),
        changed(needs=[[-1, "f", "b"]]),
        changed(needs=[[0, "x", "b"]]),
        changed(needs=[[0, ["f"], "b"]]),
        changed(needs=[[0, "f", ".."]]),
        changed(needs=[[0, "f", "b/c"]]),
        changed(needs=[[0, "f", ""]]),
        changed(needs=[[0, "f", "b", 0]]),
        changed(needs=[[0, "f", "b", 9, 0]]),
        changed(needs=[[0, "f", "b", 0, 1 << 63]]),
        changed(needs=[[0, "f", "b", 0, 1.5]]),
        changed(needs=[[0, "s", "b"]] * 50_001),
        changed(extents=[[1]]),
        changed(extents=[[0, -1]]),
        changed(extents={"a": 1}),
        changed(squash=7),
    ],
)
def test_what_no_server_wrote_is_refused(data: bytes) -> None:
    assert parse(changed(), where="x").files() == [b"a/b"]
    with pytest.raises(StoreError):
        parse(data, where="x")


def test_merged_ranges() -> None:
    assert merged([(5, 6), (0, 2), (2, 3), (1, 2)]) == [(0, 3), (5, 6)]
    assert merged([(5, 6), (0, 2)], gap=3) == [(0, 6)]


@pytest.fixture(scope="module")
def squash(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("profile")
    for name in ("lib/deep", "few", "many"):
        (top / "t" / name).mkdir(parents=True)
    for number in range(200):
        (top / f"t/many/{number:03}").write_bytes(noise(5000 + number))
    for number in range(10):
        (top / f"t/few/{number}").write_bytes(noise(100 + number))
    (top / "t/lib/deep/big").write_bytes(noise(600_000))
    (top / "t/lib/link").symlink_to("deep/big")
    return mksquash(top / "t", top / "i", "-comp", "zstd", "-no-fragments")


class Client:
    """Sends requests to a recorder as the kernel would send them to the server."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.recorder = Recorder()

    def send(self, opcode: int, node: int, body: bytes = b"") -> None:
        self.recorder(Request(opcode, 2, node, memoryview(body)))

    def lookup(self, parent: int, name: bytes) -> int:
        self.send(LOOKUP, parent, name + b"\0")
        return self.tree.lookup(parent, name)[0]

    def read(self, node: int, offset: int, size: int) -> None:
        self.send(READ, node, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0))

    def profile(self) -> Profile:
        return parse(self.recorder.profile(self.tree, recorded="now").to_json().encode(), where="x")


def test_requests_become_the_fewest_needs_in_their_order(squash: str) -> None:
    with SquashImage.open(squash) as image:
        client = Client(Tree(image))
        lib = client.lookup(ROOT, b"lib")
        deep = client.lookup(lib, b"deep")
        big = client.lookup(deep, b"big")
        client.read(big, 131072, 131072)
        client.send(LOOKUP, lib, b"absent\0")
        client.send(READLINK, client.lookup(lib, b"link"))
        few = client.lookup(ROOT, b"few")
        for number in (3, 1, 2, 4):
            client.read(client.lookup(few, b"%d" % number), 0, 4096)
        many = client.lookup(ROOT, b"many")
        client.send(READDIRPLUS, many, struct.pack("=QQIIQII", 0, 0, 4096, 0, 0, 0, 0))
        seven = client.tree.lookup(many, b"007")[0]  # known from the listing, never looked up
        client.read(seven, 0, 131072)
        client.read(big, 0, 131072)
        one = client.profile()
        paths = [(need.kind, one.path(need), need.ranges) for need in one.needs]
        assert paths == [
            (FILE, b"lib/deep/big", (0, 262144)),
            (ABSENT, b"lib/absent", ()),
            (LINK, b"lib/link", ()),
            # four of ten names: one listing is less than four questions
            (LIST, b"few", ()),
            *((FILE, b"few/%d" % number, (0, 100 + number)) for number in (3, 1, 2, 4)),
            (LIST, b"many", ()),
            (FILE, b"many/007", (0, 5007)),
        ]
        assert one.squash == squash_id(image.fileno())


def test_a_name_that_was_only_looked_at(squash: str) -> None:
    with SquashImage.open(squash) as image:
        client = Client(Tree(image))
        client.lookup(client.lookup(ROOT, b"many"), b"100")
        client.send(LOOKUP, ROOT, b"..\0")
        client.read(12345, 0, 4096)  # found before the recording began
        one = client.profile()
        assert [(need.kind, one.path(need)) for need in one.needs] == [(STAT, b"many/100")]


def test_the_extents_are_where_the_needed_blocks_are(squash: str) -> None:
    with SquashImage.open(squash) as image, open(squash, "rb") as file:
        tree = Tree(image)
        inode = image.find(b"lib/deep/big")
        assert inode
        (where,) = image.extents(inode, 131072, 131072)
        file.seek(where[0])
        stored = file.read(where[1] - where[0])
        # noise does not compress: mksquashfs stores it as it is
        assert stored == bytes(image.read(inode, 131072, 131072))
        client = Client(tree)
        client.read(client.lookup(client.lookup(client.lookup(ROOT, b"lib"), b"deep"), b"big"), 131072, 131072)
        one = client.profile()
        assert any(start <= where[0] and where[1] <= start + size for start, size in one.extents)
        assert sum(size for _, size in one.extents) < 200_000


def test_a_recording_ends_after_its_time(squash: str) -> None:
    with SquashImage.open(squash) as image:
        recorder = Recorder(seconds=1e-9)
        recorder(Request(LOOKUP, 2, ROOT, memoryview(b"lib\0")))
        assert recorder.ended
        recorder(Request(LOOKUP, 2, ROOT, memoryview(b"few\0")))
        assert len(recorder.profile(Tree(image), recorded="").directories) <= 1


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    (tmp_path / "mount/a/b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(bytes(10_000))
    (tmp_path / "mount/a/b/file").write_bytes(bytes(300_000))
    (tmp_path / "mount/a/file").write_bytes(bytes(10_000))
    (tmp_path / "mount/out").symlink_to("../outside")
    (tmp_path / "mount/a/secret").symlink_to("../../outside/secret")
    os.mkfifo(tmp_path / "mount/a/fifo")
    return tmp_path / "mount"


def replayed(mount: Path, directories: tuple[bytes, ...], *needs: Need, budget: int = 1 << 30) -> dict[str, int]:
    root = os.open(mount, os.O_PATH | os.O_DIRECTORY)
    squash = os.open(__file__, os.O_RDONLY)
    try:
        replay = Replay(Hot(root, -1, squash), budget)
        replay.run(Profile(directories, needs, squash_id(squash), ((0, 1 << 62), (1 << 62, 5))))
    finally:
        os.close(root)
        os.close(squash)
    return replay.counts


def test_a_replay_meets_every_need(mount: Path) -> None:
    counts = replayed(
        mount,
        (b"", b"a", b"a/b"),
        Need(1, LIST),
        Need(2, FILE, b"file", (0, 4096, 8192, 1 << 40)),
        Need(1, FILE, b"file", (0, 10_000)),
        Need(1, LINK, b"secret"),
        Need(0, STAT, b"out"),
        Need(0, ABSENT, b"nothing"),
    )
    size = 300_000 - 4096 + 10_000
    assert counts | {"milliseconds": 0, "pauses": 0} == {
        "files": 2, "bytes": size, "listings": 1, "names": 4 + 2, "missing": 0, "milliseconds": 0, "pauses": 0,
    }  # fmt: skip


def test_nothing_outside_is_opened_and_nothing_holds_it_up(mount: Path) -> None:
    counts = replayed(
        mount,
        (b"out", b"a", b"a/file", b"none/x", b"a/b/" + b"/".join([b"d"] * 1500)),
        Need(0, FILE, b"secret", (0, 10_000)),
        Need(0, LIST),
        Need(0, STAT, b"secret"),
        Need(1, FILE, b"secret", (0, 10_000)),
        Need(1, FILE, b"fifo", (0, 10_000)),
        Need(1, LINK, b"file"),
        Need(2, LIST),
        Need(3, FILE, b"file", (0, 10_000)),
        Need(4, FILE, b"file", (0, 10_000)),
    )
    assert counts["bytes"] == counts["files"] == counts["names"] == 0


def test_the_budget_is_a_bound(mount: Path) -> None:
    counts = replayed(
        mount, (b"a", b"a/b"), Need(1, FILE, b"file", (0, 300_000)), Need(0, FILE, b"file", (0, 10_000)), budget=200_000
    )
    assert counts["bytes"] == 200_000
    assert counts["files"] == 1


def test_any_number_of_directories(mount: Path) -> None:
    for number in range(600):
        (mount / f"d{number}").mkdir()
        (mount / f"d{number}/f").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    counts = replayed(
        mount,
        tuple(b"d%d" % number for number in range(600)),
        *(Need(number, FILE, b"f", (0, 1)) for number in range(600)),
    )
    assert counts["files"] == 600
    assert len(os.listdir("/proc/self/fd")) - before <= 257


def test_it_gives_way_while_the_processors_are_wanted_but_not_for_ever(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: -10)
    counts = replayed(mount, (b"a",), Need(0, FILE, b"file", (0, 10_000)))
    assert counts["files"] == 1
    assert 200 <= counts["pauses"] <= 260
    assert counts["milliseconds"] >= 400


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to others")
@pytest.mark.parametrize("place", ["theirs/profiles/x.json", "link/x.json"])
def test_root_learns_nothing_into_what_is_not_his(tmp_path: Path, place: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 1000, 1000)
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.lchown(tmp_path / "link", 1000, 1000)
    with pytest.raises(PermissionError, match="somebody else"):
        recording._create(str(tmp_path / place), "{}")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".json"]
    recording._create(str(tmp_path / "mine/deep/x.json"), "{}")
    assert (tmp_path / "mine/deep/x.json").read_text() == "{}"
