"""What the commands of `squashmount-conf` share: their name, exit codes, and options that several take."""

import argparse

PROGRAM = "squashmount-conf"

EPILOG = """\
exit codes:
  0    done; check, doctor: nothing is wrong (warnings do not count without --strict)
  1    the reader of the output went away; doctor --explain: no message is known
  2    wrong use of the command line, or a present file that cannot be edited
  5    a store does not exist
  6    a file cannot be written
  8    podman is missing or too old, or a directory did not answer all
  10   an LDIF or a baseline is damaged or cut off
  11   check, doctor or ids found something wrong
  130  interrupted
"""


def add_scope(parser: argparse.ArgumentParser) -> None:
    """Add --user, --site and --podman."""
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--user", action="store_true", help="files of this user (default)")
    scope.add_argument("--site", action="store_true", help="files in /etc for all rootless users of a node")
    parser.add_argument("--podman", type=int, metavar="N", help="as Podman 4, 5 or 6 reads it (default: the installed)")
