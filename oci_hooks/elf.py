"""What the dynamic loader would see of an ELF file: SONAME, DT_NEEDED, paths, symbol versions and symbols.

Read through the program headers as ld.so does, not through the section headers: a stripped or hostile file may have
none, or false ones. Every read is bounded, so that a damaged file is an error and never long work.
Sources: elf(5), ld.so(8), the generic ABI chapters 4 and 5, "ELF Symbol Versioning" of the LSB core specification.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from squashmount.errors import SquashmountError

_MOST_BYTES = 64 << 20
_MOST_READS = 20_000
_MOST_SYMBOLS = 500_000
_MOST_TAGS = 4096
_MOST_HEADERS = 1024
_LONGEST_NAME = 4096
_MOST_NOTES = 1 << 16
_MOST_POINTERS = 100_000
_RELATIVE = {"EM_X86_64": 8, "EM_AARCH64": 1027, "EM_PPC64": 22, "EM_S390": 12, "EM_RISCV": 3}
"""The relocation that makes a pointer into the file itself, of each machine's ABI supplement."""

_VER_FLG_BASE = 1
_VER_FLG_WEAK = 2
_NT_GNU_BUILD_ID = 3
_STB_LOCAL = 0
_STB_WEAK = 2
_SHN_UNDEF = 0


class NotElfError(SquashmountError):
    """Not a file that the dynamic loader could load: another format, cut off, or with contradicting bytes."""


@dataclass(frozen=True)
class Elf:
    """One shared library or program. `machine` is the ABI's name without EM_ (X86_64, AARCH64); `bits` 32 or 64.

    `versions_needed` maps a DT_NEEDED name to the symbol versions the loader insists on (weak ones are left out, as by
    ld.so); `versions_defined` are those it offers. `rpath` and `runpath` are as written, with $ORIGIN unexpanded.
    """

    machine: str
    bits: int
    little_endian: bool = True
    is_shared: bool = True
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    versions_needed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions_defined: tuple[str, ...] = ()
    interpreter: str = ""
    build_id: str = ""

    @property
    def abi(self) -> tuple[str, int, bool]:
        """What two files must share to live in one process (x32 is X86_64 with 32 bits)."""
        return self.machine, self.bits, self.little_endian

    @property
    def abi_name(self) -> str:
        """The same for people."""
        return f"{self.machine} {self.bits}-bit" + ("" if self.little_endian else " big-endian")


@dataclass(frozen=True)
class Symbols:
    """The dynamic symbols by name: those a file defines, and those it must find elsewhere with their version or ""."""

    defined: frozenset[str]
    undefined: Mapping[str, str]


def read_elf(file: BinaryIO) -> Elf:
    """Return what the loader would see of an open file. Raises NotElfError, and OSError when reading fails."""
    try:
        return _Reader(file).elf()
    except (ELFError, struct.error) as error:
        raise NotElfError("This ELF file is damaged.", details=str(error)) from error


def read_symbols(file: BinaryIO) -> Symbols:
    """Return the dynamic symbols of an open file; weak undefined ones may stay unresolved and are left out.

    Raises NotElfError, and OSError when reading fails.
    """
    try:
        return _Reader(file).symbols()
    except (ELFError, struct.error) as error:
        raise NotElfError("This ELF file is damaged.", details=str(error)) from error


def read_entries(file: BinaryIO, name: str, size: int) -> list[bytes]:
    """Return the `size` bytes behind each pointer to the text `name`: entries of tables, in a file without symbols.

    Only 64-bit files with DT_RELA say where their pointers are. Raises NotElfError, and OSError when reading fails.
    """
    try:
        return _Reader(file).entries(name.encode() + b"\0", size)
    except (ELFError, struct.error) as error:
        raise NotElfError("This ELF file is damaged.", details=str(error)) from error


@lru_cache(maxsize=4)
def _structs(*, little_endian: bool, bits: int) -> ELFStructs:
    structs = ELFStructs(little_endian=little_endian, elfclass=bits)
    structs.create_basic_structs()
    structs.create_advanced_structs()
    return structs


