"""A remembered plan is used exactly as long as everything it was made from is the same."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hook_site import Site
from squashmount.oci_hooks import cache


class Stored(Site):
    """As Site, with the root file system where containers-storage has it."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.layer = top / "overlay/layer"
        self.root = self.layer / "merged"
        (self.root / "usr").mkdir(parents=True)
        (self.layer / "diff/etc").mkdir(parents=True)
        (self.layer / "lower").write_text("l/ONE:l/TWO")
        (top / "lib.so").write_text("host")
        rule = f'[[mounts]]\nsource = "{top}/lib.s*"\ntarget = "/usr/"\n'
        rule += f'[[mounts]]\nsource = "{top}/late"\noptional = true\n'
        self.module(
            "a", f'allow_env = ["J"]\n[when]\nalways = true\n{rule}[env]\nset = {{ J = "<$J>" }}\npass = ["SLURM_*"]'
        )

    def how(self, **options: str) -> str:
        """Start a container; return whether its plan was `new` or `remembered`."""
        done = self.run(self.config(), **{"J": "1", **options})
        assert done.returncode == 0, done.stderr
        self.made = json.loads(done.stdout)
        return self.log().splitlines()[-1].rpartition("(")[2].rstrip(")")


@pytest.fixture
def site(tmp_path: Path) -> Stored:
    tmp_path.chmod(0o755)
    return Stored(tmp_path)


def test_the_second_container_of_an_image_uses_the_plan_of_the_first(site: Stored) -> None:
    assert site.how() == "new"
    first = site.made
    assert site.how() == "remembered"
    assert site.made == first
    assert site.how(UNRELATED="x", SLURM_PROCID="7") == "remembered"
    assert site.made["process"]["env"] == ["J=<1>", "SLURM_PROCID=7"]
    assert site.how(SLURM_LOCALID="8") == "remembered"
    assert site.made["process"]["env"] == ["J=<1>", "SLURM_LOCALID=8"]


CHANGES: dict[str, Callable[[Stored], object]] = {
    "a library of the host": lambda site: (site.top / "lib.so").write_text("newer"),
    "what was not there": lambda site: (site.top / "late").write_text("now"),
    "what a pattern may mean": lambda site: (site.top / "lib.s2").write_text("now"),
    "the module": lambda site: site.module("b", "[when]\nalways = true"),
    "the image": lambda site: (site.layer / "lower").write_text("l/OTHER"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_makes_a_new_plan(site: Stored, change: str) -> None:
    assert [site.how(), site.how()] == ["new", "remembered"]
    CHANGES[change](site)
    assert [site.how(), site.how()] == ["new", "remembered"]


def test_a_variable_that_was_read_makes_a_new_plan(site: Stored) -> None:
    assert [site.how(), site.how(J="2")] == ["new", "new"]
    assert "J=<2>" in site.made["process"]["env"]


def test_a_container_with_libraries_of_its_own_is_planned_anew(site: Stored) -> None:
    (site.layer / "diff/usr").mkdir()
    assert [site.how(), site.how()] == ["new", "new"]
    (site.layer / "diff/usr").rmdir()
    (site.layer / "diff/etc/ld.so.cache").write_text("")
    assert [site.how(), site.how()] == ["new", "new"]


def test_a_link_put_in_the_way_is_seen(site: Stored) -> None:
    assert [site.how(), site.how()] == ["new", "remembered"]
    (site.root / "usr/lib.so").symlink_to("/proc/1/environ")
    done = site.run(site.config(), J="1")
    assert done.returncode == 1
    assert b"forbidden" in done.stderr


def test_a_file_no_longer_trusted_is_seen(site: Stored) -> None:
    assert [site.how(), site.how()] == ["new", "remembered"]
    (site.top / "lib.so").chmod(0o666)
    done = site.run(site.config(), J="1")
    assert done.returncode == 1
    assert b"is not trusted" in done.stderr


def test_a_damaged_memory_is_forgotten(site: Stored) -> None:
    assert site.how() == "new"
    (kept,) = (site.state / "squashmount/hook-plans").iterdir()
    for text in ("", "{}", "[1]", '{"key": 1}', kept.read_text().replace("mounts", "munts")):
        kept.write_text(text)
        assert [site.how(), site.how()] == ["new", "remembered"]


def test_plans_are_bounded(site: Stored) -> None:
    folder = site.state / "squashmount/hook-plans"
    folder.mkdir(parents=True, mode=0o700)
    for number in range(cache.KEPT + 5):
        (folder / f"{number:08x}.json").write_text("{}")
    assert site.how() == "new"
    assert len(os.listdir(folder)) == cache.KEPT
    assert site.how() == "remembered"


def test_watched_variables_know_what_was_asked() -> None:
    watched = cache.WatchedVariables({"A": "1", "B": "2"})
    assert (watched.get("A"), "C" in watched) == ("1", False)
    assert watched.answers() == {"A": "1", "C": None}
    assert {**watched} == {"A": "1", "B": "2"}
    assert watched.answers() == {"*": "A=1\0B=2"}
