"""`squashmount-conf ids plan`, `baseline` and `plot`, on a small site of files."""

import builtins
import json
import os
from pathlib import Path

import pytest
from squashmount.storage_conf.cli import main
from squashmount.storage_conf.ids.plot import Span, arranged, free_places, pieces, plot
from squashmount.storage_conf.ids.ranges import Account, Range

from squashmount.errors import ToolError

USERS = {"dave": 1000, "erin": 1001, "frank": 1002}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    etc = tmp_path / "etc"
    (etc / "containers").mkdir(parents=True)
    lines = [f"{name}:x:{uid}:{uid}::/home/{name}:/bin/bash\n" for name, uid in USERS.items()]
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\n" + "".join(lines))
    (etc / "group").write_text("root:x:0:\n")
    for kind in ("uid", "gid"):
        (etc / f"sub{kind}").write_text("dave:2147483648:65536\n")
    (etc / "containers/storage.conf").write_text('[storage]\nrootless_storage_path = "/scratch/$USER/$UID"\n')
    return tmp_path


def conf(root: Path, *argv: str) -> int:
    return main(["ids", *argv, "--source", "files", "--root", str(root)])


def test_plan_prints_what_is_new_and_reports_beside_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert conf(root, "plan") == 0
    out, err = capsys.readouterr()
    new = "erin:2147549184:65536\nfrank:2147614720:65536\n"
    assert out == f"# /etc/subuid\n{new}# /etc/subgid\n{new}"
    assert "users: 3; 1 have their ranges, 2 get one, 0 cannot (1 more have uids below 1000)" in err
    assert "for uids 1000 to 33766: the first that does not fit is 33767" in err
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_plan_appends_to_the_files_and_then_has_nothing_to_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "etc/subgid").write_text("dave:2147483648:65536")  # without a newline
    assert conf(root, "plan", "-o", str(root / "etc")) == 11  # the lint: nothing is written on a file in doubt
    (root / "etc/subgid").write_text("dave:2147483648:65536\n")
    assert conf(root, "plan", "-o", str(root / "etc")) == 0
    whole = "dave:2147483648:65536\nerin:2147549184:65536\nfrank:2147614720:65536\n"
    assert [(root / f"etc/sub{kind}").read_text() for kind in ("uid", "gid")] == [whole, whole]
    capsys.readouterr()
    assert conf(root, "plan") == 0
    assert capsys.readouterr().out == "# /etc/subuid\n# /etc/subgid\n"


def test_plan_as_ldif_for_users_on_standard_input_or_in_a_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = root / "users"
    users.write_text("# new\ngrace 1003\nheidi:x:1004:1004::/:/bin/sh\n")
    options = ["--format", "freeipa", "--ranges-dn", "cn=subids,dc=x", "--owner-dn", "uid={name},cn=users,dc=x"]
    assert conf(root, "plan", "--passwd", str(users), "-o", str(root / "new.ldif"), *options) == 0
    text = (root / "new.ldif").read_text()
    assert text.count("changetype: add\n") == 4
    assert "ipaOwner: uid=heidi,cn=users,dc=x\nipaSubUidNumber: 2147745792\nipaSubUidCount: 65536\n" in text
    assert conf(root, "plan", "--format", "freeipa") == 2
    assert "LDIF needs the DN below which ranges lie" in capsys.readouterr().err
    users.write_text("grace\n")
    assert conf(root, "plan", "--passwd", str(users)) == 2


def test_plan_as_json_names_collisions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conf(root, "plan", "--json", "--formula", "1001:1:1000") == 11
    said = json.loads(capsys.readouterr().out)
    assert said["new"] == [{"uid": 1002, "name": "frank", "start": 1003, "count": 1, "kinds": ["uid", "gid"]}]
    assert [(one["id"], one["evidence"]) for one in said["findings"]] == [
        ("A03", "erin (1001) would take the real gid 1002 of frank")
    ]
    assert conf(root, "plan", "--formula", "1:2") == 2


