"""Plans: pure functions of modules, policy, trees and variables."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from squashmount.oci_hooks import module, plan, planners, planning
from squashmount.oci_hooks.cache import WatchedVariables
from squashmount.oci_hooks.module import Module
from squashmount.oci_hooks.plan import Contribution, Copy, Device, Hook, Mount, Plan
from squashmount.oci_hooks.planning import Image, Site, make_plan
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

Planning = Callable[..., Plan]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    root = tmp_path / "host"
    for name in ("opt/lib", "dev/dri", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("opt/lib/liba.so.1", "opt/lib/libb.so.2", "opt/lib/.hidden.so.3", "etc/site.conf"):
        (root / name).write_text(name)
    os.mkfifo(root / "dev/dri/card0")  # "other", as a device is; mknod needs root
    (root / "dev/plain").write_text("")
    return root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    for name in ("usr/lib", "etc", "opt"):
        (root / name).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/lib/liba.so.1").write_text("image's")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return root


@pytest.fixture
def planned(host: Path, image: Path) -> Iterator[Planning]:
    with DirectoryTree(str(host)) as host_tree, DirectoryTree(str(image)) as image_tree:

        def planned(*tables: dict[str, Any], **options: Any) -> Plan:
            modules = {table["name"]: module.built(table, "test") for table in tables}
            policy = Policy(**options.get("policy", {}))
            site = Site(modules, policy, host_tree, options.get("environ", {}), options.get("doubt", lambda _: ""))
            labels = options.get("labels", {})
            env = options.get("env", {})
            return make_plan(site, Image(image_tree, env, options.get("annotations", {}), lambda: labels))

        yield planned


def on(name: str, **table: Any) -> dict[str, Any]:
    return {"name": name, "when": {"always": True}, **table}


def test_nothing_applies(planned: Planning) -> None:
    found = planned({"name": "a", "mounts": [{"source": "/opt/lib"}]})
    assert found == Plan()
    assert found.empty


def test_one_of_each(planned: Planning) -> None:
    found = planned(
        on(
            "site",
            mounts=[{"source": "/opt/lib/lib*.so.*", "target": "/lib"}, {"source": "/opt/lib", "options": ["rw"]}],
            copies=[{"source": "/etc/site.conf", "mode": "0600"}],
            devices=[{"path": "/dev/dri/*"}],
            env={
                "set": {"A": "1"},
                "prepend": {"PATH": "/x"},
                "append": {"M": "/y"},
                "unset": ["B"],
                "pass": ["J", "K", "PMI_*"],
            },
            hooks=[{"stage": "createContainer", "path": "/etc/site.conf", "env": {"X": "y"}}],
            ldconfig=True,
        ),
        environ={"J": "42", "JJ": "no", "PMI_FD": "3", "PMIX": "no"},
    )
    assert found.errors == ()
    assert found.mounts == (
        Mount("/opt/lib/liba.so.1", "/usr/lib/liba.so.1"),
        Mount("/opt/lib/libb.so.2", "/usr/lib/libb.so.2"),
        Mount("/opt/lib", "/opt/lib", ("rw",)),
    )
    assert found.copies == (Copy("/etc/site.conf", "/etc/site.conf", "0600"),)
    assert found.devices == (Device("/dev/dri/card0"),)
    assert (found.env_set, found.env_prepend, found.env_append) == (
        {"A": "1", "J": "42", "PMI_FD": "3"},
        {"PATH": "/x"},
        {"M": "/y"},
    )
    assert found.env_unset == ("B",)
    assert found.hooks == (Hook("createContainer", "/etc/site.conf", ("/etc/site.conf",), ("X=y",)),)
    assert found.ldconfig
    assert found.reasons[0] == "site: on for every container"
    assert plan.from_json(plan.to_json(found)) == found


def test_the_hash_stands_for_what_is_done(planned: Planning) -> None:
    first = planned(on("a", env={"set": {"A": "1", "B": "2"}}))
    same = planned({"name": "a", "when": {"env": ["J"]}, "env": {"set": {"B": "2", "A": "1"}}}, environ={"J": "1"})
    other = planned(on("a", env={"set": {"A": "1", "B": "3"}}))
    assert first.hash == same.hash != other.hash
    assert first.reasons != same.reasons


@pytest.mark.parametrize(
    ("when", "options", "why"),
    [
        ({"annotation": ["squashmount.mpi=auto"]}, {"annotations": {"squashmount.mpi": "auto"}}, "annotation"),
        ({"annotation": ["org.any"]}, {"annotations": {"org.any": "x"}}, "annotation org.any"),
        ({"env": ["SLURM_JOB_ID"]}, {"environ": {"SLURM_JOB_ID": "1"}}, "variable of the job SLURM_JOB_ID"),
        ({"env": ["A=b"]}, {"environ": {"A": "b"}}, "variable of the job A=b"),
        ({"label": ["gpu=yes"]}, {"labels": {"gpu": "yes"}}, "label of the image gpu=yes"),
        ({}, {"annotations": {"squashmount.a": "on"}}, "annotation squashmount.a=on"),
        ({}, {"policy": {"on": ("a",)}}, "on for everybody"),
    ],
)
def test_a_condition_switches_a_module_on(
    planned: Planning, when: dict[str, Any], options: dict[str, Any], why: str
) -> None:
    table = {"name": "a", "when": when}
    found = planned(table, **options)
    assert (found.modules, found.errors) == (("a",), ())
    assert why in found.reasons[0]
    assert planned(table).modules == ()


@pytest.mark.parametrize("key", ["squashmount.a", "squashmount.mpi"])
def test_off_is_off_for_what_is_on_for_everybody(planned: Planning, key: str) -> None:
    table = {"name": "a", "when": {"always": True, "annotation": ["squashmount.mpi=auto"]}}
    found = planned(table, annotations={key: "off"}, policy={"on": ("a",)})
    assert found.empty
    assert found.rejected == (f"a: switched off by annotation {key}=off",)


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (("squashmount.mpi", "mpch"), "squashmount.mpi='mpch' means nothing here; allowed: auto, off"),
        (
            ("squashmount.mpii", "auto"),
            "the annotation squashmount.mpii; did you mean squashmount.mpi?",
        ),
        (("squashmount.zzzzzzzz", "off"), "No module knows the annotation squashmount.zzzzzzzz; see:"),
    ],
)
def test_a_mistyped_annotation_stops_the_container(planned: Planning, annotation: tuple[str, str], said: str) -> None:
    table = {"name": "a", "when": {"annotation": ["squashmount.mpi=auto"]}}
    found = planned(table, annotations=dict([annotation]))
    assert said in found.errors[0]
    assert planned(table, annotations={"squashmount.mpi.tuning": "x", "squashmount.plan": "0", "other": "y"}).empty


def test_required_modules_come_first(planned: Planning) -> None:
    found = planned(on("a", requires=["b"]), {"name": "b", "requires": ["c"]}, {"name": "c"})
    assert found.modules == ("c", "b", "a")
    assert "b: required by a" in found.reasons


@pytest.mark.parametrize(
    ("tables", "options", "said"),
    [
        ([on("a", requires=["none"])], {}, "requires the module none, which is not installed"),
        ([on("a", requires=["b"]), {"name": "b"}], {"policy": {"off": ("b",)}}, "requires the module b, but the site"),
        ([], {"policy": {"on": ("b",)}}, "The site's policy switches on the module b, which is not installed."),
        ([on("a", conflicts=["b"]), on("b")], {}, "The modules a and b cannot be on together."),
        ([{"name": "a"}], {"policy": {"off": ("a",)}, "annotations": {"squashmount.a": "on"}}, "but the site's policy"),
        ([on("a", planner="none")], {}, "the planner 'none' does not exist"),
        ([on("a", mounts=[{"source": "/opt/none"}])], {}, "a: /opt/none is not on this host"),
        ([on("a", devices=[{"path": "/dev/none", "optional": False}])], {}, "the device /dev/none is not on this host"),
        (
            [on("a", devices=[{"path": "/dev/plain", "optional": False}])],
            {},
            "device /dev/plain is not on",
        ),
        ([on("a", mounts=[{"source": "/etc"}])], {}, "'/etc' is forbidden by the policy (/etc/passwd)"),
        ([on("a", mounts=[{"source": "/opt/lib", "target": "/lib/liba.so.1"}])], {}, "is a file, not a directory"),
        ([on("a", mounts=[{"source": "/etc/site.conf", "target": "/lib"}])], {}, "is a directory, not a file"),
        ([on("a", mounts=[{"source": "/opt/lib", "target": "/new", "create": "none"}])], {}, "the image has no '/new'"),
        (
            [on("a", mounts=[{"source": "/opt/lib", "target": "/new", "create": "file"}])],
            {},
            "as a file, but a dir",
        ),
        ([on("a", env={"set": {"A": "1"}}), on("b", env={"set": {"A": "2"}})], {}, "A is set to '2', and to '1'"),
        (
            [
                on("a", mounts=[{"source": "/opt/lib", "target": "/x"}]),
                on("b", mounts=[{"source": "/etc", "target": "/x"}]),
            ],
            {},
            "'/etc' and '/opt/lib' (module a) are both to be mounted on '/x'",
        ),
        ([on("a", mounts=[{"source": "/opt/lib"}])], {"doubt": lambda _: "not ours"}, "is not trusted: not ours"),
        ([on("a", mounts=[{"source": "/$J/x"}], allow_env=["J"])], {}, "the job has no variable J, which /$J/x needs"),
        (
            [on("a", mounts=[{"source": "/$J/x"}], allow_env=["J"])],
            {"environ": {"J": "../etc"}},
            "not an absolute path without ..",
        ),
    ],
)
def test_what_stops_a_container(
    planned: Planning, tables: list[dict[str, Any]], options: dict[str, Any], said: str
) -> None:
    found = planned(*tables, **options)
    assert len(found.errors) == 1
    assert said in found.errors[0]


def test_optional_means_that_the_host_may_lack_it(planned: Planning) -> None:
    found = planned(on("a", mounts=[{"source": "/opt/none", "optional": True}], devices=[{"path": "/dev/none*"}]))
    assert (found.errors, found.mounts) == ((), ())
    assert len(found.rejected) == 2
    found = planned(on("a", mounts=[{"source": "/opt/lib", "target": "/etc/passwd", "optional": True}]))
    assert "forbidden" in found.errors[0]


def test_the_policy_may_say_warn(planned: Planning) -> None:
    found = planned(on("a", mounts=[{"source": "/opt/none"}]), policy={"missing_required": "warn"})
    assert (found.errors, found.missing) == ((), ("a: /opt/none is not on this host",))
    assert found.warnings == found.missing


def test_only_allowed_variables_are_read_and_taken_literally(planned: Planning, host: Path) -> None:
    (host / "opt/*").mkdir()
    rule = {"source": "/opt/$J", "target": "/data/${J}"}
    table = on("a", mounts=[rule], allow_env=["J"], env={"set": {"X": "<$J>"}})
    found = planned(table, environ={"J": "*", "K": "no"})
    assert found.mounts == (Mount("/opt/*", "/data/*"),)
    assert found.env_set == {"X": "<*>"}
    assert "no variable J" in planned(on("a", mounts=[rule]), environ={"J": "lib"}).errors[0]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("/etc/passwd", "(leads to '/etc/passwd') is forbidden by the policy"),
        ("../../../../../etc/passwd", "(leads to '/etc/passwd') is forbidden by the policy"),
        ("/../../outside", "leads to '/outside', which does not exist"),
        ("trap", "cannot be resolved"),
        ("/proc/1/root/tmp", "forbidden by the policy (/proc)"),
    ],
)
def test_hostile_links_at_a_destination(planned: Planning, image: Path, link: str, said: str) -> None:
    (image.parent / "outside").mkdir()
    (image / "trap").symlink_to(link)
    found = planned(on("a", mounts=[{"source": "/opt/lib", "target": "/trap"}]))
    assert said in found.errors[0]
    assert found.mounts == ()


@pytest.mark.parametrize(("link", "said"), [("/tmp", "no device"), ("../out", "no device"), ("dev", "Too many levels")])
def test_no_device_where_dev_is_a_link(planned: Planning, image: Path, link: str, said: str) -> None:
    rule = on("a", devices=[{"path": "/dev/dri/card0"}])
    assert planned(rule).errors == ()
    if (image / "dev").is_dir():
        (image / "dev").rmdir()
    (image / "dev").symlink_to(link)
    assert said in planned(rule).errors[0]
    assert planned(on("b")).errors == ()


def test_hostile_fifo_and_newlines(planned: Planning, image: Path, host: Path) -> None:
    os.mkfifo(image / "fifo")
    found = planned(on("a", mounts=[{"source": "/etc/site.conf", "target": "/fifo"}]))
    assert "'/fifo' in the image is neither a file nor a directory" in found.errors[0]
    (host / "opt/lib/lib\nx.so").write_text("")
    found = planned(on("a", mounts=[{"source": "/opt/lib/*.so", "target": "/lib"}]))
    assert found.mounts == (Mount("/opt/lib/lib\nx.so", "/usr/lib/lib\nx.so"),)
    assert not any("\n" in text for text in found.reasons)


def test_a_planner_adds_to_the_plan(planned: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_it(question: planners.Question) -> Contribution:
        assert question.module == Module("a", "test", planner="mine", when=module.When(always=True))
        source = "/opt/lib/liba.so.1"
        return Contribution(mounts=(Mount(source, "/lib/liba.so.1"),), env_prepend={"P": "/a"}, reasons=("why",))

    monkeypatch.setattr(planning, "planner", {"mine": plan_it}.get)
    found = planned(on("a", planner="mine"), on("b", env={"prepend": {"P": "/b"}}))
    assert found.mounts == (Mount("/opt/lib/liba.so.1", "/usr/lib/liba.so.1"),)
    assert found.env_prepend == {"P": "/a:/b"}
    assert "a: why" in found.reasons
    assert "forbidden" in planned(on("a", planner="mine"), policy={"forbidden": ("/lib",)}).errors[0]


def test_a_planners_hook_must_be_a_trusted_file(planned: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = Hook("createContainer", "/opt/hook")
    monkeypatch.setattr(planning, "planner", {"mine": lambda _: Contribution(hooks=(hook,))}.get)
    assert planned(on("a", planner="mine")).hooks == (hook,)
    found = planned(on("a", planner="mine"), doubt=lambda path: "not ours" if path == "/opt/hook" else "")
    assert found.errors == ("a: '/opt/hook' is not trusted: not ours",)


def test_the_table_of_planners_is_right() -> None:
    for name in planners.PLANNERS:
        assert callable(planners.planner(name))
    assert planners.planner("none") is None


def test_two_copies_to_one_place(planned: Planning) -> None:
    def copies(name: str, source: str, **rule: str) -> dict[str, Any]:
        return on(name, copies=[{"source": source, "target": "/etc/x", **rule}])

    first, second = copies("a", "/etc/site.conf"), copies("b", "/opt/lib/liba.so.1")
    assert planned(first, second).errors == (
        "b: '/opt/lib/liba.so.1' and '/etc/site.conf' (module a) are both to be copied to '/etc/x'",
    )
    (error,) = planned(first, copies("b", "/etc/site.conf", mode="0600")).errors
    assert error.endswith("are both to be copied to '/etc/x', with modes 0600 and 0644")
    assert planned(first, copies("b", "/etc/site.conf")).copies == (Copy("/etc/site.conf", "/etc/x"),)


@pytest.mark.parametrize("target", ["/opt", "/opt/x", "/opt/x/y"])
def test_a_copy_and_a_mount_in_one_place(planned: Planning, target: str) -> None:
    mounts = on("m", mounts=[{"source": "/opt/lib", "target": target}])
    copies = on("c", copies=[{"source": "/etc/site.conf", "target": "/opt/x"}])
    assert planned(mounts, copies).errors == (
        f"c: '/etc/site.conf' is to be copied to '/opt/x', and '/opt/lib' mounted on '{target}'",
    )
    assert planned(on("m", mounts=[{"source": "/opt/lib", "target": "/opt/xx"}]), copies).errors == ()


def test_a_planner_sees_what_the_module_names(planned: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def ask(question: planners.Question) -> Contribution:
        seen.append(question.image_env)
        return Contribution()

    monkeypatch.setattr(planning, "planner", lambda _name: ask)
    env = WatchedVariables({"A": "1", "A_B": "2", "A_C": "3", "SECRET": "4"})
    for names in ([], ["A", "NONE"], ["A_*"]):
        planned(on("m", planner="any", image_env=names), env=env)
    assert seen == [{}, {"A": "1"}, {"A_B": "2", "A_C": "3"}]
    # what a remembered plan depends on
    env = WatchedVariables(dict(env))
    planned(on("m", planner="any", image_env=["A", "NONE", "A_*"]), env=env)
    assert env.answers() == {"A": "1", "A_*": "A_B=2\0A_C=3", "NONE": None}
