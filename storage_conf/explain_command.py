"""The command `squashmount-conf explain`: which value counts here, and who set it."""

import argparse
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from squashmount.command_line import add_command, say
from squashmount.config import SITE_FILE, Config, config_files, merged, read_settings, read_table, variables
from squashmount.errors import UsageError

from .conf import GRAPHROOT, RUNROOT
from .lines import Lines
from .options import EPILOG
from .site import load_site

DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One value and where it comes from: file:line, a variable, or `default`."""

    key: str
    value: Any
    origin: str

    def __str__(self) -> str:
        return f"{self.key} = {json.dumps(self.value, default=str)}  # {self.origin}"


def add(commands: Any) -> None:
    """Add `explain`."""
    more = "The strongest is the last: built in, /etc/squashmount.toml, /etc/squashmount/site.toml, "
    more += "~/.config/squashmount.toml, SQUASHMOUNT_* in the environment. Values that were overridden are behind."
    parser = add_command(
        commands, "explain", "say which settings count, and who set them", _explain, epilog=EPILOG, more=more
    )
    parser.add_argument("key", nargs="?", metavar="KEY", help="one setting (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _explain(args: argparse.Namespace) -> int:
    found: dict[str, list[Setting]] = {}
    for setting in settings(dict(os.environ)):
        found.setdefault(setting.key, []).append(setting)
    if args.key is not None and args.key not in found:
        near = difflib.get_close_matches(args.key, found, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(found)}"
        raise UsageError(f"There is no setting {args.key}.", hint=hint)
    chosen = {key: values for key, values in found.items() if args.key in {None, key}}
    if args.json:
        said = {
            key: [{"value": one.value, "origin": one.origin} for one in reversed(values)]
            for key, values in chosen.items()
        }
        say(json.dumps({"format": 1, "settings": said}, indent=2, default=str))
        return 0
    for values in chosen.values():
        say(str(values[-1]))
        for weaker in reversed(values[:-1]):
            say(f"    instead of {json.dumps(weaker.value, default=str)}, {weaker.origin}")
    return 0


def settings(environ: Mapping[str, str]) -> Iterator[Setting]:
    """Yield every value of every setting, of each the strongest last. UsageError for a file that is wrong."""
    env = dict(environ)
    config = Config()
    for key, value in config._asdict().items():
        yield Setting(key, value, DEFAULT)
    for path in config_files(env):
        given = read_settings(path)
        config = merged(Config(), given, where=path)
        lines = lines_of(path)
        for key in given:
            yield Setting(key, getattr(config, key), f"{path}:{lines.of(key)}")
    names = variables(env)
    config = merged(Config(), {key: env[name] for key, name in names.items()}, where="the environment", text=True)
    for key, name in names.items():
        yield Setting(key, getattr(config, key), name)
    yield from _of_the_site()


def _of_the_site() -> Iterator[Setting]:
    load_site()
    table = read_table(SITE_FILE) if os.path.lexists(SITE_FILE) else {}
    lines = lines_of(SITE_FILE) if table else Lines("")
    defaults = {"scratch.graphroot": GRAPHROOT, "scratch.runroot": RUNROOT, "ignore_chown_errors": True}
    defaults |= {
        "mount_program": "",
        "forbidden": [],
        "trusted_owners": [],
        "hooks_dirs": [],
        "stores": [],
        "modules": [],
    }
    scratch = table.get("scratch")
    given = {f"scratch.{key}": value for key, value in scratch.items()} if isinstance(scratch, dict) else {}
    for key, value in defaults.items():
        yield Setting(key, value, DEFAULT)
        if key in given or key in table:
            path = tuple(key.split("."))
            yield Setting(key, given.get(key, table.get(key)), f"{SITE_FILE}:{lines.of(*path)}")


def lines_of(path: str) -> Lines:
    """Return the lines of a file that can be read."""
    with open(path, encoding="utf-8") as file:
        return Lines(file.read())
