"""The FUSE engine without a kernel: a socket pair stands in for /dev/fuse, the test speaks the kernel's part."""

import errno
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from squash_images import image_of, mksquash, noise

from squashmount.errors import DamagedError
from squashmount.server import wire
from squashmount.server.tree import ROOT, Attr, Name, Shown, Tree, Usage
from squashmount.squashfs.directories import Segment
from squashmount.squashfs.image import SquashImage

IN = struct.Struct("=IIQQIIIHH")
ATTR = struct.Struct("=6Q10I")
ENTRY = struct.Struct("=4Q2I6Q10I")
KERNEL_6 = 0x73FFFFFB


class Kernel:
    """One request after another over a SEQPACKET pair: a message is a message, as on /dev/fuse."""

    def __init__(self, tree: Any, *, threads: int = 1, log: Callable[[str], None] | None = None) -> None:
        self.end, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.end, server):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.end.settimeout(20)
        self.stats = wire.Stats()
        self.log: list[str] = []
        self.unique = 0
        self._server = server
        self.thread = threading.Thread(
            target=wire.serve,
            args=(server.fileno(), tree),
            kwargs={"threads": threads, "stats": self.stats, "log": log or self.log.append},
            daemon=True,
        )
        self.thread.start()

    def send(self, opcode: int, node: int, body: bytes = b"") -> int:
        self.unique += 2
        self.end.send(IN.pack(IN.size + len(body), opcode, self.unique, node, 0, 0, 0, 0, 0) + body)
        return self.unique

    def receive(self) -> tuple[int, int, bytes]:
        data = self.end.recv(8 << 20)
        size, error, unique = struct.unpack_from("=IiQ", data)
        assert size == len(data)
        return unique, -error, data[16:]

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        sent = self.send(opcode, node, body)
        unique, error, payload = self.receive()
        assert unique == sent
        return error, payload

    def init(self, *, minor: int = 44, flags: int = KERNEL_6, flags2: int = 0xFF) -> tuple[Any, ...]:
        body = struct.pack("=5I", 7, minor, 131072, flags, flags2) + bytes(44)
        error, payload = self.ask(26, 0, body if flags & 1 << 30 else body[:16])
        assert error == 0
        assert len(payload) == 64
        return struct.unpack("=4I2H2I2HI28x", payload)

    def close(self) -> None:
        # A message too short to be a request ends the loop, as the end of the connection does.
        self.end.close()
        self.thread.join(10)
        self._server.close()
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def squash(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("wire")
    (top / "t/many").mkdir(parents=True)
    for number in range(2000):
        (top / f"t/many/{number:05}").touch()
    (top / "t/data").write_bytes(noise(1_500_000))
    (top / "t/link").symlink_to("data")
    os.setxattr(top / "t/data", "user.a", b"12345")
    return mksquash(top / "t", top / "i", "-comp", "lz4")


@pytest.fixture
def kernel(squash: str) -> Iterator[Kernel]:
    with SquashImage.open(squash) as image:
        found = Kernel(Tree(image))
        yield found
        found.close()


def node_of(kernel: Kernel, name: bytes, parent: int = ROOT) -> int:
    error, payload = kernel.ask(1, parent, name + b"\0")
    assert error == 0
    return int(ENTRY.unpack(payload)[0])


def read_in(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


def names_in(payload: bytes, *, plus: bool) -> list[tuple[bytes, int, int, int]]:
    """Return (name, cookie, ino, node) of each record."""
    found, at = [], 0
    while at < len(payload):
        node = struct.unpack_from("=Q", payload, at)[0] if plus else 0
        base = at + 128 * plus
        ino, cookie, length, _kind = struct.unpack_from("=QQII", payload, base)
        found.append((payload[base + 24 : base + 24 + length], cookie, ino, node))
        at = base + (24 + length + 7) // 8 * 8
    assert at == len(payload)
    return found


def test_negotiation_with_a_new_kernel(kernel: Kernel) -> None:
    major, minor, readahead, flags, background, congestion, max_write, gran, pages, _, flags2 = kernel.init()
    assert (major, minor, readahead, gran) == (7, 40, 131072, 1)
    assert flags & 1 << 13
    assert not flags & 1 << 14  # READDIRPLUS always, not when the kernel guesses
    assert flags & 1 << 17
    assert flags & 1 << 24
    assert flags & 1 << 30
    assert flags2 == 1 << 7  # resend
    assert not flags & (1 << 16 | 1 << 20)  # no writeback cache, no ACLs
    assert pages == 256
    assert background >= congestion > 64
    assert max_write + 4096 <= wire._REQUEST_BYTES


def test_negotiation_with_linux_4_18(kernel: Kernel) -> None:
    """Protocol 7.27: no MAX_PAGES, no NO_OPENDIR_SUPPORT, a body of 16 bytes."""
    found = kernel.init(minor=27, flags=0x003FFFFB)
    assert found[1] == 27
    assert (found[8], found[10]) == (0, 0)
    assert found[3] & ~0x003FFFFB == 0
    assert kernel.ask(14, node_of(kernel, b"data"), bytes(8))[0] == errno.ENOSYS
    error, payload = kernel.ask(27, ROOT, bytes(8))
    assert error == 0
    assert struct.unpack("=QII", payload)[1] == 1 << 1 | 1 << 3


def test_negotiation_with_impossible_kernels(kernel: Kernel) -> None:
    error, payload = kernel.ask(26, 0, struct.pack("=4I", 8, 1, 0, 0))
    assert (error, struct.unpack_from("=2I", payload)) == (0, (7, 40))
    assert kernel.ask(26, 0, struct.pack("=4I", 7, 20, 0, 0))[0] == errno.EPROTO
    kernel.init()


def test_open_is_answered_for_real_until_zero_message_open_is_negotiated(kernel: Kernel) -> None:
    """A server that took over from a dead one has not seen INIT."""
    node = node_of(kernel, b"data")
    assert kernel.ask(14, node, struct.pack("=2I", os.O_RDONLY, 0)) == (0, struct.pack("=QII", 0, 1 << 1, 0))
    assert kernel.ask(14, node, struct.pack("=2I", os.O_RDWR, 0))[0] == errno.EROFS
    kernel.init()
    assert kernel.ask(14, node, struct.pack("=2I", os.O_RDONLY, 0))[0] == errno.ENOSYS
    assert kernel.ask(27, ROOT, bytes(8))[0] == errno.ENOSYS


def test_lookup_and_getattr(kernel: Kernel) -> None:
    kernel.init()
    error, payload = kernel.ask(1, ROOT, b"data\0")
    assert error == 0
    entry = ENTRY.unpack(payload)
    node, _, entry_valid, attr_valid, *_ = entry
    assert entry_valid == attr_valid == 365 * 86400
    assert entry[7] == 1_500_000
    assert stat.S_ISREG(entry[15])
    error, payload = kernel.ask(3, node, bytes(16))
    assert struct.unpack_from("=QII", payload) == (365 * 86400, 0, 0)
    assert ATTR.unpack_from(payload, 16) == entry[6:]


def test_absent_names_are_remembered(kernel: Kernel) -> None:
    error, payload = kernel.ask(1, ROOT, b"nothing\0")
    assert error == 0
    assert ENTRY.unpack(payload)[:3] == (0, 0, 365 * 86400)


@pytest.mark.parametrize(("opcode", "plus"), [(28, False), (44, True)])
@pytest.mark.parametrize("size", [4096, 65536])
def test_listings_page_by_page(kernel: Kernel, opcode: int, plus: bool, size: int) -> None:
    folder = node_of(kernel, b"many")
    names: list[bytes] = []
    cookie = requests = 0
    while True:
        error, payload = kernel.ask(opcode, folder, read_in(cookie, size))
        assert error == 0
        assert len(payload) <= size
        part = names_in(payload, plus=plus)
        if not part:
            break
        requests += 1
        names += [record[0] for record in part]
        cookie = part[-1][1]
        if plus:
            assert all(node == (node_of(kernel, name, folder)) for name, _, _, node in part[2:4])
    assert names == [b".", b"..", *(b"%05d" % number for number in range(2000))]
    assert (requests > 1) == (plus or size == 4096)


def test_a_listing_into_too_little_room_is_empty(kernel: Kernel) -> None:
    assert kernel.ask(44, ROOT, read_in(0, 100)) == (0, b"")


def test_reading(kernel: Kernel) -> None:
    node, data = node_of(kernel, b"data"), noise(1_500_000)
    for offset, size in ((0, 4096), (0, 1 << 20), (131_000, 300_000), (1_499_999, 4096), (1_500_000, 1), (2**62, 9)):
        assert kernel.ask(15, node, read_in(offset, size)) == (0, data[offset : offset + size])
    counts = kernel.stats.snapshot()
    assert counts["read"] == 6
    assert counts["bytes_read"] == 4096 + (1 << 20) + 300_000 + 1
    assert 9 <= counts["cache_misses"] + counts["cache_ahead"] <= 12
    assert kernel.ask(15, ROOT, read_in(0, 1))[0] == errno.EISDIR
    assert kernel.ask(5, node_of(kernel, b"link")) == (0, b"data")
    assert kernel.ask(5, node)[0] == errno.EINVAL


def test_xattrs(kernel: Kernel) -> None:
    node = node_of(kernel, b"data")

    def get(name: bytes, room: int) -> tuple[int, bytes]:
        return kernel.ask(22, node, struct.pack("=II", room, 0) + name + b"\0")

    assert get(b"user.a", 0) == (0, struct.pack("=II", 5, 0))
    assert get(b"user.a", 5) == (0, b"12345")
    assert get(b"user.a", 4)[0] == errno.ERANGE
    assert get(b"user.b", 0)[0] == errno.ENODATA
    assert kernel.ask(23, node, struct.pack("=II", 0, 0)) == (0, struct.pack("=II", 7, 0))
    assert kernel.ask(23, node, struct.pack("=II", 7, 0)) == (0, b"user.a\0")
    assert kernel.ask(23, node, struct.pack("=II", 6, 0))[0] == errno.ERANGE
    assert kernel.ask(23, ROOT, struct.pack("=II", 0, 0)) == (0, struct.pack("=II", 0, 0))


def test_an_image_without_xattrs_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with SquashImage.open(mksquash(tmp_path / "t", tmp_path / "i", "-no-xattrs")) as image:
        kernel = Kernel(Tree(image))
        assert kernel.ask(22, ROOT, bytes(8) + b"user.a\0")[0] == errno.ENOSYS
        assert kernel.ask(23, ROOT, bytes(8))[0] == errno.ENOSYS
        kernel.close()


def test_statfs(kernel: Kernel) -> None:
    error, payload = kernel.ask(17, ROOT)
    assert error == 0
    blocks, free, available, files, _, size, names, fragment = struct.unpack_from("=5Q3I", payload)
    assert len(payload) == 80
    assert (free, available, files, size, names, fragment) == (0, 0, 2004, 131072, 255, 131072)
    assert blocks > 10


@pytest.mark.parametrize("opcode", sorted(wire._WRITES))
def test_every_change_is_refused(kernel: Kernel, opcode: int) -> None:
    assert kernel.ask(opcode, ROOT, bytes(128))[0] == errno.EROFS


@pytest.mark.parametrize("opcode", [20, 25, 30, 31, 34, 36, 37, 40, 46, 47, 48, 50, 52, 63, 64, 4096, 436207616])
def test_what_we_do_not_do_is_answered_with_enosys(kernel: Kernel, opcode: int) -> None:
    assert kernel.ask(opcode, ROOT, bytes(64))[0] == errno.ENOSYS


def test_forget_is_not_answered(kernel: Kernel) -> None:
    kernel.send(2, 77, bytes(8))
    kernel.send(42, 0, bytes(8 + 16 * 3000))
    kernel.send(41, 0, bytes(8))
    assert kernel.ask(39, ROOT, bytes(32))[0] == errno.ENOTTY  # the next reply is to the next request
    assert kernel.ask(38, 0) == (0, b"")
    counts = kernel.stats.snapshot()
    assert (counts["forget"], counts["batch_forget"], counts["destroy"]) == (1, 1, 1)


def test_every_malformed_request_is_answered(kernel: Kernel) -> None:
    for opcode in (1, 3, 5, 14, 15, 17, 22, 23, 26, 27, 28, 29, 44):
        for node in (0, 1, 2, 99, 1 << 63, (1 << 64) - 1):
            for body in (b"", b"\0", b"\xff" * 7, b"\xff" * 64):
                kernel.ask(opcode, node, body)
    assert kernel.stats.snapshot()["errors"] > 50
    assert len(kernel.log) <= 101  # bounded
    assert node_of(kernel, b"data") > 1


class Strange:
    """A tree with one exabyte file (node 2), one that fails in every way, and a slow one (node 9)."""

    image = image_of((Path(__file__).parent / "corpus/plain.squashfs").read_bytes())  # without a listing index
    has_xattrs = False
    uids = gids = Shown(lambda inside: inside)
    SIZE = 2**63 - 1

    def __init__(self) -> None:
        self.go = threading.Event()
        self.failures: dict[int, BaseException] = {
            3: DamagedError("bad block", details="at 7"),
            4: RuntimeError("a bug"),
            5: MemoryError(),
            6: OSError(errno.EREMOTEIO, "the file server is gone"),
            7: RecursionError(),
        }

    @staticmethod
    def cache_counts() -> dict[str, int]:
        return {}

    def attr(self, node: int) -> Attr:
        if node in self.failures:
            raise self.failures[node]
        return Attr(node, self.SIZE, self.SIZE >> 9, 4_294_967_295, stat.S_IFREG | 0o644, 1, 0, 0, 0)

    def read(self, node: int, offset: int, size: int) -> list[bytes]:
        if node in self.failures:
            raise self.failures[node]
        if node == 9:
            assert self.go.wait(10)
        return [struct.pack("=Q", offset), b"." * (min(size, self.SIZE - offset) - 8)]

    def readdir(self, _node: int, _cookie: int) -> Iterator[Name]:
        yield Name(b".", 1, 101, stat.S_IFDIR, 0)
        yield Name(b"..", 2, 101, stat.S_IFDIR, 0)

    def segments(self, _node: int, _cookie: int) -> Iterator[tuple[int, int, Segment]]:
        numbers = [2, 3, 6, 8]
        names = [b"n%d" % number for number in numbers]
        refs, inodes = [number - 2 for number in numbers], [100 + number for number in numbers]
        yield 0, 1, Segment(b"", numbers, names, refs, inodes, [2] * 4)

    def statuses(self, segment: Segment) -> Iterator[tuple[int, ...] | Exception]:
        for ref, number in zip(segment.refs, segment.numbers, strict=True):
            error = self.failures.get(ref + 2)
            yield error if isinstance(error, Exception) else (stat.S_IFREG | 0o644, 7, 8, 0, number, 1, 0, 0)

    @staticmethod
    def usage() -> Usage:
        return Usage(4096, 1, 1, 255)


def test_offsets_near_the_end_of_an_exabyte_file() -> None:
    kernel = Kernel(Strange())
    _, payload = kernel.ask(3, 2, bytes(16))
    attr = ATTR.unpack_from(payload, 16)
    assert (attr[1], attr[4]) == (2**63 - 1, 4_294_967_295)
    offset = 2**63 - 1 - 100
    error, payload = kernel.ask(15, 2, read_in(offset, 4096))
    assert (error, len(payload), payload[:8]) == (0, 100, struct.pack("=Q", offset))
    kernel.close()


def test_whatever_happens_the_answer_is_eio() -> None:
    kernel = Kernel(Strange())
    for node in (3, 4, 5, 6, 7):
        assert kernel.ask(15, node, read_in(0, 10)) == (errno.EIO, b"")
        assert kernel.ask(3, node, bytes(16)) == (errno.EIO, b"")
    assert kernel.stats.snapshot()["errors"] == 10
    assert any("bad block" in line and "read of node 3" in line for line in kernel.log)
    assert any("RuntimeError: a bug" in line for line in kernel.log)
    kernel.close()


def test_a_damaged_inode_does_not_hide_its_neighbours() -> None:
    kernel = Kernel(Strange())
    error, payload = kernel.ask(44, ROOT, read_in(0, 65536))
    assert error == 0
    found = [(name, node) for name, _, _, node in names_in(payload, plus=True)]
    assert found == [(b".", 0), (b"..", 0), (b"n2", 2), (b"n3", 0), (b"n6", 0), (b"n8", 8)]
    assert any("reading b'n3' in node 1" in line for line in kernel.log)
    # resumed behind the second one: sliced from what is encoded already
    _, rest = kernel.ask(44, ROOT, read_in(names_in(payload, plus=True)[3][1], 65536))
    assert [name for name, *_ in names_in(rest, plus=True)] == [b"n6", b"n8"]
    assert len(kernel.log) == 2
    kernel.close()


def test_a_slow_request_does_not_hold_up_others() -> None:
    tree = Strange()
    kernel = Kernel(tree, threads=2)
    slow = kernel.send(15, 9, read_in(0, 100))
    assert kernel.ask(3, 2, bytes(16))[0] == 0
    tree.go.set()
    assert kernel.receive()[0] == slow
    kernel.end.shutdown(socket.SHUT_RDWR)
    kernel.close()


def test_a_log_that_cannot_be_written_is_no_reason_to_be_silent() -> None:
    def full(_line: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    kernel = Kernel(Strange(), log=full)
    assert kernel.ask(15, 3, read_in(0, 10))[0] == errno.EIO
    kernel.close()


def test_it_ends_when_the_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([errno.ENOENT, errno.EINTR, errno.ENOENT, errno.ENODEV])

    def readv(_fd: int, _buffers: object) -> int:
        raise OSError(next(answers), "read")

    monkeypatch.setattr(wire.os, "readv", readv)
    log: list[str] = []
    started = time.monotonic()
    wire.serve(-1, Strange(), threads=1, stats=wire.Stats(), log=log.append)  # type: ignore[arg-type]
    assert not log
    assert not list(answers)
    assert time.monotonic() - started < 5
