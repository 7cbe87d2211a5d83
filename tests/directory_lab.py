"""A real directory inside scripts/lab: slapd with 20,000 users, and sssd that asks it for users and their ranges.

The ranges are there twice, in FreeIPA's schema and in that of sssd (2.12 and later). Debian's sssd answers for
subordinate ids with its provider for FreeIPA only, which takes this slapd for a FreeIPA server: users have the DN it
guesses, it has a keytab (nobody asks what is in it), SASL's ANONYMOUS and port 389. A trick for tests, not for a site.
"""

import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest
from lab import Done, User, run, wait_for

SUFFIX = "dc=example,dc=org"
USERS = f"cn=users,cn=accounts,{SUFFIX}"
FREEIPA = f"cn=subids,cn=accounts,{SUFFIX}"
PLAIN = f"cn=subids,{SUFFIX}"
"""Where the ranges are in FreeIPA's schema, and in sssd's."""
SECOND_SUFFIX = "dc=example,dc=com"
"""An empty directory beside the large one; users may write their own ranges there."""
ADMIN, PASSWORD = "cn=admin", "secret"
FIRST_UID, FIRST_RANGE, COUNT = 20000, 1 << 31, 65536
SIZE = 20000
LIMIT = 500
"""Entries a search without paging gets, as in OpenLDAP by default."""

_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
NEEDS_DIRECTORY = pytest.mark.skipif(
    not all(shutil.which(program, path="/usr/sbin:/usr/bin") for program in ("slapd", "sssd", "ldapsearch"))
    or not all((_LIBRARIES / name).exists() for name in ("libsubid_sss.so", "libnss_sss.so.2", "sssd/libsss_ipa.so")),
    reason="needs slapd, ldap-utils, sssd-common, sssd-ldap, sssd-ipa, libnss-sss, libsasl2-modules",
)

_SCHEMA = """
attributetype ( 2.16.840.1.113730.3.8.23.7 NAME 'ipaSubUidNumber'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 2.16.840.1.113730.3.8.23.8 NAME 'ipaSubUidCount'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 2.16.840.1.113730.3.8.23.10 NAME 'ipaSubGidNumber'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 2.16.840.1.113730.3.8.23.11 NAME 'ipaSubGidCount'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 2.16.840.1.113730.3.8.23.13 NAME 'ipaOwner' SUP distinguishedName )
attributetype ( 2.16.840.1.113730.3.8.3.1 NAME 'ipaUniqueID'
  EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
objectclass ( 2.16.840.1.113730.3.8.24.4 NAME 'ipaSubordinateId' SUP top AUXILIARY
  MUST ipaOwner MAY ( ipaSubUidNumber $ ipaSubUidCount $ ipaSubGidNumber $ ipaSubGidCount ) )
objectclass ( 2.16.840.1.113730.3.8.24.5 NAME 'ipaSubordinateIdEntry' SUP top STRUCTURAL
  MUST ipaUniqueID MAY description )
attributetype ( 1.3.6.1.4.1.55555.1.1 NAME 'subUidNumber'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.55555.1.2 NAME 'subUidCount'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.55555.1.3 NAME 'subGidNumber'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.55555.1.4 NAME 'subGidCount'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.55555.1.5 NAME 'subidRangeOwner' SUP distinguishedName )
objectclass ( 1.3.6.1.4.1.55555.2.1 NAME 'subordinateIdEntry' SUP top STRUCTURAL
  MUST cn MAY ( subidRangeOwner $ subUidNumber $ subUidCount $ subGidNumber $ subGidCount ) )
"""

