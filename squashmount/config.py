"""Settings: built-in defaults < the site's files < the user's file < SQUASHMOUNT_* in the environment.

The site's are /etc/squashmount.toml and, stronger, /etc/squashmount/site.toml, which also says what storage.conf is
made of (`SITE_ONLY`; storage_conf). Nobody but root may be able to change them. The user's: ~/.config/squashmount.toml.

The mount program runs inside Podman's user namespace at every container start: tomllib is imported only when a file
exists. `SQUASHMOUNT_CONFIG` names one file to use instead of all.

Keys (TOML, top level)::

    engine = "auto"           # auto | wire | squashfuse_ll
    overlay = "auto"          # auto | kernel | fuse
    linger = 10.0             # seconds a server outlives its last container
    cache_mib = 64            # decoded blocks kept by one server, MiB
    stage_dir = ""            # local directory to copy squash files to in the background ($UID is filled in); "" = none
    stage_mib = 65536         # larger squash files are not copied, MiB
    log_level = "info"        # error | info | debug
    prefetch_mib = 256        # at most so much of the files a recorded profile names is read ahead, MiB; 0 = nothing
    profile = "off"           # off | auto: the first server of an image without a profile records one
    record = ""               # file a server of its own writes a profile to (set by `migrate2scratch profile`)
    runtime_dir = ""          # where servers keep their state, $UID is filled in; default: $XDG_RUNTIME_DIR/squashmount
    squash_dir = ""           # DIR of migrate2scratch
    compressor = "zstd"       # gzip | lz4 | xz | zstd
    compression_level = 3     # of zstd or gzip
    block_kib = 128           # squashfs block size, 4 … 1024 KiB, a power of two
    processors = 0            # mksquashfs threads, 0 = all
    trash_hours = 24.0        # how long a removed image stays for containers that use it, hours; 0 = not at all
"""

import os

from .errors import UsageError
from .lean import NamedTuple

SITE_FILE = "/etc/squashmount/site.toml"
SITE_FILES = ("/etc/squashmount.toml", SITE_FILE)
SITE_ONLY = frozenset(
    {
        *("stores", "scratch", "forbidden", "trusted_owners", "mount_program", "ignore_chown_errors"),
        *("hooks_dirs", "modules"),
    }
)
"""Keys of site.toml that are no settings of the mount program or `migrate2scratch`."""

_CHOICES = {
    "engine": ("auto", "wire", "squashfuse_ll"),
    "overlay": ("auto", "kernel", "fuse"),
    "profile": ("off", "auto"),
    "log_level": ("error", "info", "debug"),
    "compressor": ("gzip", "lz4", "xz", "zstd"),
}


class Config(NamedTuple):
    """All settings, checked; the module docstring explains each."""

    engine: str = "auto"
    overlay: str = "auto"
    linger: float = 10.0
    cache_mib: int = 64
    stage_dir: str = ""
    stage_mib: int = 65536
    log_level: str = "info"
    prefetch_mib: int = 256
    profile: str = "off"
    record: str = ""
    runtime_dir: str = ""
    squash_dir: str = ""
    compressor: str = "zstd"
    compression_level: int = 3
    block_kib: int = 128
    processors: int = 0
    trash_hours: float = 24.0


def load_config(environ: dict[str, str] | None = None) -> Config:
    """Read the files and the environment; UsageError names the file, the key and the allowed values."""
    env = dict(os.environ) if environ is None else environ
    config = Config()
    for path in config_files(env):
        config = merged(config, read_settings(path), where=path)
    values = {key: env[name] for key, name in variables(env).items()}
    return merged(config, dict(values), where="the environment", text=True)


def variables(env: dict[str, str]) -> dict[str, str]:
    """Return the variable of the environment that counts for each key that one is set for."""
    named = {key: name for key in Config._fields if (name := f"SQUASHMOUNT_{key.upper()}") in env}
    if "SQUASH_DIR" in env:
        named.setdefault("squash_dir", "SQUASH_DIR")
    return named


def config_files(env: dict[str, str]) -> list[str]:
    """Return the files that count, the strongest last; only existing ones."""
    if "SQUASHMOUNT_CONFIG" in env:
        return [env["SQUASHMOUNT_CONFIG"]]
    home = env.get("XDG_CONFIG_HOME") or (os.path.join(env["HOME"], ".config") if env.get("HOME") else "")
    files = [*SITE_FILES] + ([os.path.join(home, "squashmount.toml")] if home else [])
    return [path for path in files if os.access(path, os.R_OK)]


def read_settings(path: str) -> dict[str, object]:
    """Return the settings of one file, without what only the site's says. UsageError: unreadable, or not trusted."""
    table = read_table(path)
    return {key: value for key, value in table.items() if key not in SITE_ONLY} if path == SITE_FILE else table


def read_table(path: str) -> dict[str, object]:
    """Return one file as it is. UsageError when it is unreadable, or the site's and others could have changed it."""
    import tomllib  # noqa: PLC0415 - 10 ms, paid only where a file exists

    if path in SITE_FILES:
        from .trust import Trust, require_trusted  # noqa: PLC0415 - the same

        require_trusted(Trust(), path, "configuration of the site")
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as err:
        raise UsageError(f"Cannot read the configuration file {path}.", details=str(err)) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise UsageError(f"{path} is not valid TOML.", details=str(err), hint=f"squashmount-conf check {path}") from err


def merged(config: Config, values: dict[str, object], *, where: str, text: bool = False) -> Config:
    """Return the settings with some replaced (`text`: to be converted). UsageError names the place and the key."""
    types = {key: type(default) for key, default in Config._field_defaults.items()}
    checked: dict[str, object] = {}
    for key, value in values.items():
        if key not in types:
            raise UsageError(f"{where}: unknown key {key!r}.", hint="known keys: " + ", ".join(Config._fields))
        checked[key] = _converted(key, value, types[key], where=where, text=text)
    return config._replace(**checked)  # type: ignore[arg-type]


def _converted(key: str, value: object, kind: type, *, where: str, text: bool) -> object:
    wrong = UsageError(f"{where}: {key} = {value!r} is not allowed.", hint=_allowed(key, kind))
    if text and kind is not str:
        try:
            value = kind(value)
        except ValueError:
            raise wrong from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise wrong
    if key in _CHOICES and value not in _CHOICES[key]:
        raise wrong
    if isinstance(value, (int, float)) and not 0 <= value < 2**31:
        raise wrong
    if key == "block_kib" and value not in {4, 8, 16, 32, 64, 128, 256, 512, 1024}:
        raise wrong
    return value


def _allowed(key: str, kind: type) -> str:
    if key in _CHOICES:
        return f"{key} is one of " + ", ".join(_CHOICES[key])
    if key == "block_kib":
        return "block_kib is a power of two from 4 to 1024"
    return f"{key} is a {'number' if kind in {int, float} else 'string'}, not negative"
