"""The script of /etc/profile.d, plain sh: which storage.conf, and which stores, a user who logs in gets.

Podman <= 5 reads no stores from the system's files for rootless users, and no Podman knows stores by group. So a login
shell names a file in a variable; who has stores of his own audience gets a copy with these in his runtime directory.
"""

import shlex
from collections.abc import Iterable

from .site import Store

_HEAD = """\
# Written by `squashmount-conf generate --site`, for Podman 4 and 5 (Podman 6 has drop-ins and needs no variable).
# A rootless user does not get additionalimagestores or mount_program from /etc/containers/storage.conf; a file
# named in this variable is read whole. Root and users with a storage.conf of their own keep what they have.
if [ "$(id -u)" != 0 ] && [ -e BASE ] && [ -z "${CONTAINERS_STORAGE_CONF:-}" ] &&
    [ ! -e "${XDG_CONFIG_HOME:-$HOME/.config}/containers/storage.conf" ]; then
    export CONTAINERS_STORAGE_CONF=BASE
"""

_HEAD_6 = """\
# Written by `squashmount-conf generate --site`: stores by user and group, which no file of Podman 6 can say.
if [ "$(id -u)" != 0 ] && [ -z "${CONTAINERS_STORAGE_CONF_OVERRIDE:-}" ]; then
"""

_COPY = """\
    if [ -n "$squashmount_stores" ] && [ -O "${XDG_RUNTIME_DIR:-}" ] && [ -w "$XDG_RUNTIME_DIR" ] &&
        [ "$(grep -c '^ *additionalimagestores = \\[.*\\]$' BASE)" = 1 ]; then
        squashmount_file=$XDG_RUNTIME_DIR/squashmount-storage.conf
        if sed "s|^ *additionalimagestores = \\[|&${squashmount_stores}|" BASE >"$squashmount_file.$$" &&
            mv -f "$squashmount_file.$$" "$squashmount_file"; then
            export CONTAINERS_STORAGE_CONF=$squashmount_file
        fi
    fi
    unset squashmount_stores squashmount_mine squashmount_word squashmount_file
"""

_OVERRIDE = """\
    if [ -n "$squashmount_stores" ] && [ -O "${XDG_RUNTIME_DIR:-}" ] && [ -w "$XDG_RUNTIME_DIR" ]; then
        squashmount_file=$XDG_RUNTIME_DIR/squashmount-storage.conf
        if printf '[storage.options]\\nadditionalimagestores = [%s%s]\\n' "$squashmount_stores" EVERYBODY \\
            >"$squashmount_file.$$" && mv -f "$squashmount_file.$$" "$squashmount_file"; then
            export CONTAINERS_STORAGE_CONF_OVERRIDE=$squashmount_file
        fi
    fi
    unset squashmount_stores squashmount_mine squashmount_word squashmount_file
"""


def script(stores: Iterable[Store], everybody: Iterable[str], *, podman: int, base: str) -> str:
    """Return the text; "" where Podman 6 needs none. `base` is the file with the stores of everybody."""
    some = [store for store in stores if not store.everybody and (store.users or store.groups)]
    if podman >= 6:
        if not some:
            return ""
        last = ", ".join(f'"{path}"' for path in everybody)
        return _HEAD_6 + _chosen(some) + _OVERRIDE.replace("EVERYBODY", shlex.quote(last)) + "fi\n"
    return _HEAD.replace("BASE", base) + (_chosen(some) + _COPY.replace("BASE", base) if some else "") + "fi\n"


def _chosen(stores: Iterable[Store]) -> str:
    """Return the lines that put the stores of this user into squashmount_stores: first his own, then his groups'."""
    lines = ["    squashmount_stores=", '    squashmount_mine=" $(id -Gn) $(id -G) "']
    for words, one in (('" $(id -un) $(id -u) "', "users"), ('"$squashmount_mine"', "groups")):
        for store in stores:
            names = getattr(store, one)
            if names:
                lines += [
                    f"    case {words} in",
                    "    " + " | ".join(f'*" {name} "*' for name in names) + ")",
                    "        case $squashmount_stores in",
                    f"""        *'"{store.path}"'*) ;;""",
                    f"""        *) squashmount_stores="$squashmount_stores"'"{store.path}", ' ;;""",
                    "        esac",
                    "        ;;",
                    "    esac",
                ]
    return "\n".join(lines) + "\n"
