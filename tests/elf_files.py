"""Real ELF files for tests, made by gcc: any SONAME, any symbol version, any DT_NEEDED, any run path, any machine."""

import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

AARCH64 = 183
"""e_machine, elf(5)."""


def library(
    path: Path,
    *,
    soname: str = "",
    defines: Mapping[str, Sequence[str]] | None = None,
    uses: Sequence[str] = (),
    needs: Sequence[Path] = (),
    rpath: str = "",
    runpath: str = "",
) -> Path:
    """Make a shared library; `defines` are its functions by symbol version ("": none), `uses` those it calls.

    The SONAME is the file's name unless told otherwise; `needs` are libraries to link with. A version follows the ones
    before it, as in glibc.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    functions = [name for names in (defines or {}).values() for name in names]
    source = "".join(f"void {name}(void) {{}}\n" for name in functions)
    source += "".join(f"extern void {name}(void);\n" for name in uses)
    own = "".join(c if c.isalnum() else "_" for c in soname or path.name)
    source += f"void own_{own}(void) {{ {' '.join(f'{name}();' for name in uses)} }}\n"
    options = [f"-Wl,-soname,{soname or path.name}"]
    script, before = "", ""
    for version, names in (defines or {}).items():
        if version:
            script += f"{version} {{ global: {''.join(f'{name}; ' for name in names)}}} {before};\n"
            before = version
    if rpath:
        options += ["-Wl,--disable-new-dtags", f"-Wl,-rpath,{rpath}"]
    if runpath:
        options += ["-Wl,--enable-new-dtags", f"-Wl,-rpath,{runpath}"]
    path.write_bytes(_gcc(source, script, tuple(options), tuple(need.read_bytes() for need in needs)))
    return path


@cache
def _gcc(source: str, script: str, options: tuple[str, ...], needs: tuple[bytes, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = f"{folder}/made"
        files = [f"{folder}/{number}.so" for number in range(len(needs))]
        for name, content in zip(files, needs, strict=True):
            Path(name).write_bytes(content)
        if script:
            Path(f"{made}.map").write_text(script)
            options = (*options, f"-Wl,--version-script={made}.map")
        # only what the test says: no compiler runtime, no C library
        argv = ["gcc", "-shared", "-fPIC", "-O0", "-nostdlib", "-o", made, "-x", "c", "-", "-x", "none"]
        argv += [*options, "-Wl,--no-as-needed", *files]
        done = subprocess.run(argv, input=source, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return Path(made).read_bytes()


def patch_machine(path: Path, machine: int) -> Path:
    """Make a file say it is for another processor (e_machine, at 18 in the header)."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 18, machine)
    path.write_bytes(data)
    return path


def link(path: Path, target: str) -> Path:
    """Make a symbolic link with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def foreign(path: Path, *, bits: int, little: bool, machine: int, soname: str, needs: Sequence[str] = ()) -> Path:
    """Make by hand what no compiler here makes: a library of any class, byte order and machine, without symbols."""
    order, word = "<" if little else ">", "Q" if bits == 64 else "I"
    names = [soname, *needs]
    table = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    places = [1 + sum(len(name) + 1 for name in names[:index]) for index in range(len(names))]
    header, segment = (64, 56) if bits == 64 else (52, 32)
    strings = header + 2 * segment
    # DT_SONAME, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_NULL
    tags = [(14, places[0]), *((1, place) for place in places[1:]), (5, strings), (10, len(table)), (0, 0)]
    dynamic = b"".join(struct.pack(f"{order}2{word}", *tag) for tag in tags)
    start = strings + len(table)
    ident = b"\x7fELF" + bytes([bits // 32, 1 if little else 2, 1]) + bytes(9)
    fields = (3, machine, 1, 0, header, 0, 0, header, segment, 2, 0, 0, 0)
    data = ident + struct.pack(f"{order}HHI3{word}IHHHHHH", *fields)
    for kind, offset, size in ((1, 0, start + len(dynamic)), (2, start, len(dynamic))):
        if bits == 64:
            data += struct.pack(f"{order}IIQQQQQQ", kind, 5, offset, offset, offset, size, size, 8)
        else:
            data += struct.pack(f"{order}8I", kind, offset, offset, offset, size, size, 5, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data + table + dynamic)
    return path
