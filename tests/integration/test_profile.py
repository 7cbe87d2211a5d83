"""Profiles: recorded once, read ahead by every server that starts later; with containers, kernel and squash files."""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Node, User, all_processes, run, wait_for

from squashmount.profile import merged, parse, squash_id
from squashmount.squashfs.image import SquashImage

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

PROGRAM = ("python3", "-c", "import json, email.message, decimal; print(json.dumps(str(decimal.Decimal(1))))")


@pytest.fixture(scope="module")
def profiled(login: Node, store: Path, debian: str) -> Path:
    """The store, with a profile of `debian` for PROGRAM."""
    done = login.migrate("profile", debian, str(store), "--", *PROGRAM, timeout=120)
    assert done.code == 0, done.err
    assert "files first" in done.out
    return next((store / "squashmount/capsules").glob("*/profile.json"))


def test_a_profile_names_what_was_read_in_the_order_it_was_read(profiled: Path) -> None:
    value = json.loads(profiled.read_text())
    paths = [f"/{value['directories'][need[0]]}/{need[2]}" for need in value["needs"] if need[1] == "f"]
    assert len(paths) == len(set(paths))
    names = [path.rpartition("/")[2] for path in paths]
    interpreter = next(place for place, name in enumerate(names) if name.startswith("python3."))
    decoder = next(place for place, path in enumerate(paths) if "/json/" in path)
    message = next(place for place, path in enumerate(paths) if "/email/" in path and "message" in path)
    assert interpreter < decoder < message
    assert not any("/xml/" in path for path in paths)
    print(
        profiled.stat().st_size, len(paths), len(value["extents"]), [need for need in value["needs"] if need[1] != "f"]
    )


def server_file(node: Node, name: str) -> Path:
    """Return a file of the only server there is."""
    places = [path for path in node.state().iterdir() if (path / "lock").exists()] if node.state().exists() else []
    return places[0] / name if places else Path("/nonexistent")


def replayed(node: Node) -> dict[str, int]:
    """Wait for the end of the replay and return its counters."""
    wait_for(lambda: server_file(node, "prefetch.json").exists(), "the replay ends")
    counts: dict[str, int] = json.loads(server_file(node, "prefetch.json").read_text())
    return counts


def files_in(profile: Path) -> int:
    return sum(need[1] == "f" for need in json.loads(profile.read_text())["needs"])


def counters(node: Node) -> dict[str, int]:
    """Return the counters of the only server once they contain everything that happened before this call."""
    run("sleep", "2.5").ok()  # published every two seconds
    stats: dict[str, int] = json.loads(server_file(node, "stats.json").read_text())
    return stats


def test_what_was_read_ahead_is_not_asked_for_again(compute: Node, debian: str, profiled: Path) -> None:
    compute.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    counts = replayed(compute)
    assert counts["missing"] == 0
    assert counts["files"] == files_in(profiled)
    before = counters(compute)
    compute.podman("exec", "kept", *PROGRAM).ok()
    after = counters(compute)
    assert before["read"] > 0
    for request in ("lookup", "readdirplus", "readlink"):
        assert before[request] == after[request], request
    # how far the kernel reads around a page fault differs from run to run: a few pages more, not the files
    assert after["read"] - before["read"] <= before["read"] // 20
    (row,) = json.loads(compute.squashmount("ps", "--json").ok())
    assert row["prefetch"] == counts
    (line,) = [line for line in compute.squashmount("ps").ok().splitlines() if "image.squashfs" in line]
    assert f" {counts['bytes'] / (1 << 20):.1f}MiB " in line
    compute.podman("rm", "-f", "-t0", "kept").ok()


