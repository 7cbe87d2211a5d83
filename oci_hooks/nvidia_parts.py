"""What of the NVIDIA driver goes into a container: as nvidia-container-cli lists it, or as it is found on the host.

The capabilities are those of the vendor's tools (NVIDIA Container Toolkit, "Driver Capabilities"); which library
serves which is in the driver's README, "Installed Components". 32-bit libraries are never among them.
"""

import re

from squashmount.lean import TYPE_CHECKING, NamedTuple

from . import cuda
from .libraries import Libraries, Library, split_name
from .listing import names_in

if TYPE_CHECKING:
    from .tree import Tree

CLI = "/usr/bin/nvidia-container-cli"
LIST = (CLI, "--user", "list")
"""--user without a value: it would become `nobody`, whom a rootless container's user namespace does not have."""
INFO = (CLI, "--user", "info")

_CONTROL = (
    *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"),
    *("/dev/nvidia-caps-imex-channels/channel0", "/dev/gdrdrv"),
)
_OF_ONE_GPU = re.compile(r"/dev/nvidia\d+|/dev/nvidia-caps/.*")
_PROGRAMS = (
    *("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"),
)
_DATA = (
    *("/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "/usr/share/vulkan/icd.d/nvidia_icd.json"),
    *("/etc/vulkan/icd.d/nvidia_icd.json", "/usr/share/nvidia/nvoptix.bin", "/etc/OpenCL/vendors/nvidia.icd"),
)
# distributions that keep the driver apart from ld.so's directories
_MORE_DIRECTORIES = ("/usr/lib64/nvidia", "/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/nvidia/current")
# not named by the driver's version, and needed with it: GDRCopy
_COMPANIONS = ("libgdrapi.so.2",)
_CAPABILITIES = {
    "utility": r"lib(nvidia-(ml|cfg|nscq)|nvsdm)|nvidia-(smi|debugdump|persistenced)|nv-fabricmanager",
    "compute": r"lib(cuda|cudadebugger|gdrapi|nvidia-(opencl|gpucomp|ptxjitcompiler|fatbinaryloader|allocator|compiler|"
    r"pkcs11(-openssl3)?|nvvm\d*))|nvidia-cuda-mps-(control|server)|nvidia\.icd",
    "video": r"lib(vdpau_nvidia|nvidia-(encode|opticalflow)|nvcuvid|cuda)",
    "graphics": r"lib(nvidia-(e?gl(core|vkspirv)|egl-.*|tls|glsi|fbc|ifr|rtcore|cbl|gpucomp|vksc-core|api|wayland-.*)"
    r"|nvoptix|(GLX|EGL|GLESv1_CM|GLESv2)_nvidia)|.*nvidia(_icd)?\.json|nvoptix\.bin",
    "ngx": r"lib(nvidia-ngx)|nvngx\..*",
}


class Parts(NamedTuple):
    """Libraries, other files and directories, and the device nodes that belong to no GPU."""

    libraries: tuple[Library, ...] = ()
    files: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


def listed(host: "Tree", text: str) -> Parts:
    """Return what a line each of `nvidia-container-cli list` says. Its sockets belong to daemons, and are left out."""
    every = Libraries(host)
    parts = Parts()
    for path in dict.fromkeys(line.strip() for line in text.splitlines()):
        kind = host.kind(path) if path.startswith("/") and ".." not in path.split("/") else ""
        if kind == "other" and path.startswith("/dev/"):
            if not _OF_ONE_GPU.fullmatch(path):
                parts = parts._replace(nodes=(*parts.nodes, path))
        elif kind in {"file", "dir"}:
            parts = _with(parts, path, every.load(path) if kind == "file" and ".so" in path else None)
    # GDRCopy is no part of the driver, and the tool does not know it
    more = (one for one in companions(host) if one.real not in {each.real for each in parts.libraries})
    nodes = (path for path in ("/dev/gdrdrv",) if host.kind(path) == "other")
    return Parts((*parts.libraries, *more), parts.files, tuple(dict.fromkeys((*parts.nodes, *nodes))))


def _with(parts: Parts, path: str, library: Library | None) -> Parts:
    if library is None:
        # a torn library is none, and nothing else of that name is wanted
        return parts if ".so" in path else parts._replace(files=(*parts.files, path))
    same = {one.real for one in parts.libraries}
    if library.elf.bits != 64 or library.real in same:
        return parts
    return parts._replace(libraries=(*parts.libraries, library))


def found(host: "Tree", driver: str) -> Parts:
    """Return the libraries whose names carry the driver's version, and the other files where they usually are."""
    programs = [f"/usr/bin/{name}" for name in _PROGRAMS]
    files = [path for path in (*programs, *_DATA) if host.kind(path) == "file"]
    firmware = f"/lib/firmware/nvidia/{driver}"
    if driver and host.kind(firmware) == "dir":
        files.append(firmware)
    nodes = tuple(path for path in _CONTROL if host.kind(path) == "other")
    return Parts((*_of_driver(host, driver), *companions(host)), tuple(files), nodes)


def _of_driver(host: "Tree", driver: str) -> list[Library]:
    libraries: dict[str, Library] = {}
    every = Libraries(host)
    for folder in dict.fromkeys((*every.defaults, *_MORE_DIRECTORIES)):
        for name in names_in(host, folder):
            library = every.load(f"{folder}/{name}") if driver and name.endswith(f".so.{driver}") else None
            if library and library.elf.bits == 64:
                libraries.setdefault(library.real, library)
    return list(libraries.values())


def companions(host: "Tree") -> list[Library]:
    """Return what is always used with the driver."""
    every = Libraries(host)
    every_one = (every.load(f"{folder}/{name}") for name in _COMPANIONS for folder in every.defaults)
    return list({one.real: one for one in every_one if one and one.elf.bits == 64}.values())


def wanted(parts: Parts, capabilities: str) -> Parts:
    """Return the parts for NVIDIA_DRIVER_CAPABILITIES: all of them where it is empty or says `all`.

    What belongs to no capability known here stays: a newer driver has libraries that nobody has heard of.
    """
    words = {word.strip() for word in capabilities.split(",") if word.strip()}
    if not words or "all" in words:
        return parts
    if "display" in words:
        words.add("graphics")
    other = [re.compile(pattern) for name, pattern in _CAPABILITIES.items() if name not in words]
    own = [re.compile(pattern) for name, pattern in _CAPABILITIES.items() if name in words]

    def stays(name: str) -> bool:
        stem = split_name(name)[0] or name
        return any(one.fullmatch(stem) for one in own) or not any(one.fullmatch(stem) for one in other)

    return parts._replace(
        libraries=tuple(one for one in parts.libraries if stays(one.path.rpartition("/")[2])),
        files=tuple(path for path in parts.files if stays(path.rpartition("/")[2])),
    )


def computes(capabilities: str) -> bool:
    """Return whether NVIDIA_DRIVER_CAPABILITIES asks for CUDA."""
    words = {word.strip() for word in capabilities.split(",") if word.strip()}
    return not words or bool(words & {"all", "compute"})


def version_of_libcuda(host: "Tree") -> str:
    """Return the driver's version by the name of its libcuda; "" when there is none."""
    for folder in dict.fromkeys((*Libraries(host).defaults, *_MORE_DIRECTORIES)):
        for name in names_in(host, folder):
            text = name.removeprefix("libcuda.so.")
            if name != text and len(cuda.version(text)) > 1:
                return text
    return ""
