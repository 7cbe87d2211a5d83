"""What is read of ELF files: real ones made by gcc, the machine's own, and damaged ones."""

import io
import random
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from elf_files import AARCH64, library, patch_machine
from hypothesis import given
from hypothesis import strategies as st
from squashmount.oci_hooks.elf import Elf, NotElfError, read_elf, read_symbols


@pytest.fixture(scope="module")
def libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("libc") / "libc.so.6"
    return library(path, defines={"GLIBC_2.2.5": ["old"], "GLIBC_2.34": ["dlopen_now", "thread_now"]})


@pytest.fixture(scope="module")
def mpi(libc: Path) -> Path:
    path = libc.with_name("libmpi.so.12.2.2")
    return library(path, soname="libmpi.so.12", defines={"": ["MPI_Init"]}, uses=["old", "thread_now"], needs=[libc])


def read(path: Path) -> Elf:
    with path.open("rb") as file:
        return read_elf(file)


def test_names_and_versions(libc: Path, mpi: Path) -> None:
    elf = read(mpi)
    assert (elf.soname, elf.needed, elf.is_shared, elf.bits) == ("libmpi.so.12", ("libc.so.6",), True, 64)
    assert {name: set(versions) for name, versions in elf.versions_needed.items()} == {
        "libc.so.6": {"GLIBC_2.2.5", "GLIBC_2.34"}
    }
    assert elf.versions_defined == ()
    assert set(read(libc).versions_defined) == {"GLIBC_2.2.5", "GLIBC_2.34"}, "without the base, its own name"


def test_symbols_and_the_versions_they_are_wanted_in(libc: Path, mpi: Path) -> None:
    with mpi.open("rb") as file:
        symbols = read_symbols(file)
    assert symbols.undefined == {"old": "GLIBC_2.2.5", "thread_now": "GLIBC_2.34"}
    assert "MPI_Init" in symbols.defined
    with libc.open("rb") as file:
        assert {"old", "dlopen_now", "thread_now"} <= read_symbols(file).defined


@pytest.mark.parametrize("style", ["gnu", "sysv"])
def test_symbols_by_either_hash_table(tmp_path: Path, style: str) -> None:
    names = [f"function_{number}" for number in range(200)]
    source = tmp_path / "many.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    made = tmp_path / "libmany.so"
    options = ["-shared", "-fPIC", "-nostdlib", f"-Wl,--hash-style={style}"]
    subprocess.run(["gcc", *options, "-o", str(made), str(source)], check=True, timeout=60)
    with made.open("rb") as file:
        assert set(names) == {name for name in read_symbols(file).defined if name.startswith("function_")}


def test_run_paths(tmp_path: Path) -> None:
    old = read(library(tmp_path / "a/liba.so", rpath="/opt/x/lib:$ORIGIN/../lib"))
    new = read(library(tmp_path / "b/liba.so", runpath="/opt/y/lib"))
    assert (old.rpath, old.runpath) == (("/opt/x/lib", "$ORIGIN/../lib"), ())
    assert (new.rpath, new.runpath) == ((), ("/opt/y/lib",))


def test_machine(mpi: Path, tmp_path: Path) -> None:
    other = patch_machine(Path(shutil.copy(mpi, tmp_path / "other")), AARCH64)
    assert read(other).machine == "AARCH64"
    assert read(other).soname == "libmpi.so.12"
    assert read(other).abi != read(mpi).abi


def test_programs_of_this_machine() -> None:
    python = read(Path("/usr/bin/python3"))
    assert python.interpreter.startswith("/lib")
    assert "libc.so.6" in python.needed
    # an independent reader of the same field: binutils
    notes = subprocess.run(["readelf", "-n", "/usr/bin/python3"], capture_output=True, text=True, check=True).stdout
    assert f"Build ID: {python.build_id}\n" in notes
    assert len(python.build_id) == 40


def test_without_section_headers(mpi: Path, tmp_path: Path) -> None:
    data = bytearray(mpi.read_bytes())
    data[0x28:0x30] = b"\xff" * 8  # e_shoff
    data[0x3C:0x40] = b"\xff" * 4  # e_shnum, e_shstrndx
    other = tmp_path / "stripped"
    other.write_bytes(data)
    assert read(other) == read(mpi), "the loader does not read them either"


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"#!/bin/sh\n", b"GROUP ( libmpi.so.12 )\n", b"\x7fELF" + b"\0" * 60]
)
def test_other_files(data: bytes) -> None:
    with pytest.raises(NotElfError):
        read_elf(io.BytesIO(data))


def test_an_object_file_is_no_library(tmp_path: Path) -> None:
    made = tmp_path / "x.o"
    subprocess.run(["gcc", "-c", "-x", "c", "-o", str(made), "/dev/null"], check=True, timeout=60)
    with pytest.raises(NotElfError, match="neither a library nor a program"):
        read(made)


def test_cut_off_anywhere(mpi: Path) -> None:
    data = mpi.read_bytes()
    whole = read(mpi)
    for end in range(0, len(data), 97):
        with suppress(NotElfError):
            assert read_elf(io.BytesIO(data[:end])) == whole, "what is behind the last thing read may be missing"


@given(seed=st.integers(0, 2**32), flips=st.integers(1, 40))
def test_damage_is_an_error_or_another_file_but_never_a_crash(mpi: Path, seed: int, flips: int) -> None:
    chance = random.Random(seed)
    data = bytearray(mpi.read_bytes())
    for _ in range(flips):
        # headers, dynamic section and versions are where the reader looks
        data[chance.randrange(4, len(data))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    for reader in (read_elf, read_symbols):
        with suppress(NotElfError):
            assert reader(io.BytesIO(data))


def test_a_circle_of_versions_ends(mpi: Path) -> None:
    class Circle(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            return super().read(size)

    data = bytearray(mpi.read_bytes())
    at = data.index(b"\x01\x00\x02\x00")  # vn_version 1, vn_cnt 2: the only library with versions
    data[at + 2 : at + 4] = b"\xff\xff"  # vn_cnt
    aux = at + int.from_bytes(data[at + 8 : at + 12], "little")
    data[aux + 12 : aux + 16] = b"\0" * 4  # vna_next: the same entry again
    circle = Circle(bytes(data))
    with pytest.raises(NotElfError, match=r"again and again"):
        read_elf(circle)
    assert circle.reads <= 20_001
