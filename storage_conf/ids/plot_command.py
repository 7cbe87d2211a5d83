"""The command `squashmount-conf ids plot`."""

import argparse
from typing import Any

from squashmount.command_line import add_command, say
from squashmount.errors import SpaceError

from ..options import EPILOG
from .plot import arranged, plot
from .ranges import KINDS
from .source_options import add_source, read_source


def add(commands: Any) -> None:
    """Add `ids plot`."""
    parser = add_command(
        commands,
        "plot",
        "draw all ids with ranges, reserved windows, overlaps and what is free",
        _plot,
        epilog=EPILOG,
        more="It needs matplotlib: pip install 'squashmount[plot]'. The same ranges make the same file.",
    )
    parser.add_argument("output", metavar="OUT.svg", help="the picture")
    parser.add_argument("--kind", choices=KINDS, default="uid", help="subuids (default) or subgids")
    parser.add_argument("--title", default="", metavar="TEXT", help="above the picture")
    add_source(parser)


def _plot(args: argparse.Namespace) -> int:
    found = read_source(args)
    picture = arranged(found.ranges, found.accounts, args.kind)
    others = {(one.start, one.count) for one in found.ranges if one.kind != args.kind}
    same = others == {(one.start, one.count) for one in picture.ranges}
    other = "gids" if args.kind == "uid" else "uids"
    note = f"The subordinate {other} are {'the same' if same else 'others'}"
    try:
        plot(picture, args.output, title=args.title, names=[note])
    except OSError as err:
        raise SpaceError(f"{args.output} cannot be written: {err.strerror}.") from err
    say(f"{args.output}: {len(picture.ranges):,} ranges, {len(picture.clashes):,} overlaps")
    return 0
