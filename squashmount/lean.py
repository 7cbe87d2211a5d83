"""What the mount path and the server use of `typing`, `collections`, `contextlib`, `threading`, `signal` and `json`.

The mount program starts with every container, a server with the first of an image. `typing` alone imports `re`, `enum`,
`functools` and six more: 5 ms, more than the whole rest of a mount. Type checkers see the originals; at run time only
modules are used that are part of every interpreter.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    import signal
    from collections import OrderedDict
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import suppress
    from functools import partial
    from threading import Lock, Thread, local
    from typing import Any, Final, Generic, NamedTuple, NewType, NoReturn, Self, TypeVar
else:
    # loaded with `os`; collections.abc is this module under another name, below a package of 1 ms
    import _signal as signal  # the numbers without their enum, 2 ms
    from _collections import OrderedDict
    from _collections_abc import Callable, Iterable, Iterator, Sequence
    from _functools import partial
    from _operator import itemgetter
    from _thread import _local as local
    from _thread import allocate_lock as Lock  # noqa: N812 - the name in threading
    from _thread import start_new_thread

    Any = Final = NoReturn = Self = object

    def TypeVar(_name):  # noqa: N802 - the name in typing
        """As typing.TypeVar."""
        return object

    def NewType(_name, kind):  # noqa: N802 - the name in typing
        """As typing.NewType: the kind itself."""
        return kind

    class Generic:
        """As typing.Generic: takes type arguments and forgets them."""

        __slots__ = ()

        def __class_getitem__(cls, _arguments):
            return cls

    class _Fields(type):
        def __new__(mcs, name, bases, namespace):
            if not bases:
                return super().__new__(mcs, name, (tuple,), {**namespace, "__slots__": ()})
            fields = tuple(_annotations(namespace))
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            getters = {field: property(itemgetter(at)) for at, field in enumerate(fields)}
            described = {"__slots__": (), "__match_args__": fields, "_fields": fields, "_field_defaults": defaults}
            return super().__new__(mcs, name, bases, namespace | getters | described)

    def _annotations(namespace):
        if "__annotations__" in namespace:
            return namespace["__annotations__"]
        # PEP 649 (Python 3.14): a function that is asked for the values (format 1)
        annotate = namespace.get("__annotate_func__") or namespace.get("__annotate__")
        return annotate(1) if annotate else {}

    def _compiled_new(cls):
        # as collections.namedtuple: a fifth of the time, but 40 us to make
        names = {f"d{at}": value for at, value in enumerate(cls._field_defaults.values())}
        defaults = dict(zip(cls._field_defaults, names, strict=True))
        arguments = ", ".join(f"{field}={defaults[field]}" if field in defaults else field for field in cls._fields)
        code = f"lambda cls, {arguments}: new(cls, ({', '.join(cls._fields)},))"
        return eval(code, {"new": tuple.__new__, **names})  # noqa: S307 - the fields are names in our own source

    class NamedTuple(metaclass=_Fields):
        """As typing.NamedTuple: the annotated names of a direct subclass are the fields."""

        _often = 100

        def __new__(cls, *values, **named):
            cls._often -= 1
            if cls._often <= 0:
                cls.__new__ = staticmethod(_compiled_new(cls))
            fields = cls._fields
            if named or len(values) != len(fields):
                given = {**dict(zip(fields, values, strict=False)), **named}
                if len(given) != len(values) + len(named) or not given.keys() <= set(fields):
                    raise TypeError(f"{cls.__name__} takes {', '.join(fields)}; got {values} and {named}")
                given = {**cls._field_defaults, **given}
                if len(given) != len(fields):
                    raise TypeError(f"{cls.__name__} needs {', '.join(f for f in fields if f not in given)}")
                values = [given[field] for field in fields]
            return tuple.__new__(cls, values)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._asdict().items())})"

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changed):
            return type(self)(**{**self._asdict(), **changed})

    class Thread:
        """As threading.Thread, always a daemon: ends with the process."""

        def __init__(self, *, target, args=(), daemon):
            assert daemon
            self._target = target
            self._args = args
            self._running = Lock()

        def start(self):
            """Start it; once."""
            self._running.acquire()
            try:
                start_new_thread(self._run, ())
            except RuntimeError:  # the limit of processes: nothing runs, so nothing is to be waited for
                self._running.release()
                raise

        def _run(self):
            try:
                self._target(*self._args)
            finally:
                self._running.release()

        def join(self):
            """Wait for its end."""
            with self._running:
                pass

    class suppress:  # noqa: N801 - contextlib's name
        """As contextlib.suppress."""

        def __init__(self, *errors):
            self._errors = errors

        def __enter__(self):
            return None

        def __exit__(self, kind, error, trace):
            return kind is not None and issubclass(kind, self._errors)


__all__ = [
    "TYPE_CHECKING",
    "Any",
    "Callable",
    "Final",
    "Generic",
    "Iterable",
    "Iterator",
    "Lock",
    "NamedTuple",
    "NewType",
    "NoReturn",
    "OrderedDict",
    "Self",
    "Sequence",
    "Thread",
    "TypeVar",
    "fnv1a",
    "json_text",
    "local",
    "partial",
    "signal",
    "suppress",
]


def fnv1a(data: bytes) -> str:
    """Return the 64-bit FNV-1a hash in hex: for names, where nobody gains by a collision (IETF draft-eastlake-fnv).

    `hashlib` maps OpenSSL, 2 ms; the builtin hashes have other module names from version to version.
    """
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return f"{value:016x}"


def json_text(value: object) -> str:
    """Return `value` (None, numbers, strings, lists, tuples, dictionaries with string keys) as JSON, in ASCII."""
    if isinstance(value, str):
        return '"' + "".join(_escaped(char) for char in value) + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json_text(key)}: {json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _escaped(char: str) -> str:
    if " " <= char <= "~" and char not in '"\\':
        return char
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
