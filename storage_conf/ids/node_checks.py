"""Checks of how nodes and directory are set up for subordinate ids: A11, A12, A15 to A19."""

from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from ..finding import error, info, warning
from .ranges import ENOUGH
from .site import Site
from .verdict import Verdict, about, number

MANY_LINES = 1000
_CACHE_SECONDS = 5400
_LOOPBACK = ("localhost", "127.", "::1")


def large_files(site: Site) -> Iterator[Verdict]:
    """A11: files are short where shadow looks up the owner of every line (4.20 and later)."""
    lines = Counter(item.source for item in site.local.ranges)
    if site.versions.get("shadow", (0,)) >= (4, 20):
        yield from about(
            warning,
            "A11",
            "Long files of ranges, and shadow 4.20 or later.",
            "It asks for the account of every line, for each lookup: 1,000 lines are seconds with a cold sssd, 20,000 "
            "are minutes, whether they begin with a name or a uid.",
            "put the ranges into LDAP with `subid: sss`, or on each node only the lines of its users",
            [f"{path}: {number(many, 'line')}" for path, many in lines.items() if many > MANY_LINES],
        )


def login_defs(site: Site) -> Iterator[Verdict]:
    """A12: useradd makes no ranges beside those of the directory, and has room for all users of the files."""
    if site.word != "files":
        names = [name for name in ("SUB_UID_COUNT", "SUB_GID_COUNT") if site.number(name, ENOUGH) != 0]
        yield from about(
            warning,
            "A12",
            "useradd gives users of this node ranges beside those of the directory.",
            f"Its numbers begin at {site.number('SUB_UID_MIN', 100000)} and know nothing of the directory; with a "
            "plugin that cannot write, useradd fails (SSSD #8329).",
            "write SUB_UID_COUNT 0 and SUB_GID_COUNT 0 into /etc/login.defs",
            [f"{name} is {site.number(name, ENOUGH)}" for name in names],
        )
        return
    if site.from_directory:
        return
    lowest, highest = site.number("SUB_UID_MIN", 100000), site.number("SUB_UID_MAX", 600100000)
    room = max(0, highest - lowest + 1) // max(1, site.number("SUB_UID_COUNT", ENOUGH))
    users = sum(item.login and item.uid >= site.number("UID_MIN", 1000) for item in site.inventory.accounts)
    if site.number("SUB_UID_COUNT", ENOUGH) and users > room:
        yield from about(
            warning,
            "A12",
            f"login.defs has room for {room} ranges, and there are {users} users.",
            "useradd fails for the next one: `Can't get unique subordinate UID range`.",
            "set SUB_UID_MAX and SUB_GID_MAX to 4294967294 (capacity: squashmount-conf ids plan)",
            [f"SUB_UID_MIN {lowest}, SUB_UID_MAX {highest}"],
        )


def sssd(site: Site) -> Iterator[Verdict]:
    """A15: sssd can answer for ranges, and how long it repeats an old answer."""
    if not site.plugin:
        yield from about(
            error,
            "A15",
            f"nsswitch.conf says `subid: {site.word}`, and libsubid_{site.word}.so is not installed here.",
            "shadow goes on with /etc/subuid without a word: this node gives users other ranges than the next one.",
            "install the plugin (sssd-common on Debian, sssd-client on Red Hat) on every node, or remove the line",
            [f"libsubid_{site.word}.so"],
        )
    version = site.versions.get("sssd")
    for section, options in site.sssd.items():
        if not section.startswith("domain/") or site.word != "sss":
            continue
        if options.get("id_provider") == "ldap" and version and version < (2, 12):
            yield from about(
                error,
                "A15",
                f"sssd {'.'.join(map(str, version))} does not answer for ranges with id_provider = ldap.",
                "Only its provider for FreeIPA does before 2.12 (SSSD #8030): `Error fetching ranges`.",
                "sssd 2.12 or later; until then files made from the directory",
                [section],
            )
        seconds = options.get("entry_cache_user_timeout", options.get("entry_cache_timeout", str(_CACHE_SECONDS)))
        if seconds.isdigit() and int(seconds) > _CACHE_SECONDS:
            yield from about(
                info,
                "A15",
                f"sssd repeats an answer for {int(seconds) // 60} minutes.",
                "So long nodes differ after a change of ranges; neither sss_cache nor a restart clears them.",
                "after a change: stop sssd, delete /var/lib/sss/db/*, start it, on every node",
                [section],
            )
    if site.config_check:
        yield from about(
            warning,
            "A15",
            "sssctl config-check finds mistakes in sssd.conf.",
            "sssd ignores what it does not know, such as options for ranges of a later version.",
            "sssctl config-check",
            site.config_check.splitlines(),
        )