def test_baseline_save_and_diff(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "baseline"
    assert conf(root, "baseline", "diff", str(file)) == 2
    assert conf(root, "baseline", "save", str(file)) == 0
    assert conf(root, "baseline", "diff", str(file)) == 0
    assert "1 users; now 1: nothing wrong" in capsys.readouterr().out
    (root / "etc/subuid").write_text("dave:3000000000:65536\n")
    saved = file.read_bytes()
    assert conf(root, "baseline", "diff", str(file)) == 11
    out = capsys.readouterr().out
    assert "error A13: 1 user with other ids than before" in out
    assert "at risk: /scratch/dave/1000, ~dave/.local/share/containers" in out
    assert conf(root, "baseline", "save", str(file)) == 11
    assert file.read_bytes() == saved
    assert conf(root, "baseline", "save", "--accept", str(file)) == 0
    # the range dave had is nobody else's ever after, also where another formula would give it away
    capsys.readouterr()
    options = ["--formula", "2147418112:65536:1000", "--baseline", str(file)]
    assert conf(root, "plan", *options) == 11
    assert "2147483648-2147549183, dave's (uid 1000)" in capsys.readouterr().err
    file.write_bytes(saved.replace(b"dave", b"eve"))
    assert conf(root, "baseline", "diff", str(file)) == 10


def test_a_baseline_of_which_many_users_are_gone_at_once_is_not_saved(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "baseline"
    users = range(2000, 2200)
    lines = [f"{uid}:{2**31 + uid * 65536}:65536\n" for uid in users]
    with (root / "etc/passwd").open("a") as passwd:
        passwd.writelines(f"u{uid}:x:{uid}:{uid}::/:/bin/sh\n" for uid in users)

    def give(some: list[str]) -> None:
        for kind in ("uid", "gid"):
            (root / f"etc/sub{kind}").write_text("".join(some))

    give(lines)
    assert conf(root, "baseline", "save", str(file)) == 0
    saved = file.read_bytes()
    give(lines[:100])
    assert conf(root, "baseline", "diff", str(file)) == 11
    capsys.readouterr()
    assert conf(root, "baseline", "save", str(file)) == 11
    said = capsys.readouterr().out
    assert "error A13: 100 users of 200 lost their ranges at once" in said
    assert "why: Most likely the source is incomplete" in said
    assert file.read_bytes() == saved
    assert conf(root, "baseline", "save", str(file), "--accept") == 0
    assert file.read_bytes() != saved
    file.write_bytes(saved)
    give(lines[:190])  # ten, and 5 %
    assert conf(root, "baseline", "save", str(file)) == 0
    assert "warning A13: 10 users without the range" in capsys.readouterr().out


def test_a_fifo_is_refused_and_never_waited_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = root / "pipe"
    os.mkfifo(pipe)
    for words in (("baseline", "diff"), ("baseline", "save"), ("check", "--baseline"), ("plan", "--baseline")):
        assert conf(root, *words, str(pipe)) == 2
        assert f"{pipe} is a pipe or device, not a file." in capsys.readouterr().err
    (root / "out").mkdir()
    os.mkfifo(root / "out/subuid")
    assert conf(root, "plan", "-o", str(root / "out")) == 2
    assert "out/subuid is a pipe or device, not a file." in capsys.readouterr().err
    (root / "etc/subgid").unlink()
    os.mkfifo(root / "etc/subgid")
    assert conf(root, "check") == 2
    assert "etc/subgid is a pipe or device, not a file." in capsys.readouterr().err


def test_a_baseline_that_is_a_link_to_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = root / "baseline"
    link.symlink_to("/nowhere/ranges.jsonl")
    assert conf(root, "baseline", "save", str(link)) == 2
    said = capsys.readouterr().err
    assert f"{link} is a symbolic link to /nowhere/ranges.jsonl, which does not exist." in said
    assert "baseline save" not in said


def test_what_is_said_of_a_directory_can_be_typed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["check", "--ldif", str(root)], ["compare", str(root)], ["baseline", "diff", str(root)]):
        assert main(["ids", *words]) == 2
        said = capsys.readouterr().err
        assert f"{root} cannot be read: Is a directory." in said
        assert "chmod" not in said


@pytest.mark.parametrize("piped", [False, True])
def test_accounts_of_a_passwd_file(root: Path, capsys: pytest.CaptureFixture[str], *, piped: bool) -> None:
    for kind in ("uid", "gid"):
        (root / f"etc/sub{kind}").write_text("grace:2147483648:65536\n")
    users = root / "users"
    users.write_text("# getent passwd\n\ngrace:*:70000:70000:Grace, H.:/home/grace:/bin/sh\n+::::::\n")
    assert conf(root, "check", "--json", "--only", "A01,A05") == 0
    unknown = capsys.readouterr().out
    name = str(users)
    if piped:  # as <(getent passwd)
        read, write = os.pipe()
        os.write(write, users.read_bytes())
        os.close(write)
        name = f"/dev/fd/{read}"
    assert conf(root, "check", "--json", "--only", "A01,A05", "--accounts", name) == 0
    known = capsys.readouterr().out
    assert (json.loads(unknown)["accounts"], json.loads(known)["accounts"]) == (4, 5)
    assert "grace" in unknown
    assert "grace" not in known
    users.write_text("dn: uid=grace,dc=x\nobjectClass: posixAccount\nuid: grace\nuidNumber: 7\ngidNumber: 7\n\n")
    assert conf(root, "check", "--json", "--only", "A05", "--accounts", str(users)) == 0
    assert json.loads(capsys.readouterr().out)["accounts"] == 5


def test_plot_is_the_same_file_for_the_same_ranges(root: Path) -> None:
    for name in ("a.svg", "b.svg"):
        assert conf(root, "plot", str(root / name), "--title", "A site") == 0
    text = (root / "a.svg").read_text()
    assert text == (root / "b.svg").read_text()
    assert "A site" in text
    assert "1 ranges hold 65,536 of 4,294,967,296 ids" in text
    assert "The subordinate gids are the same" in text
    assert conf(root, "plot", str(root / "none/a.svg")) == 6


def test_plot_of_many_ranges_is_no_larger_than_a_page(tmp_path: Path) -> None:
    many = [Range(f"u{n}", 2**31 + n * 65536, 65536, "uid") for n in range(20_000)]
    clashing = [*many, Range("x", 2**31 + 5, 10, "uid")]
    for ranges, words in ((many, "No overlaps"), (clashing, "1 overlaps"), ([], "0 ranges hold 0")):
        picture = arranged(ranges, [Account("a", 1000, 1000)], "uid")
        path = tmp_path / "x.svg"
        plot(picture, str(path))
        assert words in path.read_text()
        assert path.stat().st_size < 200_000


def test_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ToolError, match="matplotlib is missing") as caught:
        plot(arranged([], [], "uid"), str(tmp_path / "x.svg"))
    assert "pip install 'squashmount[plot]'" in str(caught.value)


