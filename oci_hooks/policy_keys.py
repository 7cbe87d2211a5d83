"""The keys of the policy file: for the checks and the messages."""

from collections.abc import Mapping

from .keys import Key

_PATH = Key("strings", "absolute paths", pattern="/.+")
_NAMES = Key("strings", "names of modules", pattern="[a-z0-9][a-z0-9._-]*")
_HARSHNESS = Key("string", "error: the container does not start; warn: a line in the log", choices=("error", "warn"))

KEYS: Mapping[str, Key] = {
    "modules": _PATH,
    "shipped": Key("boolean", "whether the modules that come with squashmount can be used"),
    "user_modules": Key("string", "whether users may have modules of their own", choices=("no", "add", "override")),
    "on": _NAMES,
    "off": _NAMES,
    "forbidden": _PATH,
    "missing_required": _HARSHNESS,
    "mpi_mismatch": _HARSHNESS,
    "trusted_owners": Key("integers", "uids besides root whose files may be injected"),
    "group_writable": Key("boolean", "whether what a group can write is trusted"),
    "ssh_directory": Key("string", "an absolute path, $NAME for a variable of the job", pattern=r"[/$].*"),
    "ssh_ports": Key("integers", "the first and the last port, for example [20000, 31999]"),
}