_SLAPD = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
include {top}/subid.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {top}/slapd.pid
sasl-secprops none
sizelimit size.soft={limit} size.hard={limit} size.prtotal=unlimited
threads 4
"""

_DATABASE = """
database mdb
suffix "{suffix}"
rootdn "{admin},{suffix}"
rootpw {password}
directory {directory}
maxsize 1073741824
dbnosync
index objectClass,uid,cn,uidNumber,gidNumber,memberUid,ipaOwner,subidRangeOwner eq
{acl}
"""
_READ_ONLY = "access to attrs=userPassword by anonymous auth by * none\naccess to * by * read"
_OWN_RANGES = """access to attrs=userPassword by anonymous auth by * none
access to filter=(subidRangeOwner=*) by dnattr=subidRangeOwner write by * read
access to * by * read"""

_SSSD = """
[sssd]
services = nss
domains = example.org
[nss]
# unknown names are asked again at once: tests give ranges to users who had none
entry_negative_timeout = 0
[domain/example.org]
auth_provider = none
access_provider = permit
ldap_search_base = {suffix}
ldap_user_search_base = cn=accounts,{suffix}
ldap_group_search_base = cn=accounts,{suffix}
ldap_opt_timeout = 3
ldap_network_timeout = 3
"""

_AS_FREEIPA = f"""
id_provider = ipa
chpass_provider = none
subdomains_provider = none
selinux_provider = none
sudo_provider = none
autofs_provider = none
hostid_provider = none
session_provider = none
ipa_server = ldap.example.org
ipa_domain = example.org
ipa_hostname = node1.example.org
ipa_subid_ranges_search_base = {FREEIPA}
krb5_realm = EXAMPLE.ORG
dyndns_update = false
ldap_sasl_mech = ANONYMOUS
ldap_sasl_minssf = 0
ldap_group_object_class = posixGroup
ldap_user_uuid = entryUUID
ldap_group_uuid = entryUUID
"""

# What sssd 2.12 and later can do, as a site would configure it: no trick.
GENERIC = f"""
id_provider = ldap
ldap_uri = ldap://ldap.example.org
ldap_id_use_start_tls = false
ldap_subid_ranges_search_base = {PLAIN}
"""
GENERIC_FREEIPA = f"""
id_provider = ldap
ldap_uri = ldap://ldap.example.org
ldap_id_use_start_tls = false
ldap_subid_ranges_search_base = {FREEIPA}
ldap_subuid_object_class = ipaSubordinateId
ldap_subuid_number = ipaSubUidNumber
ldap_subuid_count = ipaSubUidCount
ldap_subgid_number = ipaSubGidNumber
ldap_subgid_count = ipaSubGidCount
ldap_subid_range_owner = ipaOwner
"""


@dataclass(frozen=True)
class Account:
    """A user of the directory: `subuid` and `subgid` are (first id, count), None for a range that is not there."""

    name: str
    uid: int
    subuid: tuple[int, int] | None
    subgid: tuple[int, int] | None
    home: str = ""

    @classmethod
    def number(cls, index: int, name: str = "", home: str = "") -> "Account":
        """Return the user of an index: the range follows from the uid."""
        ids = (FIRST_RANGE + index * COUNT, COUNT)
        return cls(name or f"user{index:05}", FIRST_UID + index, ids, ids, home)

    @property
    def dn(self) -> str:
        """Return the DN that sssd before 2.12 takes for granted."""
        return f"uid={self.name},{USERS}"

    def user_ldif(self) -> str:
        """Return the user and the group of the same name."""
        return (
            f"dn: {self.dn}\nobjectClass: inetOrgPerson\nobjectClass: posixAccount\nuid: {self.name}\ncn: {self.name}\n"
            f"sn: {self.name}\nuidNumber: {self.uid}\ngidNumber: {self.uid}\nloginShell: /bin/bash\n"
            f"homeDirectory: {self.home or '/home/' + self.name}\n\n"
            f"dn: cn={self.name},cn=groups,cn=accounts,{SUFFIX}\nobjectClass: posixGroup\ncn: {self.name}\n"
            f"gidNumber: {self.uid}\n\n"
        )

    def freeipa_ldif(self) -> str:
        """Return the entry of the ranges in FreeIPA's schema; empty without any range."""
        if not self.subuid and not self.subgid:
            return ""
        return (
            f"dn: ipaUniqueID={self.name},{FREEIPA}\n"
            "objectClass: ipaSubordinateIdEntry\nobjectClass: ipaSubordinateId\n"
            f"ipaUniqueID: {self.name}\nipaOwner: {self.dn}\n{self._ranges('ipaSubUid', 'ipaSubGid')}\n"
        )

    def plain_ldif(self) -> str:
        """Return the entry of the ranges in sssd's schema; empty without any range."""
        if not self.subuid and not self.subgid:
            return ""
        return (
            f"dn: cn={self.name},{PLAIN}\nobjectClass: subordinateIdEntry\ncn: {self.name}\n"
            f"subidRangeOwner: {self.dn}\n{self._ranges('subUid', 'subGid')}\n"
        )

    def _ranges(self, uid: str, gid: str) -> str:
        lines = [
            f"{name}Number: {ids[0]}\n{name}Count: {ids[1]}\n"
            for name, ids in ((uid, self.subuid), (gid, self.subgid))
            if ids
        ]
        return "".join(lines)


