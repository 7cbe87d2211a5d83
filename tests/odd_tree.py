"""Fill a directory with everything an image can hold that is easily lost. Runs as a build step inside the image."""

import os
import socket
import struct
import sys

top = os.fsencode(sys.argv[1])
os.makedirs(top)
os.chdir(top)


def put(name: bytes, data: bytes = b"x", mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    with open(name, "wb") as file:
        file.write(data)
    os.chown(name, *owner)
    os.chmod(name, mode)


for name in (
    b"a space",
    b"new\nline",
    b"col:on",
    b"com,ma",
    b'quo"te',
    b"back\\slash",
    b"\xff\xfe",
    b"\xe2\x82\xac",
    b"-dash",
    b"#hash",
    b"*?[",
    b"z" * 255,
):
    put(b"name " + name if len(name) < 200 else name, name)
put(b"setuid", mode=0o4755)
put(b"setgid", mode=0o2755, owner=(0, 42))
put(b"owned", owner=(1000, 2000))
put(b"high", owner=(65533, 65533))
put(b"unreadable", mode=0o000, owner=(33, 33))
put(b"hard1", b"linked")
os.link(b"hard1", b"hard2")
os.mkdir(b"sub")
os.link(b"hard1", b"sub/hard3")
os.symlink(b"/absolute/missing", b"absolute")
os.symlink(b"sub/../hard1", b"relative")
os.symlink(b"t" * 3000, b"long")
os.mkfifo(b"fifo", 0o600)
socket.socket(socket.AF_UNIX).bind("socket")
os.mkdir(b"sticky")
os.chmod(b"sticky", 0o1777)
put(b"empty", b"")
with open(b"sparse", "wb") as file:
    file.seek(100_000_000)
    file.write(b"end")
put(b"noise", os.urandom(3_000_000))
os.setxattr(b"owned", b"user.note", b"kept\0binary")
os.setxattr(b"sub", b"user.dir", b"also directories")
os.setxattr(b"noise", b"user.long", b"v" * 1000)
# vfs_cap_data (capabilities(7)): version 2, effective, CAP_NET_RAW (13) permitted
put(b"capable", mode=0o755)
os.setxattr(b"capable", b"security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
os.mkdir(b"many")
for index in range(3000):
    put(b"many/%d" % index, b"%d" % index)
os.makedirs(b"gone/deep/er")
put(b"gone/deep/er/file")
os.makedirs(b"again")
for index in range(5):
    put(b"again/old%d" % index)
put(b"deleted")
put(b"becomes-dir")
os.mkdir(b"becomes-file")
put(b"becomes-file/x")
