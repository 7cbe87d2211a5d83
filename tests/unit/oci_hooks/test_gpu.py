"""Which GPUs a job got: the variables in all their forms."""

import pytest
from squashmount.oci_hooks import cuda
from squashmount.oci_hooks.gpu import Gpu, named, numbers, select, tokens

VISIBLE = "CUDA_VISIBLE_DEVICES"
# the device files are numbered against the order of the PCI addresses, as on some boards
GPUS = tuple(Gpu(order, 3 - order, f"GPU-{order}aaa", (f"/dev/nvidia{3 - order}",)) for order in range(4))


def chosen(**environ: str) -> tuple[list[int], str]:
    found = select(GPUS, environ, VISIBLE)
    assert not found.errors
    assert found.reasons
    return [gpu.number for gpu in found.gpus], found.value


def test_lists() -> None:
    assert numbers("0,2-4") == (0, 2, 3, 4)
    assert tokens("0, GPU-1,MIG-2") == ("0", "GPU-1", "MIG-2")
    for none in ("", "NoDevFiles", "-1", "none", "void"):
        assert tokens(none) == ()
    with pytest.raises(ValueError, match="invalid literal"):
        numbers("all")


def test_a_shortened_uuid_must_be_unambiguous() -> None:
    gpus = (Gpu(0, 0, "GPU-12aa"), Gpu(1, 1, "GPU-12bb"), Gpu(2, 2))
    assert named("GPU-12b", gpus) == gpus[1]
    assert named("gpu-12b", gpus) is None
    assert named("GPU-12", gpus) is None
    assert named("GPU-3", gpus) is None
    assert named("7", gpus) is None


def test_without_a_scheduler() -> None:
    assert chosen() == ([3, 2, 1, 0], "")
    assert chosen(**{VISIBLE: "NoDevFiles"}) == ([], "")


def test_indices_are_counted_anew_inside() -> None:
    assert chosen(**{VISIBLE: "2,1"}) == ([2, 1], "1,0")
    assert chosen(**{VISIBLE: "3"}) == ([0], "0")


def test_uuids_stay() -> None:
    assert chosen(**{VISIBLE: "GPU-2a,GPU-0aaa"}) == ([3, 1], "GPU-2a,GPU-0aaa")


def test_slurm_gives_all_gpus_of_the_step_to_each_task() -> None:
    # ConstrainDevices=yes: the index counts the step's GPUs
    assert chosen(SLURM_STEP_GPUS="0,1", **{VISIBLE: "1"}) == ([1, 0], "1")
    # without: it is that of the device file
    assert chosen(SLURM_STEP_GPUS="2,3", **{VISIBLE: "2,3"}) == ([3, 2], "1,0")
    assert chosen(SLURM_JOB_GPUS="0-3", **{VISIBLE: "0,1,2,3"}) == ([3, 2, 1, 0], "0,1,2,3")
    assert chosen(SLURM_STEP_GPUS="3", SLURM_JOB_GPUS="0-3") == ([3], "")
    assert chosen(SLURM_STEP_GPUS="0,1", **{VISIBLE: "GPU-3aaa"}) == ([1, 0], "GPU-3aaa")


def test_numbers_that_say_nothing_here_are_passed_over() -> None:
    assert chosen(SLURM_STEP_GPUS="tesla:2", **{VISIBLE: "0"}) == ([3], "0")
    assert chosen(SLURM_STEP_GPUS="128", **{VISIBLE: "0"}) == ([3], "0")


@pytest.mark.parametrize("value", ["4", "GPU-9", "0,9", "0:1"])
def test_a_gpu_that_is_not_here_is_an_error(value: str) -> None:
    found = select(GPUS, {VISIBLE: value}, VISIBLE)
    assert not found.gpus
    assert value in found.errors[0]
    assert "known: 0 GPU-0aaa, " in found.errors[0]


