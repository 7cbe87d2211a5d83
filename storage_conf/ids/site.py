"""What the checks of a whole site look at: one source of ranges, and how this node (or its image) uses it."""

import configparser
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from squashmount.errors import ToolError, UsageError
from squashmount.process import run

from ..doctor.node import Node
from .inventory import Inventory, from_files
from .ldap_search import Search, ldap_conf
from .ranges import Owners
from .source_options import subid_word

Numbers = tuple[int, ...]

_PACKAGES = {
    "shadow": ("uidmap", "shadow-utils-subid", "shadow-utils"),
    "sssd": ("sssd-common", "sssd-client"),
    "podman": ("podman",),
}


@dataclass(frozen=True)
class Formula:
    """`base + (uid - uid_min) * count`, as SUB_UID_DETERMINISTIC of login.defs (shadow 4.20) computes it."""

    base: int
    count: int
    uid_min: int

    @classmethod
    def of(cls, text: str) -> "Formula":
        """Return what BASE:COUNT:UID_MIN says; UsageError where it says nothing."""
        try:
            base, count, uid_min = map(int, text.split(":"))
        except ValueError:
            base = count = uid_min = -1
        if min(base, uid_min) < 0 or count < 1:
            raise UsageError(f"{text!r} is no BASE:COUNT:UID_MIN.", hint="such as 2147483648:65536:1000")
        return cls(base, count, uid_min)

    def start(self, uid: int) -> int:
        """Return where the range of a uid begins; it may lie past the end of all ids."""
        return self.base + (uid - self.uid_min) * self.count


@dataclass(frozen=True)
class Site:
    """Everything the checks may ask. Tests make one of parts; `survey` makes it of a node."""

    inventory: Inventory
    local: Inventory = field(default_factory=lambda: Inventory("files", "/etc"))
    word: str = "files"
    plugin: bool = True
    login_defs: Mapping[str, str] = field(default_factory=dict)
    sssd: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ldap_conf: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Numbers] = field(default_factory=dict)
    config_check: str = ""
    search: Search | None = None
    formula: Formula | None = None
    write_probe: str = ""

    @cached_property
    def owners(self) -> Owners:
        """The accounts of the source, then those of the node."""
        return Owners((*self.inventory.accounts, *self.local.accounts))

    @property
    def from_directory(self) -> bool:
        """Whether the ranges come from somewhere else than the files of a node."""
        return self.inventory.kind != "files"

    def number(self, name: str, default: int) -> int:
        """Return a number of login.defs, which may be hexadecimal or octal as in C."""
        try:
            return int(self.login_defs.get(name, ""), 0)
        except ValueError:
            return default


def survey(inventory: Inventory, node: Node, *, search: Search | None, formula: Formula | None) -> Site:
    """Look at how a node uses the source."""
    word = subid_word(node)
    login_defs = read_login_defs(node)
    return Site(
        inventory,
        local=inventory if inventory.kind == "files" else from_files(node),
        word=word,
        plugin=word == "files" or has_plugin(node, word),
        login_defs=login_defs,
        sssd=read_sssd(node),
        ldap_conf=ldap_conf(node.path("/etc/ldap/ldap.conf")) or ldap_conf(node.path("/etc/openldap/ldap.conf")),
        versions=versions(node),
        config_check=_config_check(node),
        search=search if inventory.kind == "ldap" else None,
        formula=formula or deterministic(login_defs),
    )


def deterministic(login_defs: Mapping[str, str]) -> Formula | None:
    """Return the formula that login.defs demands, None where it demands none."""
    if login_defs.get("SUB_UID_DETERMINISTIC", "no").lower() != "yes":
        return None
    try:
        base, count, uid_min = (
            int(login_defs.get(name, default), 0)
            for name, default in (("SUB_UID_MIN", "65536"), ("SUB_UID_COUNT", "65536"), ("UID_MIN", "1000"))
        )
    except ValueError:
        return None
    return Formula(base, count, uid_min)


def read_login_defs(node: Node) -> dict[str, str]:
    """Return the settings of /etc/login.defs; the last of two counts, as getdef.c reads it."""
    rows = (line.split("#")[0].split(None, 1) for line in (node.text("/etc/login.defs") or "").split("\n"))
    return {row[0]: row[1].strip().strip('"') for row in rows if len(row) == 2}


def read_sssd(node: Node) -> dict[str, dict[str, str]]:
    """Return the sections of sssd.conf and its conf.d; empty without the right to read it (mode 0600)."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    names = ["/etc/sssd/sssd.conf"]
    try:
        below = sorted(os.listdir(node.path("/etc/sssd/conf.d")))
    except OSError:
        below = []
    names += [f"/etc/sssd/conf.d/{name}" for name in below if name.endswith(".conf") and name[0] != "."]
    for name in names:
        try:
            parser.read_string(node.text(name) or "", name)
        except configparser.Error:
            continue  # sssctl config-check says which line
    return {section: dict(parser.items(section)) for section in parser.sections()}


def has_plugin(node: Node, word: str) -> bool:
    """Tell whether libsubid_WORD.so lies where the loader looks; shadow goes on with files without it."""
    name = f"libsubid_{word}.so"
    for top in ("/usr/lib64", "/usr/lib", "/lib64", "/lib", "/usr/local/lib"):
        folder = node.path(top)
        if os.path.exists(os.path.join(folder, name)):
            return True
        try:
            below = os.listdir(folder)
        except OSError:
            continue
        if any(os.path.exists(os.path.join(folder, item, name)) for item in below if item.endswith("-linux-gnu")):
            return True
    return False


def versions(node: Node) -> dict[str, Numbers]:
    """Return the versions of shadow, sssd and Podman that are installed, as far as dpkg or rpm knows them."""
    names = [name for packages in _PACKAGES.values() for name in packages]
    root = [] if node.root == "/" else [f"--root={node.root}"]
    text = ""
    for argv in (
        ("dpkg-query", *root, "-W", "-f=${db:Status-Abbrev}|${Package}|${source:Upstream-Version}\n", *names),
        ("rpm", *root, "-q", "--qf=ii |%{NAME}|%{VERSION}\n", *names),
    ):
        try:
            text += run(*argv, ok=tuple(range(20)), timeout=10)
        except ToolError:
            continue
    found: dict[str, Numbers] = {}
    for line in text.splitlines():
        state, _, rest = line.partition("|")
        package, _, version = rest.partition("|")
        for name, packages in _PACKAGES.items():
            numbers = numbers_of(version)
            if package in packages and state.startswith("ii") and numbers:
                found.setdefault(name, numbers)
    return found


def numbers_of(version: str) -> Numbers:
    """Return the numbers a version begins with: `4.13+dfsg1` is (4, 13)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _config_check(node: Node) -> str:
    """Return what sssctl finds wrong; empty when nothing is, without sssctl, and for others than root."""
    if node.root != "/" or node.uid != 0 or not os.path.exists("/etc/sssd/sssd.conf"):
        return ""
    try:
        run("sssctl", "config-check", timeout=20)
    except ToolError as err:
        return "" if "not installed" in err.brief or "did not finish" in err.brief else err.details or err.brief
    return ""
