"""CUDA-aware and ROCm-aware Cray MPICH: the host's GPU transport layer (GTL), which comes along with its MPI.

Cray MPICH finds GPU buffers by libmpi_gtl_cuda.so or libmpi_gtl_hsa.so, which the compiler wrappers link into programs.
A program that was built in an image has not got it: then it is preloaded (HPE, intro_mpi(3), MPICH_GPU_SUPPORT_ENABLED:
with 1 and without the layer MPI_Init aborts). MPICH and MVAPICH over UCX do without: its plugins come with UCX.
"""

from os.path import dirname, join
from typing import TYPE_CHECKING

from .libraries import Libraries, Library
from .plan import PRIVATE, Contribution

if TYPE_CHECKING:
    from .planners import Question

_KINDS = {"nvidia": ("cuda", "/dev/nvidiactl"), "amd": ("hsa", "/dev/kfd")}
"""By the planner that brings the driver: the layer's name, and the node without which it can do nothing."""
SWITCH = "MPICH_GPU_SUPPORT_ENABLED"
_UPWARDS = 6


def layers(question: "Question", image: Libraries, host: Libraries, mpi: list[Library]) -> tuple[Library, ...]:
    """Return the layers that go with the GPUs and the MPI of this container, if the host has them."""
    found = []
    for planner, (kind, node) in _KINDS.items():
        if planner in question.planners and question.host.kind(node) == "other":
            layer = _layer(f"libmpi_gtl_{kind}.so.0", host, mpi)
            if layer and not unmet(layer, image, host):
                found.append(layer)
    return tuple(found)


def unmet(layer: Library, image: Libraries, host: Libraries) -> list[str]:
    """Return what neither host nor image has of a layer's needs (libcudart may be the image's)."""
    return [name for name, user in host.closure([layer]).missing if image.find(name, wanted_by=user) is None]


def _layer(name: str, host: Libraries, mpi: list[Library]) -> Library | None:
    known = host.named(name)
    if known:
        return known[0]
    for library in mpi:
        # .../mpich/8.1.28/ofi/gnu/12.3/lib-abi-mpich and .../mpich/8.1.28/gtl/lib
        folder = dirname(library.real)
        for _ in range(_UPWARDS):
            folder = dirname(folder)
            if folder != "/" and (found := host.load(join(folder, "gtl/lib", name))):
                return found
    return None


def preloaded(question: "Question", layers: tuple[Library, ...], mpi: list[Library]) -> Contribution:
    """Return the environment for layers that are there, as far as the job wants them and the MPI does not load them."""
    needed = {name for library in mpi for name in library.elf.needed}
    loose = [layer for layer in layers if layer.name not in needed]
    if not loose:
        return Contribution()
    shown = ", ".join(layer.path for layer in loose)
    if question.environ.get(SWITCH) != "1":
        return Contribution(rejected=(f"{shown} is there, but not preloaded: the job has no {SWITCH}=1.",))
    paths = ":".join(join(PRIVATE, layer.name) for layer in loose)
    return Contribution(
        env_prepend={"LD_PRELOAD": paths}, reasons=(f"{shown} is preloaded, for {SWITCH}=1 of the job.",)
    )
