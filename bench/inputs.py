"""The image that is measured: Debian with Python and generated files of known content, kept in the test cache."""

import fcntl
import hashlib
import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import CACHE, Node, debian_tar, run

NAME = "localhost/squashmount/bench:1"
MIB = 1 << 20
# The big file is made of 4 KiB: noise, then text. The noise is bytes of unequal frequency, so that a decompressor has
# symbols to decode: of plain random bytes zstd keeps a copy, and reading would be faster than of libraries or models.
SKEW = bytes(number * number >> 9 for number in range(256))
NOISE = 2560
TEXT_BYTES = 4096 - NOISE
TEXT = b"The quick brown fox jumps over the lazy dog. " * 40

CONTAINERFILE = """
FROM scratch
ADD debian.tar /
RUN rm -rf /usr/share/doc /usr/share/locale
ADD bench.tar /
# A COPY or ADD changes times, and Python writes .pyc files anew whose recorded time differs: unchecked-hash has none
RUN set -- -q -j 2 --invalidation-mode unchecked-hash && python3 -m compileall "$@" /bench/modules && \
    { python3 -m compileall "$@" -f /usr/lib/python3/dist-packages || true; } && touch /bench/made
ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8
"""


@dataclass(frozen=True)
class Spec:
    """How much of each kind the image holds, and how much of it a workload uses."""

    modules: int = 2000
    big_mib: int = 256
    small: int = 5000
    opened: int = 2000
    random_reads: int = 4000
    numeric: tuple[str, ...] = ("numpy", "scipy.stats", "sympy")
    """Modules of other people's, imported in this order; `import scipy` alone would load next to nothing."""
    packages: str = "python3,python3-numpy,python3-scipy,python3-sympy"
    """Debian's packages that hold them."""

    def json(self) -> str:
        """Return it as the workloads take it."""
        return json.dumps(asdict(self))

    def expected(self, workload: str) -> dict[str, int]:
        """Return what a workload must find; `walk` is not known from here."""
        small = self.small_sizes()
        return {
            "true": {},
            "first": {},
            "walk": {},
            "import": {"count": self.modules, "sum": self.modules * (self.modules - 1) // 2, "pyc_written": 0},
            "numeric": {"count": len(self.numeric), "pyc_written": 0},
            "read": {"bytes": self.big_mib * MIB, "sum": self.big_mib * (self.big_mib - 1) // 2},
            "random": {"bytes": self.random_reads * 4096, "sum": self.random_reads * TEXT[TEXT_BYTES - 1]},
            "small": {"bytes": sum(small), "sum": sum(number % 256 for number in range(self.small))},
            "open": {"count": 16 * self.opened, "failed": 0},
        }[workload]

    def small_sizes(self) -> list[int]:
        """Return the sizes of the small files in bytes: 1 to 64 KiB, as many of each."""
        generator = random.Random(7)
        return [generator.randint(1 << 10, 64 << 10) for _ in range(self.small)]


QUICK = Spec(
    modules=100,
    big_mib=4,
    small=100,
    opened=100,
    random_reads=100,
    numeric=("decimal", "asyncio", "unittest"),  # stand-ins: the real ones would make the image four times as large
    packages="python3",
)


def load_image(spec: Spec, node: Node, scratch: Path) -> None:
    """Load the image into the node's Podman; build it if the cache has none. Raises AssertionError with the log."""
    source = Path(__file__).read_bytes()
    digest = hashlib.sha256(source + spec.json().encode()).hexdigest()[:12]
    kind = f"bench-{spec.modules}-{spec.big_mib}"
    archive = CACHE / f"{kind}-{digest}.tar"
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            node.podman("load", "-q", "-i", str(archive), timeout=600).ok()
            return
        _build(spec, node, scratch)
        saved = scratch / "saved"
        saved.mkdir(mode=0o777)
        saved.chmod(0o777)
        node.podman("save", "-q", "-o", str(saved / "image.tar"), NAME, timeout=600).ok()
        fresh = archive.with_suffix(".new")
        shutil.move(saved / "image.tar", fresh)
        fresh.chmod(0o644)
        fresh.rename(archive)
        for older in set(CACHE.glob(f"{kind}-*")) - {archive, archive.with_suffix(".lock")}:
            older.unlink()


def _build(spec: Spec, node: Node, scratch: Path) -> None:
    context = scratch / "context"
    tree = scratch / "tree"
    context.mkdir()
    _generate(tree / "bench", spec)
    run(
        "tar", "-C", str(tree), "--owner=0", "--group=0", "--numeric-owner", "-cf", str(context / "bench.tar"), "bench"
    ).ok()
    shutil.copy(debian_tar("bookworm", spec.packages), context / "debian.tar")
    (context / "Containerfile").write_text(CONTAINERFILE)
    options = ("--layers", "--isolation=chroot", "--network=host")
    node.podman("build", "-q", *options, "-t", NAME, str(context), timeout=900).ok()
    shutil.rmtree(context)
    shutil.rmtree(tree)


def _generate(top: Path, spec: Spec) -> None:
    generator = random.Random(1)
    for number in range(spec.modules):
        pack = top / f"modules/pack{number // 100:03d}"
        pack.mkdir(parents=True, exist_ok=True)
        (pack / "__init__.py").touch()
        (pack / f"mod{number:05d}.py").write_text(_module(number))
    with (top / "big").open("wb") as big:
        for number in range(spec.big_mib):
            noise = b"".join(generator.randbytes(NOISE).translate(SKEW) + TEXT[:TEXT_BYTES] for _ in range(256))
            big.write(number.to_bytes(8, "little") + noise[8:])
    for number, size in enumerate(spec.small_sizes()):
        path = top / f"small/{number // 100:03d}/{number:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        half = size // 2
        path.write_bytes((bytes([number % 256]) + generator.randbytes(half).translate(SKEW) + TEXT * 40)[:size])


def _module(number: int) -> str:
    functions = "".join(
        f'def function_{index}(first, second={index}):\n    """Return something of {index}."""\n'
        f"    return [first + second * item for item in range({number % 97 + 1})]\n\n\n"
        for index in range(24)
    )
    return f'"""Module {number}."""\n\nVALUE = {number}\n\n\n{functions}'