@pytest.mark.parametrize("how", ["environment", "mountopt"])
def test_it_can_be_turned_off(compute: Node, debian: str, profiled: Path, how: str) -> None:
    assert profiled.exists()
    if how == "environment":
        compute.env["SQUASHMOUNT_PREFETCH_MIB"] = "0"
    else:
        with (compute.base / "storage.conf").open("a") as conf:
            conf.write('mountopt = "nodev,no-prefetch"\n')
    compute.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    before = counters(compute)
    assert "kernel overlay (fastest)" in compute.log()
    assert not server_file(compute, "prefetch.json").exists()
    compute.podman("exec", "kept", *PROGRAM).ok()
    assert counters(compute)["read"] > before["read"]
    compute.podman("rm", "-f", "-t0", "kept").ok()


@pytest.mark.skipif(
    [int(part) for part in os.uname().release.split(".")[:2]] < [6, 9],
    reason="needs Linux 6.9: it sends requests again",
)
def test_a_worker_killed_during_the_replay_holds_up_nobody(compute: Node, debian: str, profiled: Path) -> None:
    compute.env["SQUASHMOUNT_LINGER"] = "30"
    compute.podman("unshare", "true").ok()
    argv = ("podman", "run", "--rm", debian, *PROGRAM)
    with compute.started(*argv) as container:
        killed: set[int] = set()
        while len(killed) < 3 and not server_file(compute, "prefetch.json").exists():
            try:
                worker = int(json.loads(server_file(compute, "info.json").read_text())["worker"])
            except (OSError, ValueError):
                continue
            if worker not in killed:
                killed.add(worker)
                os.kill(worker, signal.SIGKILL)
        out, err = container.communicate(timeout=60)
    assert killed
    assert (container.returncode, out.strip()) == (0, b'"1"'), err
    counts = replayed(compute)
    assert counts["missing"] == 0
    assert counts["files"] == files_in(profiled)


@pytest.fixture
def own_store(make_node: Callable[..., Node], alice: User, store: Path, lab: Path, profiled: Path) -> tuple[Node, Path]:
    """A node that sees a copy of the store, and the profile in it."""
    copy = Path(tempfile.mkdtemp(dir=lab))
    copy.chmod(0o755)
    run("cp", "-a", f"{store}/.", str(copy)).ok()
    return make_node(alice, stores=(copy,)), copy / profiled.relative_to(store)


@pytest.mark.parametrize(
    ("damage", "logged"),
    [
        ("echo '{' > {}", "a profile is ignored"),
        ("truncate -s 5000000 {}", "a profile is ignored"),
        ("rm {0}; mkfifo {0}", "a profile is ignored"),
        ("rm {0}; mkdir {0}", "prefetch ended early"),
        ("rm {0}; ln -s /etc/shadow {0}", ""),
        ("rm {0}; ln -s /dev/zero {0}", ""),
        ("sed -i 's/email/../' {0}", "a profile is ignored"),
    ],
)
def test_a_profile_of_no_use_is_ignored(own_store: tuple[Node, Path], debian: str, damage: str, logged: str) -> None:
    node, profile = own_store
    run("sh", "-c", damage.replace("{0}", str(profile)).replace("{}", str(profile))).ok()
    assert node.podman("run", "--rm", debian, *PROGRAM).ok() == '"1"'
    assert not server_file(node, "prefetch.json").exists()
    assert "Traceback" not in node.log()
    if logged:
        wait_for(lambda: logged in node.log(), f"the log says {logged!r}")


def test_a_profile_of_another_image_reads_what_there_is(own_store: tuple[Node, Path], debian: str) -> None:
    node, profile = own_store
    value = json.loads(profile.read_text())
    value["directories"] += ["etc", "nowhere", "proc/self", "usr/bin"]
    first = len(value["directories"]) - 4
    value["needs"] = [
        *([first + 1, "f", "file", 0, 4096], [first + 2, "f", "environ", 0, 4096], [first, "l", ""]),
        *([first, "f", "debian_version", 0, 1 << 40], [first + 3, "f", "python3", 0, 4096], [first, "k", "passwd"]),
    ]
    profile.write_text(json.dumps(value))
    node.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    counts = replayed(node)
    # usr/bin/python3 is a symbolic link, and nothing of it is followed
    assert (counts["files"], counts["listings"], counts["missing"]) == (1, 1, 4)
    node.podman("rm", "-f", "-t0", "kept").ok()


