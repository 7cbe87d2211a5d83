"""`squashmount`: the mount program Podman calls (`-o OPTIONS TARGET`), and commands for people.

The first form runs at every container start, so only it is imported here (style.md); the others are in `commands`.
"""

import sys

from .errors import SquashmountError, UsageError, report

PROGRAM = "squashmount"


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
    mount_for_podman(options, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