EVERY = [3, 2, 1, 0]
FORMS = [
    ("", [], ""),
    *((word, [], "") for word in ("NoDevFiles", "none", "void", "-1")),
    ("all", EVERY, ""),
    ("0", [3], "0"),
    ("3,0", [3, 0], "1,0"),
    (" 1 , 2 ", [2, 1], "0,1"),
    ("GPU-1aaa", [2], "GPU-1aaa"),
    ("GPU-1", [2], "GPU-1"),
    ("GPU-1,2", [2, 1], "GPU-1,1"),
]


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
@pytest.mark.parametrize(("value", "numbers_chosen", "inside"), FORMS)
def test_every_form_of_the_drivers_variable(variable: str, value: str, numbers_chosen: list[int], inside: str) -> None:
    found = select(GPUS, {variable: value}, variable)
    assert not found.errors
    assert ([gpu.number for gpu in found.gpus], found.value) == (numbers_chosen, inside)
    assert value in found.reasons[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((word, []) for word in ("", "NoDevFiles", "none", "void")),
        ("all", EVERY),
        ("3", [3]),
        ("0-1,3", [3, 1, 0]),
        ("GPU-0aaa,GPU-3", [3, 0]),
        ("nvidia2", [2]),
        ("nvidia2:mig1", [2]),
        ("GPU-9", EVERY),
    ],
)
@pytest.mark.parametrize("variable", ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"])
def test_every_form_of_slurms_list(variable: str, value: str, expected: list[int]) -> None:
    assert chosen(**{variable: value}) == (expected, "")


def test_a_gpu_outside_of_the_step_is_an_error() -> None:
    for value in ("3", "GPU-0aaa"):
        found = select(GPUS, {"SLURM_STEP_GPUS": "0,1", VISIBLE: value}, VISIBLE)
        assert not found.gpus
        assert "not among those of SLURM_STEP_GPUS=0,1" in found.errors[0]
    # an index counts the step's, and a UUID may be one that /proc does not show
    assert chosen(SLURM_STEP_GPUS="0,1", **{VISIBLE: "1,GPU-fff"}) == ([1, 0], "1,GPU-fff")


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        ("535.54.03", (12, 2)),
        ("535.10", (12, 1)),
        ("580.95.05", (13, 0)),
        ("999.0", (13, 1)),
        ("470.256.02", (11, 4)),
        ("340.108", ()),
        ("", ()),
    ],
)
def test_cuda_of_a_driver(driver: str, expected: tuple[int, ...]) -> None:
    assert cuda.cuda_of_driver(cuda.version(driver)) == expected


KNOWN = {"driver": "535.104.05", "cuda": "12.2"}


@pytest.mark.parametrize(
    ("demand", "met"),
    [
        ("cuda>=11.8", True),
        ("cuda>=12.2", True),
        ("cuda>=12.3", False),
        ("cuda>12.2", False),
        ("cuda<=12.2", True),
        ("cuda=12.2", True),
        ("cuda==12.2.0", True),
        ("cuda!=12.2", False),
        ("cuda<13 cuda>=20", True),
        ("cuda>=11,driver<470", False),
        ("cuda>=12.6 brand=tesla,driver>=535,driver<536", None),
        ("cuda>=12.6 brand=tesla,driver>=470,driver<471", False),
        ("cuda>=12.6 driver>=535,driver<536", True),
        ("arch>=8.0", None),
        ("nonsense", None),
    ],
)
def test_what_an_image_demands(demand: str, met: bool | None) -> None:
    verdict = cuda.check(demand, KNOWN)
    assert verdict.met is met
    assert demand in verdict.why
    assert "535.104.05" in verdict.why


def test_demands_can_be_several_or_switched_off() -> None:
    environ = {"NVIDIA_REQUIRE_CUDA": "cuda>=12", "NVIDIA_REQUIRE_X": " ", "NVIDIA_REQUIRE_JETPACK": "csv-mounts=all"}
    assert sorted(cuda.requirements(environ)) == ["NVIDIA_REQUIRE_CUDA", "NVIDIA_REQUIRE_JETPACK"]
    assert cuda.requirements(environ | {"NVIDIA_DISABLE_REQUIRE": "1"}) == {}
