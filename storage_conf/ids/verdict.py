"""A finding about many: one sentence for a thousand users with the same problem, and the list of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..finding import Finding

SHOWN = 10
"""How many of a list are shown as text; --json has them all."""


@dataclass(frozen=True)
class Verdict:
    """A finding and everything it is about."""

    finding: Finding
    items: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {**self.finding.as_json(), "count": len(self.items), "items": list(self.items)}


def about(  # noqa: PLR0917 - in the order of error(), warning() and info()
    make: Callable[..., Finding],
    id: str,  # noqa: A002 - the field's name, as in finding.py
    what: str,
    why: str,
    fix: str,
    items: Iterable[object],
) -> Iterator[Verdict]:
    """Yield one verdict on all of the items, nothing where there are none. `make` is error, warning or info."""
    texts = tuple(map(str, items))
    if texts:
        yield Verdict(make(what, why, fix, id=id, evidence=shortened(texts)), texts)


def shortened(texts: Sequence[str]) -> str:
    """Return the first ten, one a line, and how many more there are."""
    more = [f"… and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return "\n".join([*texts[:SHOWN], *more])


def number(many: int, one: str, others: str = "") -> str:
    """Return `1 range` or `7 ranges`."""
    return f"{many} {one if many == 1 else others or one + 's'}"