class _Reader:
    """One file with its header, program headers and dynamic section."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = _MOST_BYTES
        self._reads = _MOST_READS
        ident = self._at(0, 16)
        if ident[:4] != b"\x7fELF":
            raise NotElfError("This is not an ELF file.")
        if ident[4] not in {1, 2} or ident[5] not in {1, 2}:
            raise NotElfError("This ELF file is of no known class or byte order.", details=f"e_ident {ident.hex()}")
        self.bits = 32 * ident[4]
        self.little = ident[5] == 1
        self._structs = _structs(little_endian=self.little, bits=self.bits)
        self.header = self._parse(self._structs.Elf_Ehdr, 0)
        if self.header["e_type"] not in {"ET_DYN", "ET_EXEC"}:
            raise NotElfError("This ELF file is neither a library nor a program.", details=f"{self.header['e_type']}")
        self._segments = list(self._program_headers())
        self._tags = list(self._dynamic())

    def elf(self) -> Elf:
        machine = self.header["e_machine"]
        return Elf(
            machine=machine.removeprefix("EM_") if isinstance(machine, str) else f"machine {machine}",
            bits=self.bits,
            little_endian=self.little,
            is_shared=self.header["e_type"] == "ET_DYN",
            soname=next(self._names("DT_SONAME"), ""),
            needed=tuple(self._names("DT_NEEDED")),
            rpath=self._path("DT_RPATH"),
            runpath=self._path("DT_RUNPATH"),
            versions_needed=dict(self._versions_needed()),
            versions_defined=tuple(self._versions_defined()),
            interpreter=self._interpreter(),
            build_id=self._build_id(),
        )

    def symbols(self) -> Symbols:
        layout = ("<" if self.little else ">") + ("IIIBBH" if self.bits == 32 else "IBBHQQ")
        defined, undefined = set(), {}
        entries, indices = self._symbol_table(struct.calcsize(layout))
        if not entries:
            return Symbols(frozenset(), {})
        names = self._at(self._offset("DT_STRTAB"), self._tag("DT_STRSZ"))
        versions = self._version_names()
        for index, entry in enumerate(struct.iter_unpack(layout, entries)):
            name, info, section = (entry[0], entry[3], entry[5]) if self.bits == 32 else (entry[0], entry[1], entry[3])
            if info >> 4 == _STB_LOCAL or not name:
                continue
            text = _text(names, name)
            if section != _SHN_UNDEF:
                defined.add(text)
            elif info >> 4 != _STB_WEAK:
                undefined[text] = versions.get(indices[index] & 0x7FFF, "") if index < len(indices) else ""
        return Symbols(frozenset(defined), undefined)

    def entries(self, name: bytes, size: int) -> list[bytes]:
        kind, count = _RELATIVE.get(str(self.header["e_machine"])), self._tag("DT_RELASZ") // 24
        offset = self._offset("DT_RELA")
        if offset < 0 or self.bits != 64 or kind is None or count > _MOST_POINTERS:
            return []
        contents = [(one["p_vaddr"], self._at(one["p_offset"], one["p_filesz"])) for one in self._loaded()]
        found = []
        for place, info, target in struct.iter_unpack(f"{self._order}QQQ", self._at(offset, 24 * count)):
            if info & 0xFFFFFFFF == kind and _behind(contents, target, len(name)) == name:
                found.append(_behind(contents, place + 8, size))
        return [entry for entry in found if len(entry) == size]

    # -- the file --

    def _loaded(self) -> list[Any]:
        return [segment for segment in self._segments if segment["p_type"] == "PT_LOAD"]

    def _at(self, offset: int, size: int) -> bytes:
        self._reads -= 1
        self._bytes -= size
        if self._reads < 0 or self._bytes < 0 or offset < 0:
            raise NotElfError("This ELF file is damaged.", details="it would have to be read again and again")
        try:
            self._file.seek(offset)
        except (OverflowError, ValueError) as error:
            raise NotElfError("This ELF file is damaged.", details=f"offset {offset}") from error
        data = self._file.read(size)
        if len(data) < size:
            raise NotElfError("This ELF file is cut off.", details=f"{size} bytes expected at {offset}")
        return data

    def _parse(self, kind: Any, offset: int) -> Any:
        return struct_parse(kind, BytesIO(self._at(offset, kind.sizeof())))

    def _program_headers(self) -> Iterator[Any]:
        kind = self._structs.Elf_Phdr
        count, step = self.header["e_phnum"], self.header["e_phentsize"]
        if count > _MOST_HEADERS or (count and step < kind.sizeof()):
            raise NotElfError("This ELF file is damaged.", details=f"{count} program headers of {step} bytes")
        for index in range(count):
            yield self._parse(kind, self.header["e_phoff"] + index * step)

    def _dynamic(self) -> Iterator[tuple[str | int, int]]:
        kind = self._structs.Elf_Dyn
        for segment in self._segments:
            if segment["p_type"] == "PT_DYNAMIC":
                count = min(segment["p_filesz"] // kind.sizeof(), _MOST_TAGS)
                stream = BytesIO(self._at(segment["p_offset"], count * kind.sizeof()))
                for _ in range(count):
                    entry = struct_parse(kind, stream)
                    if entry["d_tag"] == "DT_NULL":
                        return
                    yield entry["d_tag"], entry["d_val"]

    def _tag(self, name: str) -> int:
        return next((value for tag, value in self._tags if tag == name), 0)

    def _offset(self, name: str) -> int:
        """Return where in the file the address in a tag lies, -1 without the tag."""
        if not (address := self._tag(name)):
            return -1
        for segment in self._loaded():
            start = segment["p_vaddr"]
            if start <= address < start + segment["p_filesz"]:
                return int(segment["p_offset"] + address - start)
        raise NotElfError("This ELF file is damaged.", details=f"{name} points outside of the file")

    def _string(self, index: int) -> str:
        size = self._tag("DT_STRSZ")
        if index >= size:
            raise NotElfError("This ELF file is damaged.", details=f"string {index} of a table of {size} bytes")
        return _text(self._at(self._offset("DT_STRTAB") + index, min(size - index, _LONGEST_NAME)), 0)

    # -- the parts --

    def _names(self, tag: str) -> Iterator[str]:
        return (self._string(value) for found, value in self._tags if found == tag)

    def _path(self, tag: str) -> tuple[str, ...]:
        return tuple(part for text in self._names(tag) for part in text.split(":") if part)

    def _versions_needed(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        offset, found = self._offset("DT_VERNEED"), dict[str, tuple[str, ...]]()
        for _ in range(self._tag("DT_VERNEEDNUM") if offset >= 0 else 0):
            entry = self._parse(self._structs.Elf_Verneed, offset)
            names, at = [], offset + entry["vn_aux"]
            for _ in range(entry["vn_cnt"]):
                aux = self._parse(self._structs.Elf_Vernaux, at)
                if not aux["vna_flags"] & _VER_FLG_WEAK:
                    names.append(self._string(aux["vna_name"]))
                at += aux["vna_next"]
            library = self._string(entry["vn_file"])
            found[library] = (*found.get(library, ()), *names)
            if not entry["vn_next"]:
                break
            offset += entry["vn_next"]
        yield from found.items()

    def _definitions(self) -> Iterator[tuple[Any, str]]:
        offset = self._offset("DT_VERDEF")
        for _ in range(self._tag("DT_VERDEFNUM") if offset >= 0 else 0):
            entry = self._parse(self._structs.Elf_Verdef, offset)
            aux = self._parse(self._structs.Elf_Verdaux, offset + entry["vd_aux"])
            yield entry, self._string(aux["vda_name"])
            if not entry["vd_next"]:
                return
            offset += entry["vd_next"]

    def _versions_defined(self) -> Iterator[str]:
        # the base definition is the library's own name, not a version anybody can ask for
        return (name for entry, name in self._definitions() if not entry["vd_flags"] & _VER_FLG_BASE)

    def _version_names(self) -> dict[int, str]:
        """Return the names behind the numbers in the symbols' version table."""
        names = {entry["vd_ndx"]: name for entry, name in self._definitions()}
        offset = self._offset("DT_VERNEED")
        for _ in range(self._tag("DT_VERNEEDNUM") if offset >= 0 else 0):
            entry = self._parse(self._structs.Elf_Verneed, offset)
            at = offset + entry["vn_aux"]
            for _ in range(entry["vn_cnt"]):
                aux = self._parse(self._structs.Elf_Vernaux, at)
                names[aux["vna_other"]] = self._string(aux["vna_name"])
                at += aux["vna_next"]
            if not entry["vn_next"]:
                break
            offset += entry["vn_next"]
        return names

    def _symbol_table(self, size: int) -> tuple[bytes, tuple[int, ...]]:
        """Return the symbol entries and each one's version number."""
        offset = self._offset("DT_SYMTAB")
        count = self._symbol_count() if offset >= 0 else 0
        if count > _MOST_SYMBOLS:
            raise NotElfError("This ELF file is damaged.", details=f"{count} symbols")
        entries = self._at(offset, count * size) if count else b""
        versions = self._offset("DT_VERSYM")
        if versions < 0 or not count:
            return entries, ()
        return entries, struct.unpack(f"{self._order}{count}H", self._at(versions, 2 * count))

    @property
    def _order(self) -> str:
        return "<" if self.little else ">"

    def _symbol_count(self) -> int:
        """Return how many symbols the hash tables know of; the symbol table itself has no length for the loader."""
        if (offset := self._offset("DT_HASH")) >= 0:
            return int(struct.unpack(f"{self._order}II", self._at(offset, 8))[1])
        if (offset := self._offset("DT_GNU_HASH")) < 0:
            return 0
        buckets, first, bloom, _ = struct.unpack(f"{self._order}IIII", self._at(offset, 16))
        if buckets > _MOST_SYMBOLS or bloom > _MOST_SYMBOLS:
            raise NotElfError("This ELF file is damaged.", details=f"a hash table with {buckets} buckets")
        offset += 16 + bloom * self.bits // 8
        last = max(struct.unpack(f"{self._order}{buckets}I", self._at(offset, 4 * buckets)), default=0)
        if last < first:
            return int(first)
        chains = offset + 4 * buckets
        # the chain of the last bucket ends with an odd hash
        for count in range(last, _MOST_SYMBOLS):
            if struct.unpack(f"{self._order}I", self._at(chains + 4 * (count - first), 4))[0] & 1:
                return count + 1
        return _MOST_SYMBOLS + 1

    def _interpreter(self) -> str:
        for segment in self._segments:
            if segment["p_type"] == "PT_INTERP":
                return _text(self._at(segment["p_offset"], min(segment["p_filesz"], _LONGEST_NAME)) + b"\0", 0)
        return ""

    def _build_id(self) -> str:
        for segment in self._segments:
            if segment["p_type"] != "PT_NOTE" or not 12 <= segment["p_filesz"] <= _MOST_NOTES:
                continue
            data, at = self._at(segment["p_offset"], segment["p_filesz"]), 0
            while at + 12 <= len(data):
                name, size, kind = struct.unpack_from(f"{self._order}III", data, at)
                body = at + 12 + (name + 3 & ~3)
                if kind == _NT_GNU_BUILD_ID and data[at + 12 : at + 16] == b"GNU\0":
                    return data[body : body + size].hex()
                at = body + (size + 3 & ~3)
        return ""


def _behind(contents: list[tuple[int, bytes]], address: int, size: int) -> bytes:
    """Return the bytes at an address of the loaded file; fewer, or none, where it ends."""
    for start, data in contents:
        if start <= address < start + len(data):
            return data[address - start : address - start + size]
    return b""


def _text(data: bytes, start: int) -> str:
    end = data.find(b"\0", start)
    if end < 0 or start < 0:
        raise NotElfError("This ELF file is damaged.", details=f"a name at {start} without an end")
    return data[start:end].decode("utf-8", "surrogateescape")
