"""A plan as LDIF for a directory, or as lines for /etc/subuid and /etc/subgid."""

import base64
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from squashmount.errors import UsageError

from .allocate import Grant
from .directory_schema import FREEIPA, Schema
from .ranges import Kind

_SAFE = re.compile(r"(?![ :<])[ -~]*(?<! )")
_SPECIAL = re.compile(r'[,+"\\<>;=#]|^ | $')


@dataclass(frozen=True)
class Tree:
    """Where ranges lie in a directory: their schema, the DN they are below, and the DN of a user, with `{name}` in it.

    `rdn` names an entry: `cn` or `uid` by the login, the attribute of the first subordinate uid by that number.
    """

    schema: Schema
    base: str
    owner: str
    rdn: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError for a template that would make all users one."""
        if not self.base:
            raise UsageError("LDIF needs the DN below which ranges lie.", hint="--ranges-dn cn=subids,cn=accounts,dc=…")
        if self.owner and "{name}" not in self.owner:
            raise UsageError(f"{self.owner!r} has no {{name}}.", hint="--owner-dn 'uid={name},cn=users,…'")


def subid_lines(grants: Sequence[Grant], kind: Kind, *, by_uid: bool = False) -> str:
    """Return the lines of the new ranges, to be appended to /etc/subuid or /etc/subgid.

    UsageError for a login that the file cannot hold.
    """
    chosen = [one for one in grants if kind in one.kinds]
    for one in chosen:
        if not by_uid and not re.fullmatch(r"[^\s:#+-][^\s:]*", one.account.name):
            raise UsageError(f"The login {one.account.name!r} cannot stand in a file of ranges.", hint="use --by-uid")
    return "".join(f"{one.account.uid if by_uid else one.account.name}:{one.start}:{one.count}\n" for one in chosen)


def ldif(grants: Sequence[Grant], tree: Tree) -> str:
    """Return the records of the new ranges, for ldapadd(1): each whole, so that it may be given twice without harm."""
    return "version: 1\n" + "".join("\n" + "".join(_record(one, tree)) for one in grants)


def _record(grant: Grant, tree: Tree) -> Iterator[str]:
    schema = tree.schema
    attributes = {"uid": (schema.subuid, schema.subuid_count), "gid": (schema.subgid, schema.subgid_count)}
    if len(grant.kinds) == 1:
        number, count = attributes[grant.kinds[0]]
        yield _line("dn", _known(grant.dn, grant))
        yield "changetype: modify\n"
        yield f"add: {number}\n{number}: {grant.start}\n-\nadd: {count}\n{count}: {grant.count}\n-\n"
        return
    owner = grant.account.dn or tree.owner.replace("{name}", escaped(grant.account.name))
    rdn = tree.rdn or ("ipaUniqueID" if schema.range_class == FREEIPA.range_class else "cn")
    value = _rdn_value(rdn, grant, tree)
    yield _line("dn", f"{rdn}={escaped(value)},{tree.base}")
    yield "changetype: add\n"
    yield "objectClass: top\n"
    yield f"objectClass: {schema.range_class}\n"
    if schema.range_class == FREEIPA.range_class:
        yield "objectClass: ipaSubordinateId\n"
    if rdn.lower() != schema.subuid.lower():
        yield _line(rdn, value)
    yield _line(schema.owner, _known(owner, grant))
    for number, count in attributes.values():
        yield f"{number}: {grant.start}\n{count}: {grant.count}\n"


def _rdn_value(rdn: str, grant: Grant, tree: Tree) -> str:
    if rdn.lower() == "ipauniqueid":
        # the same user and range give the same entry: a second ldapadd is refused instead of adding one more
        return str(uuid.uuid5(uuid.NAMESPACE_X500, f"{tree.base}/{grant.account.uid}/{grant.start}"))
    return str(grant.start) if rdn.lower() == tree.schema.subuid.lower() else grant.account.name


def _known(dn: str, grant: Grant) -> str:
    if not dn:
        raise UsageError(
            f"The DN of {grant.account.name} is not known.",
            hint="--owner-dn 'uid={name},cn=users,cn=accounts,dc=…', or read the users from the directory",
        )
    return dn


def escaped(value: str) -> str:
    """Return a value as it stands in a DN (RFC 4514, 2.4)."""
    return _SPECIAL.sub(lambda found: "\\" + found[0], value)


def _line(name: str, value: str) -> str:
    if _SAFE.fullmatch(value):
        return f"{name}: {value}\n"
    return f"{name}:: {base64.b64encode(value.encode(errors='surrogateescape')).decode()}\n"
