"""A process whose kernel refuses one system call, as launchers make it; root runs it for others."""

import ctypes
import os
import struct
import sys

# x86-64, and the numbers all younger architectures share
UNSHARE = {"x86_64": 272, "ppc64le": 282, "s390x": 303}.get(os.uname().machine, 97)
FCHOWN = {"x86_64": 93, "ppc64le": 95, "s390x": 207}.get(os.uname().machine, 55)


def refused(number: int, *argv: str) -> tuple[str, ...]:
    """Return the command that runs another one with EPERM for a system call."""
    return (sys.executable, "-I", __file__, str(number), *argv)


def _main() -> None:
    load, equal, leave, eperm, allow = 0x20, 0x15, 0x06, 0x00050001, 0x7FFF0000
    code = [(load, 0, 0, 0), (equal, 0, 1, int(sys.argv[1])), (leave, 0, 0, eperm), (leave, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
    if ctypes.CDLL(None, use_errno=True).prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    _main()
