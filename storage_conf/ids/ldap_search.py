"""Ask a directory for ranges, accounts and groups: with ldapsearch, or the library ldap3.

ldapsearch is the default: it has the site's TLS, GSSAPI and ldap.conf, and is several times faster. Either way the
answer is paged, and one that is not complete is an error (A18), never half a verdict.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from squashmount.errors import DamagedError, SquashmountError, ToolError, UsageError
from squashmount.process import started

from .directory_schema import Directory
from .inventory import Inventory, from_entries
from .ldif import Entry, read_ldif

_HINTS = {
    3: "the server's time limit; ask with a bind that has none (`--bind`), or add an index on objectClass",
    4: "ask page by page (--page 1000); where that is limited, too (OpenLDAP: size.prtotal), with a bind that is not",
    8: "the server wants TLS or authentication: `--starttls`, `--bind DN`, or a Kerberos ticket (kinit)",
    10: "the server refers to another one: name that with --uri",
    11: "the server's administrative limit; ask with a bind that has none (`--bind`)",
    12: "the server cannot page: `--page 0`",
    32: "no such base: see `ldapsearch -x -s base -b '' namingContexts`",
    34: "the base is no DN",
    49: "wrong password, or no such user to bind as",
    50: "this bind may not read it",
    254: "ldapsearch could not authenticate: `--anonymous`, `--bind DN`, or a Kerberos ticket (kinit)",
    255: "the server cannot be reached, or its certificate is not trusted (ldap.conf, TLS_CACERT)",
}
"""Result codes of LDAP (RFC 4511, 4.1.9); 254, 255: ldapsearch's status for its own errors -2, -1."""


@dataclass(frozen=True)
class Search:
    """Whom to ask, and as whom. `uri` and `bases` empty: as /etc/ldap/ldap.conf says. `seconds` is for all of it."""

    names: Directory
    uri: str = ""
    bases: tuple[str, ...] = ()
    bind: str = ""
    password_file: str = ""
    anonymous: bool = False
    starttls: bool = False
    page: int = 1000
    seconds: float = 120.0
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the source is called in findings."""
        return self.uri or "LDAP"


def by_ldapsearch(search: Search) -> Inventory:
    """Ask with ldapsearch. ToolError when it fails in any way, or there is no complete answer."""
    references: list[int] = []

    def entries() -> Iterator[Entry]:
        for base in search.bases or ("",):
            yield from _run(search, base, references)

    found = from_entries(entries(), search.names, kind="ldap", source=search.title)
    return Inventory("ldap", found.source, found.ranges, found.accounts, found.groups, found.flaws, sum(references))


def _argv(search: Search, base: str) -> list[str]:
    argv = ["ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-o", "nettimeout=10"]
    if search.page:
        argv += ["-E", f"pr={search.page}/noprompt"]
    if search.uri:
        argv += ["-H", search.uri]
    if search.starttls:
        argv.append("-ZZ")
    if search.bind:
        argv += ["-x", "-D", search.bind, "-y", search.password_file]
    elif search.anonymous:
        argv.append("-x")
    if base:
        argv += ["-b", base]
    return [*argv, *search.options, search.names.filter, *search.names.attributes]


def _run(search: Search, base: str, references: list[int]) -> Iterator[Entry]:
    with tempfile.TemporaryFile() as errors, started(*_argv(search, base), stderr=errors) as child:
        assert child.stdout
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(search.seconds, stop)
        watch.daemon = True
        watch.start()
        reader = read_ldif(child.stdout, name=f"what ldapsearch says of {search.title}", wanted=search.names.attributes)
        damage: DamagedError | None = None
        try:
            yield from reader.entries()
        except DamagedError as err:
            if child.poll() is None and child.stdout.read(1):
                raise  # it would go on: it is not its end that was cut off
            damage = err
        finally:
            watch.cancel()
        code = child.wait()
        if late.is_set():
            hint = "is the server reachable? --timeout SECONDS gives it longer"
            raise ToolError(f"ldapsearch did not finish in {search.seconds:g} s (A18).", hint=hint)
        if code:
            errors.seek(0)
            raise _failed(code, errors.read(4096).decode(errors="backslashreplace"), "ldapsearch")
        if damage:
            raise damage
        references.append(reader.references)


def _failed(code: int, said: str, program: str) -> SquashmountError:
    return ToolError(
        f"A18: {program} ended with code {code}: there is no complete answer, so nothing can be said.",
        details=said.strip(),
        hint=_HINTS.get(code, "run it by hand, or try it with `--ldap-option=-d1`"),
    )


# -- the library


def by_ldap3(search: Search) -> Inventory:
    """Ask with the library ldap3. UsageError without it, ToolError when there is no complete answer."""
    if not search.uri or not search.bases:
        raise UsageError("ldap3 reads no ldap.conf.", hint="name the server with --uri and the base with --base")
    references: list[int] = []
    try:
        found = from_entries(_asked(search, references), search.names, kind="ldap", source=search.title)
    except ImportError as err:
        raise UsageError("The library ldap3 is not installed.", hint="pip install 'squashmount[ldap]'") from err
    return Inventory("ldap", found.source, found.ranges, found.accounts, found.groups, found.flaws, sum(references))


def _asked(search: Search, references: list[int]) -> Iterator[Entry]:
    from ldap3.core.exceptions import LDAPException  # noqa: PLC0415 - optional, and slow to import

    try:
        with _connection(search) as connection:
            for base in search.bases:
                yield from _searched(connection, base, search, references)
    except LDAPException as err:
        raise ToolError(f"A18: {search.title} did not answer.", details=str(err), hint=_HINTS[255]) from err


def _connection(search: Search) -> Any:
    import ssl  # noqa: PLC0415 - the same

    import ldap3  # noqa: PLC0415 - the same

    tls = ldap3.Tls(validate=ssl.CERT_REQUIRED)
    server = ldap3.Server(search.uri, get_info=ldap3.NONE, connect_timeout=10, tls=tls)
    secret = None
    if search.bind:
        with open(search.password_file, encoding="utf-8") as file:
            secret = file.read()
    begin = ldap3.AUTO_BIND_TLS_BEFORE_BIND if search.starttls else ldap3.AUTO_BIND_NO_TLS
    return ldap3.Connection(
        server,
        search.bind or None,
        secret,
        auto_bind=begin,
        read_only=True,
        receive_timeout=int(search.seconds) or 1,
        check_names=False,
        return_empty_attributes=False,
    )


def _searched(connection: Any, base: str, search: Search, references: list[int]) -> Iterator[Entry]:
    found = connection.extend.standard.paged_search(
        base, search.names.filter, attributes=search.names.attributes, paged_size=search.page or None, generator=True
    )
    for item in found:
        if item["type"] == "searchResEntry":
            values = {name.partition(";")[0].lower(): list(raw) for name, raw in item["raw_attributes"].items() if raw}
            yield Entry(item["dn"], 0, values)
        elif item["type"] == "searchResRef":
            references.append(1)
    # ldap3 ends without a word at a size or time limit (core.results.DO_NOT_RAISE_EXCEPTIONS)
    result = connection.result
    if result["result"]:
        raise _failed(result["result"], f"{result['description']}: {result['message']}", "ldap3")


def ldap_conf(name: str) -> dict[str, str]:
    """Return the options of ldap.conf(5), names in upper case; empty without the file."""
    found = {}
    if os.path.exists(name):
        with open(name, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split("#")[0].split(None, 1)
                if len(words) == 2:
                    found[words[0].upper()] = words[1].strip()
    return found