def access(site: Site) -> Iterator[Verdict]:
    """A16: the ranges can be read by who asks, and written by nobody but the administrator."""
    found = site.inventory
    if found.kind in {"ldap", "ldif", "nss"} and found.accounts and not found.ranges:
        yield from about(
            error,
            "A16",
            f"{found.source} has {number(len(found.accounts), 'account')} and not one range.",
            "The ranges may not be read by who asks (ACL), lie below another base, are in another schema, or there are "
            "none.",
            "ask with the bind that nodes have; --base, --schema, --attribute",
            [found.source],
        )
    if site.write_probe:
        yield from about(
            error,
            "A16",
            "The ranges in the directory can be changed by who asked just now.",
            "Who can write a range can give himself everybody's ids, root's included: newuidmap asks nobody else.",
            "allow only the administrator to write below the base of the ranges",
            [site.write_probe],
        )


def transport(site: Site) -> Iterator[Verdict]:
    """A17: answers of the directory cannot be forged on the way."""
    open_uris = []
    if site.search is not None:
        uris = site.search.uri or site.ldap_conf.get("URI", "")
        tls = site.search.starttls or any(option.startswith("-Z") for option in site.search.options)
        open_uris += [] if tls else [f"this question: {uri}" for uri in _plain(uris)]
    for section, options in site.sssd.items():
        if section.startswith("domain/") and options.get("id_provider") == "ldap":
            tls = options.get("ldap_id_use_start_tls", "").lower() == "true"
            default = site.versions.get("sssd", (0,)) >= (2, 12) and "ldap_id_use_start_tls" not in options
            uris = options.get("ldap_uri", "").replace(",", " ")
            open_uris += [] if tls or default else [f"sssd.conf, {section}: {uri}" for uri in _plain(uris)]
        if options.get("ldap_tls_reqcert", "").lower() in {"never", "allow"}:
            open_uris.append(f"sssd.conf, {section}: ldap_tls_reqcert = {options['ldap_tls_reqcert']}")
    if site.ldap_conf.get("TLS_REQCERT", "").lower() in {"never", "allow"}:
        open_uris.append(f"ldap.conf: TLS_REQCERT {site.ldap_conf['TLS_REQCERT']}")
    yield from about(
        warning,
        "A17",
        "The directory is asked without TLS, or its certificate is not looked at.",
        "Who can answer in its place gives any user any id, root's included.",
        "ldaps://, or StartTLS: --starttls here, ldap_id_use_start_tls = true in sssd.conf; TLS_REQCERT demand",
        open_uris,
    )


def _plain(uris: str) -> list[str]:
    """Return those that go over a network and are not ldaps: or ldapi:."""
    found = []
    for uri in uris.split():
        parts = urlsplit(uri)
        if parts.scheme == "ldap" and not (parts.hostname or "localhost").startswith(_LOOPBACK):
            found.append(uri)
    return found


def complete(site: Site) -> Iterator[Verdict]:
    """A18: everything was answered. A search cut off ends the command; what other servers have is told here."""
    found = site.inventory
    if found.kind in {"ldap", "ldif"} and found.ranges and not found.accounts:
        yield from about(
            warning,
            "A18",
            f"{found.source} has {number(len(found.ranges), 'range')} and no account.",
            "Whether ranges hold ids of real users (A03), have an owner (A01), and who has none (A05) was not seen.",
            "a --base above users and ranges, or two of them; a dump of both",
            [found.source],
        )
    if site.inventory.references:
        yield from about(
            warning,
            "A18",
            f"{site.inventory.source} named other servers {number(site.inventory.references, 'time')}; "
            "they were not asked.",
            "Users and ranges they have are in none of these findings.",
            "ask each with --uri and --base; or narrow --base, if they have no users",
            [f"{site.inventory.references} references"],
        )


def shadow_bug(site: Site) -> Iterator[Verdict]:
    """A19: useradd does not make overlapping ranges (shadow 4.20.0 and 4.20.1)."""
    version = site.versions.get("shadow", ())
    if version[:2] == (4, 20) and version < (4, 20, 2):
        yield from about(
            warning,
            "A19",
            f"shadow {'.'.join(map(str, version))} makes ranges that overlap.",
            "new_subid_range() of 4.20.0 and 4.20.1 looks for a gap in the wrong place (fixed in 4.20.2).",
            "upgrade shadow, and check the ranges made since",
            ["useradd, usermod"],
        )
