"""How a directory writes accounts and subordinate ranges: names of classes and attributes, and DNs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from squashmount.errors import UsageError


@dataclass(frozen=True)
class Schema:
    """Names of one schema for ranges; an entry is one range of uids, one of gids, and the DN of its owner."""

    name: str
    range_class: str
    subuid: str
    subuid_count: str
    subgid: str
    subgid_count: str
    owner: str


FREEIPA = Schema(
    "freeipa",
    "ipaSubordinateIdEntry",
    "ipaSubUidNumber",
    "ipaSubUidCount",
    "ipaSubGidNumber",
    "ipaSubGidCount",
    "ipaOwner",
)
"""60basev4.ldif of FreeIPA 4.9 and later."""

SSSD = Schema(
    "sssd",
    "subordinateIdEntry",
    "subUidNumber",
    "subUidCount",
    "subGidNumber",
    "subGidCount",
    "subidRangeOwner",
)
"""Defaults of `id_provider = ldap` of sssd 2.12 and later (sssd-ldap-attributes(5)); sites define the OIDs."""

SCHEMAS = {schema.name: schema for schema in (FREEIPA, SSSD)}


@dataclass(frozen=True)
class People:
    """Names for real users and groups (RFC 2307)."""

    account_class: str = "posixAccount"
    login: str = "uid"
    uid: str = "uidNumber"
    gid: str = "gidNumber"
    group_class: str = "posixGroup"
    group: str = "cn"
    shell: str = "loginShell"


@dataclass(frozen=True)
class Directory:
    """All names that matter in one directory. Both schemas at once, unless one is chosen."""

    schemas: tuple[Schema, ...] = (FREEIPA, SSSD)
    people: People = People()

    @property
    def attributes(self) -> list[str]:
        """Every attribute to ask for, objectClass included."""
        names = ["objectClass"]
        for schema in self.schemas:
            names += [schema.subuid, schema.subuid_count, schema.subgid, schema.subgid_count, schema.owner]
        people = self.people
        names += [people.login, people.uid, people.gid, people.group, people.shell]
        return list(dict.fromkeys(names))

    @property
    def filter(self) -> str:
        """The search filter (RFC 4515) for ranges, accounts and groups."""
        classes = [schema.range_class for schema in self.schemas]
        classes += [self.people.account_class, self.people.group_class]
        return "(|" + "".join(f"(objectClass={name})" for name in dict.fromkeys(classes)) + ")"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def directory(schema: str, changed: Iterable[str]) -> Directory:
    """Return the names of `schema` (auto, freeipa, sssd) with the changes `KEY=NAME`.

    Keys are those of Schema (except its name) and People, with - for _. UsageError for another key or an odd name.
    """
    schemas = (FREEIPA, SSSD) if schema == "auto" else (SCHEMAS[schema],)
    made = Directory(schemas)
    of_range = {item.name for item in fields(Schema)} - {"name"}
    of_people = {item.name for item in fields(People)}
    for text in changed:
        key, _, value = text.partition("=")
        key = key.replace("-", "_")
        if key not in of_range | of_people or not _NAME.fullmatch(value):
            known = ", ".join(sorted(of_range | of_people)).replace("_", "-")
            raise UsageError(f"{text!r} is no KEY=ATTRIBUTE.", hint=f"the keys are {known}")
        if key in of_people:
            made = replace(made, people=replace(made.people, **{key: value}))
        else:
            # with names of its own there is one schema, else the same attribute would be read twice
            made = replace(made, schemas=(replace(made.schemas[-1], name="site", **{key: value}),))
    return made


def normal_dn(dn: str) -> str:
    """Return a form in which two spellings of one DN are equal: case, blanks, escapes, order in a multi-valued RDN.

    Only for comparing; values whose matching rule knows case are rare in DNs of people, and no two people differ in it.
    """
    if "\\" not in dn and "+" not in dn and '"' not in dn:
        if " " not in dn:
            return dn.lower()
        return ",".join(_normal_pair(part) for part in dn.lower().split(","))
    rdns = [sorted(_normal_pair(pair) for pair in _split(rdn, "+")) for rdn in _split(_unquoted(dn.lower()), ",")]
    return ",".join("+".join(pairs) for pairs in rdns)


def _normal_pair(text: str) -> str:
    name, _, value = text.partition("=")
    return f"{name.strip()}={' '.join(value.split())}"


def _split(text: str, mark: str) -> Sequence[str]:
    return re.split(rf"(?<!\\){re.escape(mark)}", text)


def _unquoted(dn: str) -> str:
    r"""Write every special character as `\` and itself: RFC 4514 also allows `\2c`, RFC 2253 `"..."`."""
    dn = re.sub(r'"([^"]*)"', lambda found: re.sub(r"([,+])", r"\\\1", found[1]), dn)

    def letters(found: re.Match[str]) -> str:
        text = bytes.fromhex(found[0].replace("\\", "")).decode(errors="backslashreplace")
        return "".join("\\" + letter if letter in ',+"\\<>;=#' else letter for letter in text)

    return re.sub(r"(?:\\[0-9a-f]{2})+", letters, dn).lower()
