"""The stand-ins of `lean` behave as what they stand for."""

import contextlib
import copy
import json
import os
import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squashmount.lean import NamedTuple, fnv1a, json_text, suppress


class Ours(NamedTuple):
    """Docstring."""

    a: int
    b: str = "x"

    @property
    def both(self) -> str:
        return f"{self.a}{self.b}"


class Theirs(typing.NamedTuple):
    """Docstring."""

    a: int
    b: str = "x"

    @property
    def both(self) -> str:
        return f"{self.a}{self.b}"


@pytest.mark.parametrize(
    "ask",
    [
        lambda kind: repr(kind(1)).replace(kind.__name__, ""),
        lambda kind: (kind(1), kind(1, "y"), kind(b="z", a=3), kind(1, b="q")),
        lambda kind: (kind(1).a, kind(1).b, kind(1).both),
        lambda kind: (kind(1)._asdict(), kind._fields, kind._field_defaults, kind.__match_args__),
        lambda kind: kind(1)._replace(b="r"),
        lambda kind: (kind(1) == (1, "x"), kind(1) == kind(2), hash(kind(1)), {kind(1): 5}[kind(1)]),
        lambda kind: (copy.copy(kind(1)), copy.deepcopy(kind(1))),
        lambda kind: (kind.__doc__, issubclass(kind, tuple), [*kind(1)]),
    ],
)
def test_named_tuples_are_the_same(ask: Callable[[Any], object]) -> None:
    assert ask(Ours) == ask(Theirs)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda kind: kind(),
        lambda kind: kind(1, "x", 2),
        lambda kind: kind(1, a=2),
        lambda kind: kind(1, c=2),
        lambda kind: kind(b="x"),
        lambda kind: setattr(kind(1), "a", 2),
        lambda kind: setattr(kind(1), "c", 2),
    ],
)
@pytest.mark.parametrize("kind", [Ours, Theirs])
def test_named_tuples_refuse_the_same(kind: object, wrong: Callable[[object], object]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        wrong(kind)


def test_named_tuples_made_often_are_the_same() -> None:
    class Often(NamedTuple):
        a: int
        b: str = "x"
        c: float = 0.5

    made = {(Often(1), Often(1, c=2), Often(c=3, a=1)) for _ in range(100)}
    assert made == {((1, "x", 0.5), (1, "x", 2), (1, "x", 3))}
    with pytest.raises(TypeError, match="missing"):
        Often(b="x")  # type: ignore[call-arg]
    assert copy.copy(Often(1)._replace(b="r")).b == "r"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_text_is_read_back(value: object) -> None:
    assert json.loads(json_text(value)) == value


def test_json_text_takes_names_that_are_not_text() -> None:
    name = os.fsdecode(b"/odd/\xff\n")
    assert json.loads(json_text({"target": (name, 1)})) == {"target": [name, 1]}


@pytest.mark.parametrize("kind", [suppress, contextlib.suppress])
def test_suppress_lets_other_errors_through(kind: Callable[..., contextlib.suppress]) -> None:
    with kind(KeyError, OSError):
        raise FileNotFoundError
    with pytest.raises(ValueError, match="other"), kind(KeyError, OSError):
        raise ValueError("other")


def test_fnv1a_has_its_published_values() -> None:
    # draft-eastlake-fnv, "FNV-1a 64 bit test vectors"
    assert [fnv1a(text) for text in (b"", b"a", b"foobar")] == [
        "cbf29ce484222325",
        "af63dc4c8601ec8c",
        "85944171f73967e8",
    ]
