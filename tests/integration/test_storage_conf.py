"""The real podman reads what `squashmount-conf generate` wrote, and says so."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import image_store
from squashmount.storage_conf.cli import main

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_podman]

STORE_FILES = {
    "overlay-images/images.json": "[]",
    "overlay-images/images.lock": "",
    "overlay-layers/layers.json": "[]",
    "overlay-layers/layers.lock": "",
}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("CONTAINERS_CONF", "STORAGE_OPTS", "STORAGE_DRIVER", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    # not tmp_path: podman allows a runroot of 50 characters
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/var/tmp") as name:
        root = Path(name)
        for file, text in STORE_FILES.items():
            (root / "store" / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "store" / file).write_text(text)
        program = root / "squashmount"
        program.write_text("#!/bin/sh\n# stands for squashmount: podman info asks for its version\nexec true\n")
        program.chmod(0o755)
        monkeypatch.setenv("HOME", str(root / "home"))
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(root / "storage.conf"))
        yield root
        # the bind mount podman makes on its graphroot (skip_mount_home)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{root}/"):
                subprocess.run(["umount", "-l", line.split()[1]], check=True)


def podman(*argv: str) -> Any:
    done = subprocess.run(["podman", *argv], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def generate(place: Path, *options: str) -> None:
    argv = ["--graphroot", f"{place}/$UID/gr", "--runroot", f"{place}/$UID/rr", *options]
    program = ["--mount-program", str(place / "squashmount")]
    assert main(["generate", "--write", *argv, *program, str(place / "store")]) == 0


def test_podman_reports_what_was_generated(place: Path) -> None:
    generate(place, "--ignore-chown-errors", "yes")
    info = podman("info", "--format", "json")
    store = info["store"]
    assert store.get("configFile", f"{place}/storage.conf") == f"{place}/storage.conf"  # 5.8 tells none
    assert (store["graphRoot"], store["runRoot"]) == (f"{place}/0/gr", f"{place}/0/rr")
    assert store["graphDriverName"] == "overlay"
    options = store["graphOptions"]
    assert image_store(info) == f"{place}/store"
    assert options["overlay.ignore_chown_errors"] == "true"
    assert options["overlay.mount_program"]["Executable"] == f"{place}/squashmount"


def test_podman_reports_the_admins_keys_after_an_edit(place: Path) -> None:
    (place / "storage.conf").write_text(
        '# mine\n[storage]\ndriver = "vfs"\n[storage.options.overlay]\nmountopt="nodev"\n'
    )
    generate(place)
    options = podman("info", "--format", "json")["store"]["graphOptions"]
    assert options["overlay.mountopt"] == "nodev"
    assert options["overlay.mount_program"]["Executable"] == f"{place}/squashmount"
    assert (place / "storage.conf").read_text().startswith("# mine\n")


TWICE = [{"id": 64 * letter, "names": ["localhost/x:1"]} for letter in "ab"]


@pytest.mark.parametrize(
    ("missing", "text", "check", "message"),
    [
        ("", json.dumps(TWICE), "duplicate_name", "assigns the same name to multiple images"),
        ("overlay-images/images.lock", json.dumps(TWICE[:1]), "incomplete_store", "images.lock"),
        ("overlay-layers/layers.lock", json.dumps(TWICE[:1]), "incomplete_store", "layers.lock"),
    ],
)
def test_what_check_calls_an_error_stops_podman(
    place: Path, capsys: pytest.CaptureFixture[str], missing: str, text: str, check: str, message: str
) -> None:
    generate(place)
    assert podman("images", "--format", "json") == []
    store = str(place / "store")
    if missing:
        (place / "store" / missing).unlink()
    (place / "store/overlay-images/images.json").write_text(text)
    # read-only, as nodes see it: otherwise root's podman makes the lock file
    subprocess.run(["mount", "--bind", store, store], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
    capsys.readouterr()
    assert main(["check", "--json"]) == 11
    assert check in [item["check"] for item in json.loads(capsys.readouterr().out)["findings"]]
    # not `podman version`: it opens the store
    version = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    done = subprocess.run(["podman", "images", "-q"], capture_output=True, text=True, check=False, timeout=60)
    if not version.startswith("podman version 4.") and missing == "overlay-images/images.lock":
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # the store's images are gone, without a word
    else:
        assert done.returncode != 0
        assert message in done.stderr


def test_a_torn_list_hides_its_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(place)
    (place / "store/overlay-images/images.json").write_text(json.dumps(TWICE[:1])[:-5])
    capsys.readouterr()
    assert main(["check"]) == 11
    assert "images.json is damaged" in capsys.readouterr().out
    done = subprocess.run(["podman", "images", "-q"], capture_output=True, text=True, check=False, timeout=60)
    # 4.3 goes on without a word, 5 stops; neither shows the image
    assert done.returncode != 0 or done.stdout == ""


def test_a_missing_store_stops_podman_and_is_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(place)
    shutil.rmtree(place / "store")
    capsys.readouterr()
    assert main(["check"]) == 11
    assert f"error: The store {place}/store cannot be used" in capsys.readouterr().out
    done = subprocess.run(["podman", "info"], capture_output=True, text=True, check=False, timeout=60)
    assert "can't stat imageStore dir" in done.stderr


def test_check_agrees_with_podman_on_a_good_machine(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(place)
    store = podman("info", "--format", "json")["store"]
    capsys.readouterr()
    assert main(["check", "--json"]) in {0, 11}  # the program here is a stand-in
    answer = json.loads(capsys.readouterr().out)
    assert (answer["graphroot"], answer["runroot"]) == (store["graphRoot"], store["runRoot"])
    assert [item["check"] for item in answer["findings"] if item["severity"] == "error"] == []
