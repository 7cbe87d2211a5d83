"""Real ELF files for tests, made by gcc: any SONAME, any symbol version, any DT_NEEDED, any run path, any machine."""

import struct
import subprocess
from collections.abc import Mapping, Sequence
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
    versions = {version: names for version, names in (defines or {}).items() if version}
    if versions:
        script, before = "", ""
        for version, names in versions.items():
            script += f"{version} {{ global: {''.join(f'{name}; ' for name in names)}}} {before};\n"
            before = version
        path.with_name(path.name + ".map").write_text(script)
        options.append(f"-Wl,--version-script={path}.map")
    if rpath:
        options += ["-Wl,--disable-new-dtags", f"-Wl,-rpath,{rpath}"]
    if runpath:
        options += ["-Wl,--enable-new-dtags", f"-Wl,-rpath,{runpath}"]
    _gcc(source, path, "-shared", "-fPIC", *options, "-Wl,--no-as-needed", *map(str, needs))
    path.with_name(path.name + ".map").unlink(missing_ok=True)
    return path


def _gcc(source: str, path: Path, *options: str) -> None:
    # only what the test says: no compiler runtime, no C library
    argv = ["gcc", "-x", "c", "-O0", "-nostdlib", "-o", str(path), "-", "-x", "none", *options]
    done = subprocess.run(argv, input=source, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


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
