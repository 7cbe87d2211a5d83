"""The command line on stores that need no Podman, and its progress, listing and checks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from migrate_helpers import assert_valid, image_id, put, shown, squash_file
from squashmount.migrate import lease, listing, progress, readback
from squashmount.migrate.cli import main
from squashmount.migrate.store import Store, open_store

from squashmount import layout

A, B = image_id("a"), image_id("b")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SQUASHMOUNT_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").touch()
    monkeypatch.delenv("SQUASH_DIR", raising=False)
    (tmp_path / "DIR").mkdir()
    made = open_store(str(tmp_path / "DIR"), create=True)
    put(made, "a", ["x/a:1", "x/a:2"], squash_file(tmp_path))
    put(made, "b", [], squash_file(tmp_path))
    return made


def test_images(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", store.root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", lines[0])[:4] == ["REPOSITORY", "TAG", "IMAGE ID", "ON DISK"]
    assert sorted(tuple(line.split()[:3]) for line in lines[1:]) == sorted(
        [("x/a", "1", A[:12]), ("x/a", "2", A[:12]), ("<none>", "<none>", B[:12])]
    )
    assert all(line.endswith(" ok") for line in lines[1:])
    assert main(["images", "--json", store.root]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["size"] for row in rows} == {os.path.getsize(store.layout.squash(A))}


def test_images_shows_damage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(store.layout.squash(A), 100)
    Path(store.layout.capsule_json(B)).write_text("{")
    assert main(["images", store.root]) == 0
    out = capsys.readouterr().out
    assert "squash file has 100 bytes" in out
    assert "is not valid JSON" in out


def test_an_unreadable_image_is_named_by_readers_and_stops_writers(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = readback.header

    def refused(path: str) -> object:
        if path == store.layout.squash(A):
            raise PermissionError(13, "Permission denied", path)
        return header(path)

    monkeypatch.setattr(readback, "header", refused)
    assert main(["images", store.root]) == 0
    assert "Permission denied" in capsys.readouterr().out
    assert main(["verify", store.root]) == 11
    assert "Permission denied" in capsys.readouterr().out
    for command in (["rmi", B[:12]], ["prune"], ["repair"]):
        assert main([*command, store.root]) == 5
        err = capsys.readouterr().err
        assert ("cannot be read" in err, "nothing was changed" in err) == (True, True)
    assert shown(store) == {A: ["x/a:1", "x/a:2"], B: []}


def test_dir_comes_from_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["images"]) == 2
    monkeypatch.setenv("SQUASH_DIR", store.root)
    assert main(["images"]) == 0


def test_rmi_by_name_then_the_last_name(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rmi", "--dry-run", "a:1", store.root]) == 0
    assert "remove the name x/a:1" in capsys.readouterr().out
    assert shown(store)[A] == ["x/a:1", "x/a:2"]
    assert main(["rmi", "a:1", store.root]) == 0
    assert shown(store)[A] == ["x/a:2"]
    assert main(["rmi", "a:2", store.root]) == 0
    assert A not in shown(store)
    assert main(["rmi", "a:2", store.root]) == 3
    assert_valid(store)


def test_rmi_by_id(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rmi", A[:8], store.root]) == 2
    assert "several names" in capsys.readouterr().err
    assert main(["rmi", "--force", A[:8], store.root]) == 0
    assert shown(store) == {B: []}


def test_prune(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--json", store.root]) == 0
    assert len(json.loads(capsys.readouterr().out)["actions"]) == 1
    assert shown(store) == {A: ["x/a:1", "x/a:2"]}


def test_removed_images_stay_in_the_trash_unless_now(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rmi", "--force", A, store.root]) == 0
    assert "24 h" in capsys.readouterr().err
    assert [image for image, _ in store.in_trash()] == [A]
    assert main(["verify", store.root]) == 0
    assert main(["prune", "--dry-run", "--now", store.root]) == 0
    assert main(["rmi", "--now", B, store.root]) == 0
    assert [image for image, _ in store.in_trash()] == [A]
    assert os.listdir(store.layout.capsules) == []
    capsys.readouterr()
    assert main(["prune", store.root]) == 0
    assert "every image" in capsys.readouterr().out
    assert main(["prune", "--now", store.root]) == 0
    assert A[:12] in capsys.readouterr().out
    assert (os.listdir(store.layout.trash), os.listdir(store.layout.overlay)) == ([], ["l"])


def test_trash_hours(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SQUASHMOUNT_TRASH_HOURS", "0")
    assert main(["prune", store.root]) == 0
    assert (os.listdir(store.layout.trash), capsys.readouterr().err) == ([], "")
    assert_valid(store)


def tear_layers(store: Store) -> None:
    Path(store.layout.layers_json).write_text("[{")


def lose_lock(store: Store) -> None:
    Path(store.layout.images_lock).unlink()


def lose_link(store: Store) -> None:
    Path(store.layout.link(layout.link_of(layout.image_layers(A, 1)[-1].id))).unlink()


def lose_empty(store: Store) -> None:
    Path(store.layout.layer(layout.image_layers(A, 1)[-1].id), "empty").rmdir()


def flip_big_data(store: Store) -> None:
    path = Path(store.layout.image(A), "manifest")
    path.write_bytes(bytes(reversed(path.read_bytes())))


def change_mode(store: Store) -> None:
    os.chmod(store.layout.diff(layout.image_layers(A, 1)[-1].id), 0o700)


def rename_image(store: Store) -> None:
    path = Path(store.layout.images_json)
    path.write_text(path.read_text().replace("x/a:1", "x/b:1"))


def leave_rubbish(store: Store) -> None:
    os.mkdir(os.path.join(store.layout.staging, "dead"))


def dangling_name(store: Store) -> None:
    Path(store.name_file("x/y:1")).write_text(json.dumps({"name": "x/y:1", "image": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        tear_layers,
        lose_lock,
        lose_link,
        lose_empty,
        flip_big_data,
        change_mode,
        rename_image,
        leave_rubbish,
        dangling_name,
    ],
)
def test_verify_finds_and_repair_mends(damage: Callable[[Store], None], store: Store) -> None:
    before = shown(store)
    assert main(["verify", "--full", store.root]) == 0
    damage(store)
    assert main(["verify", store.root]) == 11
    assert main(["repair", "--dry-run", store.root]) == 0
    assert main(["verify", "--json", store.root]) == 11
    assert main(["repair", store.root]) == 0
    assert main(["verify", "--full", store.root]) == 0
    assert_valid(store)
    assert shown(store) == before


def test_full_verify_reads_every_byte(store: Store) -> None:
    with open(store.layout.squash(A), "r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff\xff")
    assert main(["verify", store.root]) == 0
    assert main(["verify", "--full", store.root]) == 11


def test_init(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "new" / "store"
    assert main(["init", "--dry-run", str(path)]) == 0
    assert not path.exists()
    assert main(["init", str(path)]) == 0
    assert_valid(open_store(str(path)))
    assert main(["init", store.root]) == 0
    assert A in shown(store)


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["mig", "a", "b", "--level", "99"]) == 2
    assert main(["--help"]) == 0
    assert "130   interrupted" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"migrate2scratch \d+\.\d+\.\d+\S*", capsys.readouterr().out.strip())


def test_a_busy_store_says_by_whom(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with lease.hold(store.layout.lock, "store", doing="publish something"):
        assert main(["rmi", "--wait", "0", "a:1", store.root]) == 7
    assert "publish something" in capsys.readouterr().err


def test_unwritable(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", store.layout.lock)

    monkeypatch.setattr(lease, "_create", refuse)
    assert main(["rmi", "a:1", store.root]) == 6
    assert "not writable for you" in capsys.readouterr().err


def test_interrupted_while_waiting(store: Store) -> None:
    with lease.hold(store.layout.lock, "store", doing="hold"):
        argv = [sys.executable, "-m", "squashmount.migrate.cli", "rmi", "a:1", store.root]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr
            assert "waiting for" in child.stderr.readline()
            child.send_signal(signal.SIGINT)
            assert child.wait(10) == 130
            assert "interrupted" in child.stderr.read()
    assert os.listdir(store.layout.lock) == []


def test_plain_progress_prints_a_line_at_least_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines = progress.Lines("image")
    lines.step("squash")
    for second in range(1, 31):
        now = 1000.0 + second
        lines.percent(second)
        lines.tick()
    assert capsys.readouterr().err.splitlines() == [
        "image: squash",
        "image: squash 10% (10 s)",
        "image: squash 20% (20 s)",
        "image: squash 30% (30 s)",
    ]


def test_progress_is_chosen_by_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(progress.shown("t", quiet=True)) is progress.Progress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.shown("t", quiet=False) as bar:
        assert isinstance(bar, progress.Bar)
        bar.step("one")
        bar.percent(50)
        bar.step("two")
        bar.tick()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1_118_208, "1.12 MB"), (12_345_678_901, "12.3 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert listing.human(size) == text


def test_ages() -> None:
    now = listing.datetime.fromisoformat("2026-03-01T00:00:00+00:00").timestamp()
    assert listing.ago("2026-02-28T23:59:30.123456789Z", now) == "30 seconds ago"
    assert listing.ago("2026-02-28T23:00:00Z", now) == "60 minutes ago"
    assert listing.ago("2026-02-01T00:00:00Z", now) == "4 weeks ago"
    assert listing.ago("nonsense", now) == "nonsense"
