"""`squashmount`: the mount program Podman calls (`-o OPTIONS TARGET`), and commands for people.

The first form runs at every container start, so only it is imported here (style.md); the others are in `commands`.
"""

import errno
import sys

from .errors import HostError, SquashmountError, UsageError, report

PROGRAM = "squashmount"

HINTS = {
    errno.EACCES: "ask the owner of the store to make it readable: every directory above the file searchable, too",
    errno.ENOSPC: "make room where Podman's graphroot and runroot lie",
    errno.EDQUOT: "make room where Podman's graphroot and runroot lie",
    errno.EROFS: "graphroot and runroot must be writable on this node",
    errno.ESTALE: "the file was replaced or removed on another node: start the container again",
}


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code (see `errors`). Standard error is what Podman shows of a failed mount."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments[:1] == ["-o"]:
            return _mount(arguments)
        from .commands import command  # noqa: PLC0415 - people's commands are not on the mount path

        return command(arguments)
    except SquashmountError as err:
        return report(err, program=PROGRAM)


def _mount(arguments: list[str]) -> int:
    if len(arguments) != 3:
        raise UsageError("Expected: squashmount -o OPTIONS TARGET.", details=f"got: {' '.join(arguments)}")
    from .mount import mount_for_podman  # noqa: PLC0415 - `squashmount ps` does without

    _options, options, target = arguments
    try:
        mount_for_podman(options, target)
    except OSError as err:
        # what the operating system refuses is no bug of ours: the path and its reason say all there is to say
        raise HostError(
            f"Cannot mount on {target}.",
            details=str(err),
            hint=HINTS.get(err.errno or 0, "see the log: squashmount ps"),
        ) from err
    return 0


if __name__ == "__main__":
    sys.exit(main())
