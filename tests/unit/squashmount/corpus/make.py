"""Make the seeds anew: small images with every kind of table, stored plain (damage reaches the parsers) and packed.

They are kept as files because the tests of damage must meet the same bytes on every machine, whatever its mksquashfs.
As root, in this directory: python3 make.py
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

PLAIN = ("-noI", "-noD", "-noF", "-noX", "-noId")
SEEDS = {"plain": ("-comp", "gzip", *PLAIN), **{name: ("-comp", name) for name in ("gzip", "zstd", "lz4", "xz")}}
OPTIONS = (
    "-noappend",
    "-quiet",
    "-no-progress",
    "-b",
    "4K",
    "-nopad",
    "-all-time",
    "0",
    "-mkfs-time",
    "0",
    "-all-root",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as top:
        tree = Path(top, "tree")
        (tree / "d/many").mkdir(parents=True)
        for number in range(300):
            (tree / f"d/many/{'n' * 40}{number}").write_bytes(b"%d" % number)
        (tree / "d/file").write_bytes(hashlib.shake_128(b"file").digest(9000))
        (tree / "d/tail").write_bytes(b"tail")
        (tree / "link").symlink_to("d/file")
        os.setxattr(tree / "d/file", "user.a", b"value")
        os.setxattr(tree / "d/tail", "user.long", b"v" * 500)
        for name, options in SEEDS.items():
            subprocess.run(["mksquashfs", str(tree), f"{name}.squashfs", *OPTIONS, *options], check=True)


if __name__ == "__main__":
    main()
