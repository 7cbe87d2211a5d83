"""The nodes of a job or step, from the short form that Slurm writes: `n[001-003,7],login1` (scontrol(1), hostlist)."""

from squashmount.lean import Iterator

MOST = 20_000
"""Names; the longest lists of Slurm's sites have half as many, and a longer one is a mistake."""
_MOST_BRACKETS = 8  # in one name


def expanded(text: str) -> list[str]:
    """Return the names as `scontrol show hostnames` does. ValueError when it is not such a list, or a longer one."""
    names: list[str] = []
    for part in _parts(text):
        if part.count("[") > _MOST_BRACKETS:
            raise ValueError(text)
        for name in _names(part):
            if not name or len(names) >= MOST or not all(char.isascii() and _fits(char) for char in name):
                raise ValueError(text)
            names.append(name)
    return names


def _fits(char: str) -> bool:
    return char.isalnum() or char in "._-"


def _parts(text: str) -> Iterator[str]:
    """Split at commas outside of brackets."""
    if not text:
        return
    part, depth = "", 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            yield part
            part = ""
        else:
            part += char
    yield part


def _names(part: str) -> Iterator[str]:
    """Yield the names of one part, which may be no names. ValueError for brackets without ranges."""
    before, bracket, rest = part.partition("[")
    if not bracket:
        yield part
        return
    ranges, closed, after = rest.partition("]")
    if not closed:
        raise ValueError(part)
    for piece in ranges.split(","):
        first, dash, last = piece.partition("-")
        last = last if dash else first
        if not all(text.isascii() and text.isdigit() and len(text) < 10 for text in (first, last)):
            raise ValueError(part)
        if not int(first) <= int(last) < int(first) + MOST:
            raise ValueError(part)
        for number in range(int(first), int(last) + 1):
            for rest_of_name in _names(after):
                yield f"{before}{number:0{len(first)}d}{rest_of_name}"