def ours(node: Node) -> list[int]:
    """Return every process that was forked from a mount program of the user, whatever it holds open."""
    found = []
    for pid in all_processes():
        try:
            owner, command = Path(f"/proc/{pid}").stat().st_uid, Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if owner == node.user.uid and b"lowerdir=" in command:
            found.append(pid)
    return found


def test_everything_ends_when_everything_is_killed_during_the_replay(
    compute: Node, debian: str, profiled: Path
) -> None:
    assert profiled.exists()
    compute.env["SQUASHMOUNT_LINGER"] = "60"
    compute.podman("unshare", "true").ok()
    with compute.started("podman", "run", "--rm", debian, *PROGRAM) as container:
        wait_for(lambda: server_file(compute, "info.json").exists(), "the server starts")
        alive = ours(compute)
        assert len(alive) >= 2
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        container.communicate(timeout=60)
    wait_for(lambda: not ours(compute), "no process of ours is left, replay included")
    assert compute.podman("run", "--rm", debian, *PROGRAM).ok() == '"1"'


def test_a_program_that_fails_leaves_no_profile(login: Node, busybox: str, store: Path) -> None:
    done = login.migrate("profile", busybox, str(store), "--", "sh", "-c", "exit 3")
    assert (done.code, done.out) == (8, "")
    assert "exit status 3" in done.err
    assert not list(store.glob("squashmount/staging/*"))


def test_a_profile_can_be_written_to_a_file_by_who_may_not_write_the_store(
    make_node: Callable[..., Node], bob: User, busybox: str, store: Path
) -> None:
    node = make_node(bob, stores=(store,))
    file = bob.home / "profile.json"
    refused = node.migrate("profile", busybox, str(store))
    assert refused.code in {6, 7}
    node.migrate("profile", busybox, str(store), "--output", str(file), "--", "cat", "/etc/passwd").ok()
    value = json.loads(file.read_text())
    assert "passwd" in [need[2] for need in value["needs"] if need[1] == "f"]
    wait_for(lambda: not node.servers(), "the recording server ended with its container")


