"""What the mount path uses of `typing`, `collections` and `contextlib`, without importing them.

The mount program starts with every container. `typing` alone imports `re`, `enum`, `functools` and six more: 5 ms, more
than the whole rest of a mount. Type checkers see the originals; at run time only modules are used that every
interpreter has loaded anyway.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import suppress
    from typing import NamedTuple, NoReturn
else:
    # loaded with `os`; collections.abc is this module under another name, below a package of 1 ms
    from _collections_abc import Callable, Iterator
    from _operator import itemgetter

    NoReturn = None

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

    class NamedTuple(metaclass=_Fields):
        """As typing.NamedTuple: the annotated names of a direct subclass are the fields."""

        def __new__(cls, *values, **named):
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
    "Callable",
    "Iterator",
    "NamedTuple",
    "NoReturn",
    "fnv1a",
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
