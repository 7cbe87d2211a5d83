"""The files of the module ssh inside one container: settings of sshd and ssh, and the scripts around them.

The environment goes to sessions as arguments of env(1), each in single quotes: any value and any name arrives as it is,
which neither ~/.ssh/environment, nor SetEnv of sshd_config(5), nor `export` of a shell can say.
"""

from squashmount.lean import Iterable

from .ssh_places import LIBRARIES, PLACE

ALIAS = "squashmount-job"
"""The name under which known_hosts has the key of all containers of the job, whatever node or port is asked for."""

_RUN_TIME = ("HOME", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
"""Set by the runtime when it starts the command: not in the configuration."""

_LOADER = f"{LIBRARIES}/ld"
_SEARCH = f"--library-path {LIBRARIES} {LIBRARIES}"
_OURS = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GLIBC_TUNABLES")
_UNSET = f"unset {' '.join(_OURS)}"


def quoted(text: str) -> str:
    """Return one word of a shell that means exactly `text`."""
    return "'" + text.replace("'", "'\\''") + "'"


def assignments(entries: Iterable[str]) -> str:
    """Return the words for env(1) that set NAME=value entries; what is no such entry is left out."""
    return " ".join(quoted(entry) for entry in entries if entry.find("=") > 0 and "\0" not in entry)


def start(entries: list[str], *, port: int, strict: bool, watched: bool) -> str:
    """Return the script that starts sshd and becomes the container's command, with the environment it came with.

    `watched`: where the container has no process ids of its own, `watch` ends what nobody else would.
    """
    watch = f"/bin/sh {PLACE}/watch $$ </dev/null >/dev/null 2>&1 &\n" if watched else ""
    given = " ".join(f'${{{name}+"{name}=${name}"}}' for name in _RUN_TIME)
    return f"""#!/bin/sh
(
{_UNSET}
OPENSSL_CONF=/dev/null; export OPENSSL_CONF
{PLACE}/bin/sshd -f {PLACE}/sshd_config -E {PLACE}/run/log </dev/null >/dev/null || exit
# sshd writes it when it listens
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ ! -s {PLACE}/run/pid ] || exit 0
    while read -r line; do
      case $line in *"Cannot bind any address"*) exit 1 ;; esac
    done <{PLACE}/run/log
    sleep 0.02 2>/dev/null || sleep 1 || exit
  done
done
exit 1
) || {{
  echo 'squashmount: sshd does not listen on port {port}:' >&2
  while read -r line; do printf '%s\\n' "  $line"; done <{PLACE}/run/log >&2
{"  exit 1" if strict else "  :"}
}}
{watch}{_UNSET}
exec {_LOADER} {_SEARCH}/env -i -- {given} {assignments(entries)} "$@"
"""


WATCH = """#!/bin/sh
# Every other process of this mount namespace, which is the container, ends with its command.
trap '' HUP INT QUIT TERM
while kill -0 "$1" 2>/dev/null; do sleep 1; done
for process in /proc/[0-9]*; do
  [ "$process" = "/proc/$$" ] || ! [ "$process/ns/mnt" -ef "/proc/$$/ns/mnt" ] || kill -KILL "${process#/proc/}"
done 2>/dev/null
"""


def session(entries: list[str]) -> str:
    """Return the script that each session is: the user's command or shell, with the container's environment.

    What sshd sets for the session comes first, where the container says otherwise (HOME), or last, where only it knows.
    """
    return f"""#!/bin/sh
shell=${{SHELL:-/bin/sh}}
if [ -n "${{SSH_ORIGINAL_COMMAND+x}}" ]; then set -- "$shell" -c "$SSH_ORIGINAL_COMMAND"; else set -- "$shell" -l; fi
[ -z "${{SSH_TTY-}}" ] || set -- "SSH_TTY=$SSH_TTY" "TERM=${{TERM-dumb}}" "$@"
{_UNSET}
exec {_LOADER} {_SEARCH}/env -i -- "HOME=$HOME" "USER=$USER" "LOGNAME=$LOGNAME" "SHELL=$shell" {assignments(entries)} \\
  "SSH_CLIENT=${{SSH_CLIENT-}}" "SSH_CONNECTION=${{SSH_CONNECTION-}}" "$@"
"""


def sshd_config(port: int, programs: Iterable[str]) -> str:
    """Return sshd_config(5): the job's key and nothing else opens the door."""
    lines = [
        f"Port {port}",
        f"HostKey {PLACE}/host",
        f"AuthorizedKeysFile {PLACE}/authorized_keys",
        "AuthenticationMethods publickey",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        # the old name of KbdInteractiveAuthentication, which sshd before 8.7 does not know
        "ChallengeResponseAuthentication no",
        "PermitRootLogin prohibit-password",
        # owners that the container's user namespace does not map are nobody's
        "StrictModes no",
        "UsePAM no",
        "UseDNS no",
        "PermitUserEnvironment no",
        "PermitUserRC no",
        "AllowAgentForwarding no",
        "X11Forwarding no",
        "PrintMotd no",
        "PrintLastLog no",
        "LoginGraceTime 60",
        # a tree of launchers comes all at once
        "MaxStartups 200:30:1000",
        f"PidFile {PLACE}/run/pid",
        f"Subsystem sftp {PLACE}/bin/sftp-server",
        f"ForceCommand /bin/sh {PLACE}/session",
    ]
    if "sshd-session" in programs:
        lines.append(f"SshdSessionPath {PLACE}/bin/sshd-session")
    if "sshd-auth" in programs:
        lines.append(f"SshdAuthPath {PLACE}/bin/sshd-auth")
    return "\n".join(lines) + "\n"


def ssh_config(hosts: list[str], first_port: int) -> str:
    """Return ssh_config(5) for the nodes of the job (for every host when they are not known)."""
    lines = [
        f"Host {' '.join(hosts) if hosts else '*'}",
        f"  Port {first_port}",
        f"  IdentityFile {PLACE}/id",
        "  IdentitiesOnly yes",
        "  PreferredAuthentications publickey",
        f"  HostKeyAlias {ALIAS}",
        "  StrictHostKeyChecking yes",
        f"  UserKnownHostsFile {PLACE}/known_hosts",
        "  GlobalKnownHostsFile /dev/null",
        "  UpdateHostKeys no",
        "  CheckHostIP no",
        # the others start seconds later; ssh tries once a second
        "  ConnectionAttempts 20",
        "Match all",
    ]
    return "\n".join(lines) + "\n"


def known_hosts(public: str) -> str:
    """Return known_hosts with the one key."""
    return f"{ALIAS} {' '.join(public.split()[:2])}\n"


def wrapper(name: str, programs: Iterable[str], *, named: bool) -> str:
    """Return a script that runs a program of the host with its own libraries; its children do not get them.

    `named`: the loader can tell it by what name it was called, under which ssh calls itself for a jump (-J).
    """
    name0 = f" --argv0 {PLACE}/bin/{name}" if named else ""
    options = ""
    if name == "sshd" and "sshd-session" not in programs:
        options = " -r"  # else it starts itself again, without these libraries; gone in OpenSSH 9.8
    if name in {"scp", "sftp"}:
        options = f" -S {PLACE}/bin/ssh"  # the path in them is the host's
    return f'#!/bin/sh\nexec {_LOADER}{name0} {_SEARCH}/{name}{options} "$@"\n'
