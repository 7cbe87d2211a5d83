"""The nodes of a job, from the short form that Slurm writes: `n[001-003,7],login1` (scontrol(1), hostlist)."""

from squashmount.lean import Iterator

MOST = 20_000


def expanded(text: str) -> list[str]:
    """Return the names; [] when it is not such a list, or one of more than MOST names."""
    names: list[str] = []
    for part in _parts(text):
        for name in _names(part):
            if not name or len(names) >= MOST or not all(char.isalnum() or char in "._-" for char in name):
                return []
            names.append(name)
    return names


def _parts(text: str) -> Iterator[str]:
    """Split at commas outside of brackets."""
    part, depth = "", 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            yield part
            part = ""
        else:
            part += char
    if part:
        yield part


def _names(part: str) -> Iterator[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        yield part
        return
    ranges, closed, after = rest.partition("]")
    if not closed:
        yield ""
        return
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        last = last or first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()) or len(last) > 9:
            yield ""
            return
        if int(last) - int(first) > MOST:
            yield ""
            return
        for number in range(int(first), int(last) + 1):
            for rest_of_name in _names(after):
                yield f"{before}{number:0{len(first)}d}{rest_of_name}"
