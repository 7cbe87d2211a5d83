"""An MPI program for the tests, built without MPI's headers, and the images it runs in.

Images: bullseye (MPICH 3.4.1, glibc 2.31) and trixie (MPICH 4.2.1 and Open MPI 5.0.7, glibc 2.41).
"""

from pathlib import Path

import pytest
from lab import Node, debian_tar, run

HOST_MPICH = Path("/usr/lib/x86_64-linux-gnu/libmpich.so.12")
NEEDS_MPICH = pytest.mark.skipif(
    not (HOST_MPICH.exists() and b"4.0.2" in HOST_MPICH.read_bytes()), reason="needs Debian 12's libmpich12"
)

PACKAGES = {"bullseye": "libmpich12", "trixie": "libmpich12,mpich,libopenmpi40"}

PROGRAM = r"""
// the constants of the MPICH ABI, or Open MPI's
#include <stdio.h>
#include <unistd.h>
#define ROUNDS 100
#ifdef OPEN_MPI
typedef void *handle;
extern char ompi_mpi_comm_world, ompi_mpi_int;
#define WORLD ((handle)&ompi_mpi_comm_world)
#define INT ((handle)&ompi_mpi_int)
#define IGNORED ((void *)0)
#define NUMBER "Open MPI v%31[0-9.]"
#define NAME "Open MPI"
#else
typedef int handle;
#define WORLD 0x44000000
#define INT 0x4c000405
#define IGNORED ((void *)1)
#define NUMBER "MPICH Version: %31s"
#define NAME "MPICH"
#endif
int MPI_Init(int *, char ***), MPI_Finalize(void), MPI_Comm_rank(handle, int *), MPI_Comm_size(handle, int *);
int MPI_Send(const void *, int, handle, int, int, handle), MPI_Recv(void *, int, handle, int, int, handle, void *);
int MPI_Get_library_version(char *, int *);
double MPI_Wtime(void);
static void ring(int rank, int size, int *token)
{
    if (rank)
        MPI_Recv(token, 1, INT, rank - 1, 0, WORLD, IGNORED);
    ++*token;
    MPI_Send(token, 1, INT, (rank + 1) % size, 0, WORLD);
    if (!rank)
        MPI_Recv(token, 1, INT, size - 1, 0, WORLD, IGNORED);
}
static void latency(int rank, int other)
{
    int word = 0;
    double start = MPI_Wtime();
    for (int round = 0; round < ROUNDS && (rank == 0 || rank == other); round++) {
        if (rank)
            MPI_Recv(&word, 1, INT, 0, 0, WORLD, IGNORED);
        MPI_Send(&word, 1, INT, rank ? 0 : other, 0, WORLD);
        if (!rank)
            MPI_Recv(&word, 1, INT, other, 0, WORLD, IGNORED);
    }
    if (!rank)
        printf("latency to rank %d: %.2f us\n", other, (MPI_Wtime() - start) * 1e6 / 2 / ROUNDS);
}
int main(int argc, char **argv)
{
    char version[8192], number[32] = "", host[65] = "";
    int rank, size, length, token = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(WORLD, &rank);
    MPI_Comm_size(WORLD, &size);
    MPI_Get_library_version(version, &length);
    sscanf(version, NUMBER, number);
    for (int round = 0; size > 1 && round < ROUNDS; round++)
        ring(rank, size, &token);
    if (!rank)
        printf("%d ranks, token %d: " NAME " %s\n", size, token, number);
    if (argc > 1) {
        gethostname(host, sizeof host - 1);
        printf("rank %d on %s: " NAME " %s\n", rank, host, number);
        for (int other = 1; other < size; other++)
            latency(rank, other);
        fflush(stdout);
        ring(rank, size, &token);
        // Debian's MPICH 4.0 hangs in MPI_Finalize between nodes over TCP two times in three, also without containers
#ifndef OPEN_MPI
        _exit(0);
#endif
    }
    MPI_Finalize();
}
"""


def build_program(directory: Path) -> Path:
    """Build PROGRAM as directory/ring with the host's MPICH; an argument makes it say more."""
    return _build(directory / "ring", HOST_MPICH)


def build_open_mpi_program(directory: Path) -> Path:
    """Build PROGRAM as directory/ring-open-mpi with the library of the image, which the host has not."""
    library = directory / "libmpi.so.40"
    name = "./usr/lib/x86_64-linux-gnu/libmpi.so.40.40.7"
    run("tar", "-C", str(directory), "--transform", "s,.*/,,", "-xf", str(image_tar("trixie")), name).ok()
    (directory / Path(name).name).rename(library)
    return _build(directory / "ring-open-mpi", library, "-DOPEN_MPI", "-Wl,--allow-shlib-undefined")


def _build(program: Path, library: Path, *options: str) -> Path:
    source = program.with_suffix(".c")
    source.write_text(PROGRAM)
    run("gcc", *options, "-o", str(program), str(source), str(library)).ok()
    return program


def image_tar(release: str) -> Path:
    """Return the image's file system."""
    return debian_tar(release, PACKAGES[release])


def squash_image(login: Node, store: Path, release: str) -> str:
    """Squash an image into the store and return its name."""
    name = f"localhost/mpi/{release}:1"
    login.podman("import", str(image_tar(release)), name, timeout=300).ok()
    login.migrate("mig", name, str(store), timeout=300).ok()
    login.podman("rmi", "--force", name).ok()
    return name