def test_mig_lays_the_files_out_in_the_order_of_the_profile_under_running_containers(
    own_store: tuple[Node, Path], login: Node, debian: str
) -> None:
    node, path = own_store
    directory = str(path.parents[3])
    login.podman("pull", "--tls-verify=false", debian, timeout=300).ok()  # another test may have removed it
    # Podman removes <layer>/merged of a store of one's own after a commit or diff, as other tests make
    login.migrate("repair", directory).ok()
    scattered = len(parse(path.read_bytes(), where="x").extents)
    node.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    assert "in the order of a profile" in login.migrate("mig", "--profile", debian, directory, timeout=120).ok()
    capsule = json.loads((path.parent / "capsule.json").read_text())
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted(
        ["capsule.json", "data", capsule["file"], "profile.json"]
    )

    one = parse(path.read_bytes(), where="x")
    with SquashImage.open(str(path.parent / capsule["file"])) as image:
        assert one.squash == squash_id(image.fileno())
        placed = []
        for file in one.files():
            inode = image.find(file)
            assert inode, file
            placed.append(image.extents(inode, 0, inode.size))
        hot = merged(extent for extents in placed for extent in extents)
        assert len(hot) == 1, "one piece"
        assert hot[0][0] < 128, "behind the superblock and the compressor's options"
        alone = [extents[0] for extents in placed if len(extents) > 1]
        assert alone == sorted(alone), "in the order of need"
        assert hot[0][1] < image.superblock.inode_table // 2
    # a large file of which only parts are needed makes a gap
    assert len(one.extents) < scattered / 3

    # the running container goes on with the old file, also where it never read before; the next one has the new file
    assert node.podman("exec", "kept", "cat", "/etc/debian_version").ok().startswith("12")
    assert node.podman("run", "--rm", debian, *PROGRAM).ok() == '"1"'
    assert capsule["file"] in node.log()
    assert "already" in login.migrate("mig", "--profile", debian, directory).ok()
    assert login.migrate("verify", "--full", directory).code == 0
    assert login.migrate("repair", directory).code == 0
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_an_image_can_be_squashed_by_a_profile_from_the_beginning(
    make_node: Callable[..., Node], alice: User, login: Node, debian: str, profiled: Path, lab: Path
) -> None:
    fresh = Path(tempfile.mkdtemp(dir=lab))
    fresh.chmod(0o755)
    os.chown(fresh, alice.uid, alice.gid)
    login.podman("pull", "--tls-verify=false", debian, timeout=300).ok()
    assert login.migrate("mig", "--profile", debian, str(fresh)).code == 2, "there is none yet"
    hostile = fresh.parent / "hostile.json"
    value = json.loads(profiled.read_text())
    value["directories"] += ["etc", "proc/self", "dev"]
    first = len(value["directories"]) - 3
    value["needs"] += [[first, "f", "nothing", 0, 1], [first + 1, "f", "environ", 0, 1], [first + 2, "f", "null", 0, 1]]
    hostile.write_text(json.dumps(value))
    hostile.chmod(0o644)
    login.migrate("mig", "--profile-file", str(hostile), debian, str(fresh), timeout=120).ok()
    (kept,) = fresh.glob("squashmount/capsules/*/profile.json")
    assert parse(kept.read_bytes(), where="x").extents
    node = make_node(alice, stores=(fresh,))
    node.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    assert replayed(node)["files"] == files_in(profiled)
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_the_first_server_records_where_the_site_wants_it(own_store: tuple[Node, Path], debian: str) -> None:
    node, profile = own_store
    profile.unlink()
    node.podman("run", "--rm", debian, *PROGRAM).ok()
    wait_for(lambda: not node.servers(), "the server ends")
    assert not profile.exists(), "off by default"
    node.env["SQUASHMOUNT_PROFILE"] = "auto"
    node.podman("run", "--rm", debian, "true").ok()
    wait_for(lambda: not node.servers(), "the server ends")
    assert not profile.exists(), "true needs nothing worth a profile"
    node.podman("run", "--rm", debian, *PROGRAM).ok()
    wait_for(profile.exists, "the server ends and writes the profile")
    paths = parse(profile.read_bytes(), where="x").files()
    assert any(b"/email/" in path for path in paths)
    assert profile.stat().st_mode & 0o777 == 0o644
    assert not list(profile.parents[2].glob("staging/*"))
    wait_for(lambda: not node.servers(), "the server ends")
    written = profile.stat().st_ino
    node.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    assert replayed(node)["files"] == len(paths)
    node.podman("rm", "-f", "-t0", "kept").ok()
    wait_for(lambda: not node.servers(), "the server ends")
    assert profile.stat().st_ino == written


def test_what_was_recorded_for_who_may_not_write_the_store_is_his_own(
    make_node: Callable[..., Node], bob: User, own_store: tuple[Node, Path], debian: str
) -> None:
    profile = own_store[1]
    profile.unlink()
    node = make_node(bob, stores=(profile.parents[3],))
    node.env["SQUASHMOUNT_PROFILE"] = "auto"
    node.podman("run", "--rm", debian, *PROGRAM).ok()
    own = bob.home / f".cache/squashmount/profiles/{profile.parent.name}.json"
    wait_for(own.exists, "the server ends and writes the profile")
    assert not profile.exists()
    wait_for(lambda: not node.servers(), "the server ends")
    node.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    assert replayed(node)["files"] > 32
    node.podman("rm", "-f", "-t0", "kept").ok()
    own.unlink()
