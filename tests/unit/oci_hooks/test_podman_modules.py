"""The files of `podman --module NAME`: what each says, and whose stay."""

import tomllib
from pathlib import Path

from squashmount.oci_hooks import catalogue, podman_modules
from squashmount.oci_hooks.module import Module, When
from squashmount.oci_hooks.policy import Policy

RUNTIME = "/opt/bin/squashmount-runtime"


def texts(*modules: Module, off: tuple[str, ...] = (), hooks_dirs: tuple[str, ...] = ()) -> dict[str, str]:
    named = {one.name: one for one in modules}
    return podman_modules.texts(named, Policy(off=off), runtime=RUNTIME, hooks_dirs=hooks_dirs)


def waiting(name: str, **podman: object) -> Module:
    return Module(name, when=When(annotation=("squashmount.mpi=auto", f"squashmount.mpi={name}")), podman=podman)


def test_a_file_switches_its_module_on_and_says_the_rest() -> None:
    found = texts(Module("net", podman={"ipcns": "host", "pmi2_socket": True}), hooks_dirs=("/a", '/b"c'))
    assert tomllib.loads(found["net"]) == {
        "containers": {"annotations": ["squashmount.net=on", {"append": True}], "ipcns": "host"},
        "engine": {
            "runtime": RUNTIME,
            "hooks_dir": ["/a", '/b"c'],
        },
    }


def test_a_word_of_several_modules_asks_for_what_suits_all() -> None:
    found = texts(
        waiting("one", ipcns="host", pmi2_socket=True), waiting("two", ipcns="host", userns="keep-id"), Module("three")
    )
    assert sorted(found) == ["mpi", "one", "three", "two"]
    said = tomllib.loads(found["mpi"])
    assert said["containers"] == {"annotations": ["squashmount.mpi=auto", {"append": True}], "ipcns": "host"}
    assert said["engine"]["runtime"] == RUNTIME, "it does no harm to the other"
    assert tomllib.loads(found["two"])["containers"]["userns"] == "keep-id"


def test_what_the_site_has_switched_off_is_left_out() -> None:
    assert sorted(texts(waiting("one"), waiting("two"), off=("two",))) == ["mpi", "one"]
    assert texts(waiting("one"), off=("one",)) == {}


def test_a_module_of_the_name_of_a_word_has_its_own_file() -> None:
    found = texts(waiting("one", ipcns="host"), Module("mpi"))
    assert tomllib.loads(found["mpi"])["containers"] == {"annotations": ["squashmount.mpi=on", {"append": True}]}


def test_the_shipped_mpi_fits_mpich_and_open_mpi(tmp_path: Path) -> None:
    policy = tmp_path / "hooks.toml"
    policy.write_text("modules = []")
    known = catalogue.read({"HOME": str(tmp_path)}, policy_file=str(policy))
    found = podman_modules.texts(known.modules, known.policy, runtime=RUNTIME, hooks_dirs=())
    said = tomllib.loads(found["mpi"])
    shared = {"netns": "host", "ipcns": "host", "pidns": "host"}
    assert said["containers"] == {"annotations": ["squashmount.mpi=auto", {"append": True}], **shared}
    assert said["engine"]["runtime"] == RUNTIME
    assert "engine" not in tomllib.loads(found["openmpi-pmix"]), "PMIx has no socket of its own"
    assert tomllib.loads(found["slurm-client"])["containers"]["userns"] == "keep-id"


def test_only_our_files_are_written_and_removed(tmp_path: Path) -> None:
    place = tmp_path / "modules"
    assert podman_modules.install(str(place), {"a": podman_modules.MARK, "b": podman_modules.MARK}) == []
    (place / "a").write_text("theirs")
    (place / "c").write_bytes(b"\xff")
    again = {"a": podman_modules.MARK, "c": podman_modules.MARK, "d": podman_modules.MARK}
    assert podman_modules.install(str(place), again) == [str(place / "a"), str(place / "c")]
    assert podman_modules.installed(str(place)) == ["d"], "b is no longer wanted"
    assert podman_modules.remove(str(place)) == ["d"]
    assert sorted(path.name for path in place.iterdir()) == ["a", "c"]
    assert (place / "a").read_text() == "theirs"