class Directory:
    """slapd on an address of its own on the loopback network; port 389, which the provider for FreeIPA insists on."""

    def __init__(self, lab: Path) -> None:
        self.top = lab / "directory"
        # other labs may run at the same time: the network is the machine's
        self.address = f"127.{random.randint(64, 127)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self.uri = f"ldap://{self.address}"
        self._process: subprocess.Popen[bytes] | None = None

    def load(self, accounts: Iterable[Account]) -> None:
        """Make the database from accounts, in both schemas; slapd must not run."""
        self.top.mkdir(mode=0o755)
        (self.top / "subid.schema").write_text(_SCHEMA)
        conf = _SLAPD.format(top=self.top, limit=LIMIT)
        for suffix, acl in ((SUFFIX, _READ_ONLY), (SECOND_SUFFIX, _OWN_RANGES)):
            directory = self.top / suffix
            directory.mkdir()
            conf += _DATABASE.format(suffix=suffix, admin=ADMIN, password=PASSWORD, directory=directory, acl=acl)
        (self.top / "slapd.conf").write_text(conf)
        with (self.top / "data.ldif").open("w") as file:
            file.write(_tree(SUFFIX))
            for account in accounts:
                file.write(account.user_ldif() + account.freeipa_ldif() + account.plain_ldif())
        (self.top / "second.ldif").write_text(_tree(SECOND_SUFFIX))
        for suffix, name in ((SUFFIX, "data.ldif"), (SECOND_SUFFIX, "second.ldif")):
            run(
                "/usr/sbin/slapadd", "-q", "-f", f"{self.top}/slapd.conf", "-b", suffix, "-l", f"{self.top}/{name}"
            ).ok()

    def start(self) -> None:
        """Start slapd; returns when it answers."""
        with (self.top / "slapd.log").open("ab") as log:
            options = ("-f", f"{self.top}/slapd.conf", "-h", f"{self.uri}/", "-d", "0")
            self._process = subprocess.Popen(
                ("/usr/sbin/slapd", *options), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(lambda: self.search("-s", "base").code == 0, "slapd answers")

    def stop(self) -> None:
        """End slapd, if it runs."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def pause(self, seconds: float) -> None:
        """Let slapd answer nobody for a while; returns at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        Timer(seconds, self._process.send_signal, (signal.SIGCONT,)).start()

    def search(self, *argv: str, base: str = SUFFIX) -> Done:
        """Run ldapsearch without a bind."""
        return run("ldapsearch", "-x", "-LLL", "-o", "ldif-wrap=no", "-H", self.uri, "-b", base, *argv)

    def modify(self, ldif: str, suffix: str = SUFFIX) -> None:
        """Change entries as the directory's administrator; an entry without `changetype` is added."""
        file = self.top / "change.ldif"
        file.write_text(ldif)
        bind = ("-D", f"{ADMIN},{suffix}", "-w", PASSWORD)
        run("ldapmodify", "-a", "-x", "-H", self.uri, *bind, "-f", str(file)).ok()

    def move(self, account: Account, start: int) -> None:
        """Give an account another first id, in both schemas."""
        for dn, uid, gid in (
            (f"ipaUniqueID={account.name},{FREEIPA}", "ipaSubUidNumber", "ipaSubGidNumber"),
            (f"cn={account.name},{PLAIN}", "subUidNumber", "subGidNumber"),
        ):
            new = f"replace: {uid}\n{uid}: {start}\n-\nreplace: {gid}\n{gid}: {start}\n"
            self.modify(f"dn: {dn}\nchangetype: modify\n{new}")


class Sssd:
    """sssd that asks a Directory, in the lab's /etc; `start` it, `close` it.

    Its cache and its sockets are below /var/lib/sss, which is a file system of the lab's own while this lives; its pid
    file is in /run, which its processes have for themselves.
    """

    _PLACES = ("/var/lib/sss", "/var/log/sssd")
    _FILES = ("nsswitch.conf", "hosts", "krb5.conf", "krb5.keytab", "ldap/ldap.conf", "sssd/sssd.conf")

    def __init__(self, directory: Directory, provider: str = _AS_FREEIPA) -> None:
        self._directory = directory
        self._provider = provider
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[Path, bytes | None] = {}

    def configure(self) -> None:
        """Write the files below the lab's /etc and make room for the cache."""
        assert "LAB" in os.environ, "outside scripts/lab this would change the machine's own /etc"
        for name in self._FILES:
            path = Path("/etc") / name
            self._before[path] = path.read_bytes() if path.exists() else None
        for place in self._PLACES:
            made = [path.relative_to(place) for path in Path(place).rglob("*") if path.is_dir()]
            run("mount", "-t", "tmpfs", "-o", "mode=755", "sssd", place).ok()
            for path in sorted(made):
                (Path(place) / path).mkdir(mode=0o755)
        Path("/var/lib/sss/pipes/private").chmod(0o700)
        hosts = f"{self._directory.address} ldap.example.org\n127.0.0.1 node1.example.org\n"
        self._write("hosts", (self._before[Path("/etc/hosts")] or b"").decode() + hosts)
        self._write("krb5.conf", "[libdefaults]\n default_realm = EXAMPLE.ORG\n dns_lookup_kdc = false\n")
        self._write("ldap/ldap.conf", "SASL_SECPROPS none\n")
        self._write("sssd/sssd.conf", _SSSD.format(suffix=SUFFIX) + self._provider, 0o600)
        keytab = Path("/etc/krb5.keytab")
        keytab.write_bytes(_keytab("EXAMPLE.ORG", "host", "node1.example.org"))
        keytab.chmod(0o600)
        self.nsswitch("sss")

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = Path("/etc") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def nsswitch(self, subid: str | None) -> None:
        """Let nsswitch.conf ask sssd for users and `subid` for ranges; None: no such line."""
        text = "passwd: files sss\ngroup: files sss\nshadow: files\nhosts: files\n"
        self._write("nsswitch.conf", text + (f"subid: {subid}\n" if subid else ""))

    def start(self) -> None:
        """Start sssd; returns when it knows a user of the directory."""
        for path in Path("/var/lib/sss/mc").iterdir():
            path.unlink()  # users are found in it without sssd, before it answers for ranges
        alone = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
        script = "mount -t tmpfs -o mode=755 run /run && mkdir /run/sssd && exec sssd -i -d 2 --logger=files"
        with (self._directory.top / "sssd.out").open("ab") as out:
            self._process = subprocess.Popen(
                (*alone, script), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        try:
            wait_for(lambda: run("getent", "passwd", Account.number(SIZE - 1).name).code == 0, "sssd knows a user")
        except AssertionError as err:
            raise AssertionError(f"{err}\n{self.logs()}") from None

    def stop(self) -> None:
        """End sssd, if it runs; users it was asked for lately are still known, ranges are not."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def forget(self) -> None:
        """Start anew without a cache: nothing else makes sssd forget a range before its time."""
        self.stop()
        for path in Path("/var/lib/sss/db").iterdir():
            path.unlink()
        self.start()

    def login(self, account: Account) -> User:
        """Give a user of the directory what a login needs on this machine: a home, a runtime directory, a cgroup."""
        home, runtime, cgroup = (
            Path(account.home),
            Path(f"/run/user/{account.uid}"),
            Path("/sys/fs/cgroup") / account.name,
        )
        for path, mode in ((home, 0o755), (runtime, 0o700), (cgroup, 0o755)):
            path.mkdir(mode=mode, exist_ok=True)
            os.chown(path, account.uid, account.uid)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(cgroup / name, account.uid, account.uid)
        return User(account.name, account.uid, account.uid, home)

    def logs(self) -> str:
        """Return what sssd and slapd said, for a failed test."""
        files = (*Path("/var/log/sssd").glob("*.log"), *self._directory.top.glob("*.out"))
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def close(self) -> None:
        """End it and give the lab's /etc back as it was."""
        self.stop()
        for path, content in self._before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        for place in self._PLACES:
            run("umount", "-l", place).ok()


@contextmanager
def directory(lab: Path, accounts: Iterable[Account]) -> Iterator[Directory]:
    """Run slapd with these accounts."""
    slapd = Directory(lab)
    slapd.load(accounts)
    try:
        slapd.start()
        yield slapd
    finally:
        slapd.stop()
        shutil.rmtree(slapd.top)


@contextmanager
def sssd(slapd: Directory, provider: str = _AS_FREEIPA) -> Iterator[Sssd]:
    """Run sssd on a directory; users and subordinate ids of the lab come from it meanwhile."""
    daemon = Sssd(slapd, provider)
    daemon.configure()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def _tree(suffix: str) -> str:
    names = ("cn=accounts", "cn=users,cn=accounts", "cn=groups,cn=accounts", "cn=subids,cn=accounts", "cn=subids")
    top = f"dn: {suffix}\nobjectClass: dcObject\nobjectClass: organization\no: example\ndc: example\n\n"
    below = (
        f"dn: {name},{suffix}\nobjectClass: organizationalRole\ncn: {name[3:].partition(',')[0]}\n\n" for name in names
    )
    return top + "".join(below)


def _keytab(realm: str, *name: str) -> bytes:
    """Return a keytab (version 2) with one principal and a key that no KDC knows."""
    words = b"".join(struct.pack(">H", len(word)) + word.encode() for word in (realm, *name))
    aes256, service = 18, 1
    key = struct.pack(">HH", aes256, 32) + bytes(32)
    entry = struct.pack(">H", len(name)) + words + struct.pack(">IIB", service, int(time.time()), 1) + key
    return b"\x05\x02" + struct.pack(">i", len(entry)) + entry


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
