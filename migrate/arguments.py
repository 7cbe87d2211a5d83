"""The options of `migrate2scratch` and their help."""

import argparse
from importlib.metadata import version

from squashmount import errors

from .mksquashfs import COMPRESSORS

PROGRAM = "migrate2scratch"
_BLOCKS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


def parser() -> argparse.ArgumentParser:
    """Return the parser; `command` holds the chosen command."""
    table = errors.__doc__ or ""
    codes = table.partition("====  ")[2].partition("\n")[2].rpartition("====  ")[0]
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Squash images of your Podman into a store that every node can run them from.",
        epilog="DIR may also come from SQUASH_DIR or from squash_dir in /etc/squashmount.toml.\n\nexit codes:\n"
        + codes,
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {version('squashmount')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _mig(commands.add_parser("mig", help="squash an image of your Podman into DIR"))
    _profile(_command(commands, "profile", "run an image once and record what it reads first", image=True))
    rmi = _command(commands, "rmi", "remove a name, and with its last name the image", image=True)
    rmi.add_argument("-f", "--force", action="store_true", help="remove the image with all its names")
    _command(commands, "images", "list what is in DIR")
    _command(commands, "init", "make DIR a store")
    prune = _command(commands, "prune", "delete the images that lost their names to newer ones, and what they left")
    for made in (rmi, prune):
        made.add_argument(
            "--now",
            action="store_true",
            help="delete squash files at once although containers may run from them; default: after trash_hours (24)",
        )
    verify = _command(commands, "verify", "check DIR without changing it; exit code 11 when something is wrong")
    verify.add_argument("--full", action="store_true", help="read every squash file and compare its checksum")
    _command(commands, "repair", "rebuild what Podman reads in DIR from the squashed images")
    return top


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, *, image: bool = False
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    if image:
        made.add_argument("image", metavar="IMAGE", help="name, digest or ID")
    _common(made)
    return made


def _common(made: argparse.ArgumentParser) -> None:
    made.add_argument("dir", metavar="DIR", nargs="?", help="the store; default SQUASH_DIR")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("-n", "--dry-run", action="store_true", help="print what would be done, change nothing")
    made.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    made.add_argument("-v", "--verbose", action="store_true", help="print the programs that are run")
    made.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="wait so long for another writer (default 600)"
    )


def _mig(made: argparse.ArgumentParser) -> None:
    made.description = "Squash an image of your Podman into DIR and show it to every Podman that uses DIR."
    made.epilog = (
        "A name that another image in DIR has moves to this one; that image stays without it, as after `podman pull`, "
        "until `prune`, `rmi ID`, or --replace removes it. Owners, modes, hard links, sparse files, user.* attributes "
        "and file capabilities are kept; attributes of container storage and of SELinux are not."
    )
    made.add_argument("image", metavar="IMAGE", help="whatever `podman run` would understand")
    _common(made)
    made.add_argument("--root", default="", metavar="DIR", help="Podman's --root")
    made.add_argument("--runroot", default="", metavar="DIR", help="Podman's --runroot")
    made.add_argument("--compressor", choices=COMPRESSORS, help="default zstd")
    made.add_argument("--level", type=int, help="of zstd (1-22, default 3) or gzip (1-9)")
    made.add_argument("--block-size", type=int, choices=_BLOCKS, metavar="KIB", help="4 … 1024, default 128")
    made.add_argument(
        "--profile", action="store_true", help="lay the files out in the order of the image's profile, if need be again"
    )
    made.add_argument("--profile-file", default="", metavar="FILE", help="the same, by a profile from a file")
    made.add_argument("--replace", action="store_true", help="delete an image that loses its last name to this one")
    made.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read names and some files back from the new squash file before it is published",
    )


def _profile(made: argparse.ArgumentParser) -> None:
    made.usage = f"{PROGRAM} profile [OPTIONS] IMAGE [DIR] [-- CMD...]"
    made.epilog = (
        "The image must be in DIR. It runs once as `podman run --rm IMAGE CMD`, with a Podman store and a server of "
        "its own; what CMD prints goes to standard error. The profile is stored with the image: every server that "
        "starts later reads ahead what it names, and `mig --profile` lays these files out next to each other."
    )
    made.add_argument(
        "--run-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of podman run, like -v=/data:/data",
    )
    made.add_argument("--tmpdir", default="", metavar="DIR", help="local directory for the container; default TMPDIR")
    made.add_argument("--output", default="", metavar="FILE", help="write the profile to FILE, not into the store")
