"""JSON for the hook: the interpreter's own scanner and encoder without the package around them.

`json` imports `re`, `enum` and `functools`: 15 ms of the 20 a container start may be delayed. What `json` itself calls
is in `_json`; where an interpreter lacks it, `json` is used.
"""

from squashmount.errors import UsageError
from squashmount.lean import Any

_fast: Any
try:
    import _json as _fast
except ImportError:  # not CPython
    _fast = None

_SPACE = " \t\n\r"


class _Settings:
    """What json.JSONDecoder tells the scanner (Lib/json/decoder.py)."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner's, not ours


def loads(data: bytes, *, where: str) -> Any:
    """Parse a JSON text in UTF-8. UsageError names `where` when it is something else."""
    try:
        text = data.decode("utf-8")
        if _fast is None:
            import json  # noqa: PLC0415 - see above

            return json.loads(text)
        start = len(text) - len(text.lstrip(_SPACE))
        value, end = _fast.make_scanner(_Settings)(text, start)
    except StopIteration as err:
        raise UsageError(f"{where} is not valid JSON.", details=f"at character {err.value}") from None
    except (ValueError, RecursionError) as err:
        raise UsageError(f"{where} is not valid JSON.", details=str(err)) from None
    if text[end:].strip(_SPACE):
        raise UsageError(f"{where} is not valid JSON.", details=f"more follows at character {end}")
    return value


def dumps(value: Any) -> bytes:
    """Return `value` as JSON, in ASCII without spaces. TypeError for what JSON does not know."""
    if _fast is None:
        import json  # noqa: PLC0415 - see above

        return json.dumps(value, separators=(",", ":")).encode()
    encode = _fast.make_encoder(None, _unknown, _fast.encode_basestring_ascii, None, ":", ",", False, False, True)
    return "".join(encode(value, 0)).encode()


def _unknown(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is not JSON")