def test_the_parts_that_are_enlarged() -> None:
    near = [Range("a", 100_000, 65536, "uid"), Range("b", 165_536, 65536, "uid")]
    far = [Range(f"f{n}", 600_000_000 + n * 7_000_000, 65536, "uid") for n in range(100)]
    dense = [Range(f"d{n}", 2**31 + n * 65536, 65536, "uid") for n in range(1000)]
    parts = arranged([*near, *far, *dense], [], "uid").parts
    assert len(parts) == 3
    assert [sum(part.start <= one.start < part.end for one in [*near, *far, *dense]) for part in parts] == [
        2,
        100,
        1000,
    ]
    assert len(arranged(far, [], "uid").parts) == 1
    assert arranged([], [], "uid").parts == ()


def test_pieces_and_places() -> None:
    assert pieces([Span(0, 10), Span(15, 20)], Span(0, 40), 4) == [1.0, 0.5, 0.0, 0.0]
    assert pieces([Span(5, 1000)], Span(20, 40), 2) == [1.0, 1.0]
    assert free_places([Span(2**31, 2**31 + 65536)], Span(2**31, 2**32)) == 32766
    assert free_places([], Span(0, 2**32)) == 65534


def test_the_line_that_grants_every_id_is_in_everybodys_way(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "etc/subuid").write_text("dave:0:0\n")
    assert conf(root, "check", "--only", "A01,A02,A03") == 11
    said = capsys.readouterr().out
    assert "for newuidmap before shadow 4.20 every id there is" in said
    assert "error A01: 1 line of " in said
    assert "gives nobody the range" not in said
    assert "newuidmap lets its owner map any id, root's included" in said
    assert "error A03" in said
    assert conf(root, "plan") == 11
    assert capsys.readouterr().out == "# /etc/subuid\n# /etc/subgid\n"


@pytest.mark.parametrize("command", ["check", "plan"])
def test_of_nothing_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (tmp_path / "dump").touch()  # ldapsearch failed before it wrote anything
    for source in (["--ldif", str(tmp_path / "dump")], ["--source", "files", "--root", str(tmp_path / "nowhere")]):
        assert main(["ids", command, *source]) == 10
        assert "nothing can be said" in capsys.readouterr().err


def test_a_device_or_pipe_is_not_replaced(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(root / "pipe")
    assert conf(root, "plot", str(root / "pipe")) == 6
    assert "not a file" in capsys.readouterr().err
    assert (root / "pipe").is_fifo()
