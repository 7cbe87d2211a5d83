"""A support bundle says enough to help and nothing that is nobody's business."""

import json
import os
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from squashmount.storage_conf.doctor import bundle
from squashmount.storage_conf.doctor.bundle import redacted, redaction, write_bundle
from squashmount.storage_conf.doctor.node import Node

from squashmount.errors import SpaceError, UsageError

SECRET = "s3cr3t-Value+/x"
HOST = os.uname().nodename
REPORT: dict[str, Any] = {
    "host": HOST,
    "user": "mara",
    "findings": [{"id": "U40", "what": "graphroot /home/groups/mara/g", "evidence": f"registry_token: {SECRET}"}],
    "facts": {"password": SECRET, "kernel": "6.1"},
}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    files = {
        "etc/subuid": "anna:100000:65536\nmara:165536:65536\n# mara\n1234:1:1\n",
        "etc/subgid": "mara:165536:65536\n",
        "etc/nsswitch.conf": "passwd: files ldap\nsubid: sss\n",
        "etc/os-release": "ID=debian\n",
        "proc/self/mountinfo": "1 0 0:1 / / rw - ext4 /dev/vda rw\n"
        "2 1 0:2 / /home/groups/mara rw - nfs4 filer7.site.example:/export/mara rw,addr=10.1.2.3,vers=4.2\n"
        "3 1 0:3 / /home/groups/anna rw - nfs4 filer7.site.example:/export/anna rw,addr=10.1.2.3\n"
        f"4 1 0:4 / /win rw - cifs //filer8/share rw,username=mara,password={SECRET}\n"
        "5 1 0:5 / /run/user/99 rw - tmpfs tmpfs rw\n",
        "home/.config/containers/containers.conf": f"""[containers]
env = ["API_TOKEN={SECRET}", "PLAIN=1"]
http_proxy = "http://mara:{SECRET}@proxy:3128"
password = \"\"\"
{SECRET}
\"\"\"
[engine]
tmp_dir = "/home/groups/mara/t"
""",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environ = {
        "HOME": "/home/groups/mara",
        "XDG_CONFIG_HOME": str(tmp_path / "home/.config"),
        "USER": "mara",
        "PATH": "/home/groups/mara/bin:/usr/bin:/bin",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "MY_NOTE": SECRET,
        "SQUASHMOUNT_TOKEN": SECRET,
        "SLURM_JOB_ID": "77",
        "SLURMD_NODENAME": "nid00042",
    }
    return Node(environ=environ, uid=4321, gid=4321, root=str(tmp_path))


def content(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar}  # type: ignore[union-attr]


def test_what_is_in_it_and_what_is_not(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    write_bundle(str(path), node, REPORT)
    parts = {name.removeprefix("squashmount-doctor/"): text for name, text in content(path).items()}
    everything = "\n".join([*parts, *parts.values()])
    for word in (SECRET, "mara", "anna", HOST, "filer7", "filer8", "10.1.2.3", "nid00042", "MY_NOTE", "/run/user/99"):
        assert word not in everything, word
    report = json.loads(parts["doctor.json"])
    assert report["facts"] == {"password": "REDACTED", "kernel": "6.1"}
    assert report["findings"][0]["what"] == "graphroot /home/USER/g"
    assert "2: USER:165536:65536" in parts["subuid"]
    assert "4 lines" in parts["subuid"]
    assert parts["nsswitch"] == "2: subid: sss\n"
    assert "SLURM_JOB_ID=77\n" in parts["environment"]
    assert "/home/USER rw - nfs4 SERVER:/export/USER" in parts["mountinfo"]
    assert parts["os-release"] == "ID=debian\n"
    (conf,) = (text for name, text in parts.items() if name.startswith("conf/") and "home" in text)
    assert 'tmp_dir = "/home/USER/t"' in conf
    assert json.loads(parts["effective.json"])["engine"]["containers"]["password"] == "REDACTED"


def test_only_the_owner_may_read_it_and_nothing_is_replaced(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    write_bundle(str(path), node, REPORT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(UsageError, match="there already"):
        write_bundle(str(path), node, {})
    assert path.read_bytes() == before
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="there already"):
        write_bundle(str(dangling), node, {})
    assert not (tmp_path / "elsewhere").exists()
    assert [one for one in os.listdir(tmp_path) if one.startswith(".")] == []
    with tarfile.open(path) as tar:
        assert {(one.uid, one.uname, one.mtime, one.mode) for one in tar} == {(0, "", 0, 0o600)}


@pytest.mark.parametrize("links", [True, False])
def test_who_comes_first_wins(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    path = tmp_path / "b.tar.gz"

    def no_link(_from: str, _to: str) -> None:
        raise PermissionError

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(bundle, "_parts", lambda _node, _report: {"a": path.write_text("theirs") and "ours"})
    with pytest.raises(UsageError, match="there already"):
        write_bundle(str(path), node, {})
    assert path.read_text() == "theirs"
    path.unlink()
    monkeypatch.setattr(bundle, "_parts", lambda _node, _report: {"a": "ours"})
    write_bundle(str(path), node, {})
    assert content(path) == {"squashmount-doctor/a": "ours"}


def test_a_place_that_is_not_there(node: Node, tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="cannot be written"):
        write_bundle(str(tmp_path / "no/b.tar.gz"), node, {})


FORMS = [
    "password = {}",
    "password={},rw,addr=1",
    "Password: {}",
    '"auth": "{}"',
    "identitytoken = '{}'",
    "db.pwd={}",
    'secret = "with \\" quote {}"',
    'token = "not closed {}',
    "x_api-key = two {} words",
    "https://u:{}@host/p",
    "https://u:a@{}@host",
    "https://u:a/{}@host",
    "Authorization: Bearer {}",
    "curl -H Bearer {}",
    "run --password {} --x",
    "authToken[0] = {}",
    'env = ["A_TOKEN={}", "B=1"]',
    'env = ["A_PASSWORD=a,{}"]',
    "passphrase\t=\t{}",
    '{{"auths": {{"r": {{"auth": "{}"}}}}}}',
    "MYSECRETKEY={}",
    "credentials_file: a {}",
    '"""\n{}\n"""',
    "'''\n{}",
]


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_secret_is_left(node: Node, form: str) -> None:
    redact = redaction(node)
    text = "first line\n" + form.format(SECRET)
    assert SECRET not in redact(text)
    assert redact(text).startswith("first line\n")
    assert SECRET not in json.dumps(redacted({"a": [text]}, redact))


@pytest.mark.parametrize(
    "token", ["glpat-abcdefghij0123", "ghp_abcdefghij01234567", "eyJhbGciOiJI.eyJzdWIi.sig", "hf_abcdefghijkl"]
)
def test_tokens_are_known_by_their_form(node: Node, token: str) -> None:
    assert redaction(node)(f"pull with {token} failed") == "pull with REDACTED failed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("REGISTRY_AUTH_FILE=/run/a.json", "REGISTRY_AUTH_FILE=/run/a.json"),
        ("/home/groups/mara/x mara amara mara2", "/home/USER/x USER amara mara2"),
        ("docker://registry/image:tag", "docker://registry/image:tag"),
        ("no passwd entry", "no passwd entry"),
    ],
)
def test_what_is_no_secret_stays(node: Node, text: str, expected: str) -> None:
    assert redaction(node)(text) == expected


@pytest.mark.parametrize("part", ["a-", "token", '"', "://", "x=", "auth ", "\\"])
def test_a_hostile_line_is_bounded(node: Node, part: str) -> None:
    text = redaction(node)(part * (1_000_000 // len(part)))
    assert len(text) <= bundle._LINE  # and the test ends: no pattern goes back and forth


def test_a_passwd_that_hangs_takes_nothing_but_itself(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(_self: Node) -> None:
        time.sleep(60)

    monkeypatch.setattr(Node, "passwd", property(hangs))
    path = tmp_path / "b.tar.gz"
    write_bundle(str(path), node, REPORT)
    parts = content(path)
    assert json.loads(parts["squashmount-doctor/doctor.json"])["user"] == "USER"
    assert "did not answer" in parts["squashmount-doctor/proc.missing"]
