"""Decoders of the six squashfs compressors (and encoders of two), each imported only when a file needs it.

A decoder takes the stored bytes and the largest size the format allows for the result. It never produces more than
that (a few hundred damaged bytes can claim gigabytes) and raises BadDataError for anything it cannot decode.
Numbers: squashfs_fs.h, `*_COMPRESSION`.
"""

import sys

from squashmount.errors import ToolError
from squashmount.lean import Any, Callable, local

Decoder = Callable[[bytes, int], bytes]
Encoder = Callable[[bytes], bytes]

COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}

# Enough for the 1 MiB dictionaries mksquashfs can choose; a damaged header can ask for 4 GiB.
_XZ_MEMORY = 128 << 20
_ZSTD_WINDOW = 8 << 20
_ZSTD_LEVEL = 9


class BadDataError(Exception):
    """The stored bytes are not what the compressor wrote."""


def decoder(compressor: str) -> Decoder:
    """Return the decoder for a name in COMPRESSORS; ToolError when its Python package is not installed."""
    return _MAKERS[compressor]()


def encoder(compressor: str) -> Encoder:
    """Return a function that compresses whole blocks with gzip or zstd; ToolError as `decoder`."""
    if compressor == "zstd":
        try:
            import zstandard  # noqa: PLC0415 - only the compressor in use is imported
        except ImportError as err:
            raise _missing("zstd", "zstandard", "pip install zstandard") from err
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress
    assert compressor == "gzip", compressor
    import zlib  # noqa: PLC0415 - the same

    return zlib.compress


def _gzip() -> Decoder:
    import zlib  # noqa: PLC0415 - only the compressor in use is imported

    def decode(data: bytes, limit: int) -> bytes:
        stream = zlib.decompressobj()
        try:
            result = stream.decompress(data, limit + 1)
        except zlib.error as err:
            raise BadDataError(str(err)) from err
        return _whole(result, limit, ended=stream.eof)

    return decode


def _lzma() -> Decoder:
    return _liblzma("FORMAT_ALONE")


def _xz() -> Decoder:
    return _liblzma("FORMAT_XZ")


def _liblzma(form: str) -> Decoder:
    import lzma  # noqa: PLC0415 - only the compressor in use is imported

    number = getattr(lzma, form)

    def decode(data: bytes, limit: int) -> bytes:
        stream = lzma.LZMADecompressor(format=number, memlimit=_XZ_MEMORY)
        try:
            result = stream.decompress(data, limit + 1)
        except (lzma.LZMAError, MemoryError) as err:
            raise BadDataError(str(err) or "out of memory") from err
        return _whole(result, limit, ended=stream.eof)

    return decode


def _lzo() -> Decoder:
    try:
        import lzo  # noqa: PLC0415 - only the compressor in use is imported
    except ImportError as err:
        raise _missing("lzo", "python-lzo", "pip install 'squashmount[lzo]'") from err

    def decode(data: bytes, limit: int) -> bytes:
        try:
            result: bytes = lzo.decompress(data, False, limit)
        except lzo.error as err:
            raise BadDataError(str(err)) from err
        return result

    return decode


def _lz4() -> Decoder:
    try:
        from lz4.block import LZ4BlockError, decompress  # noqa: PLC0415 - only the compressor in use is imported
    except ImportError as err:
        raise _missing("lz4", "lz4", "pip install lz4") from err

    def decode(data: bytes, limit: int) -> bytes:
        try:
            result: bytes = decompress(data, uncompressed_size=limit)
        except (LZ4BlockError, ValueError, MemoryError) as err:
            raise BadDataError(str(err)) from err
        return result

    return decode


def _zstd_backend() -> Any:
    """Return zstandard's compiled part; the package around it imports platform, re, typing: 9 of 10 ms."""
    name = "zstandard.backend_c"
    for finder in () if name in sys.modules else sys.meta_path:
        package = finder.find_spec("zstandard", None)
        places = package.submodule_search_locations if package else None
        spec = finder.find_spec(name, places) if places else None
        if spec and spec.loader and (module := spec.loader.create_module(spec)):
            spec.loader.exec_module(module)
            return module
    import zstandard  # noqa: PLC0415 - loaded already, or without a compiled part

    return zstandard


def _zstd() -> Decoder:
    try:
        zstandard = _zstd_backend()
    except ImportError as err:
        raise _missing("zstd", "zstandard", "pip install zstandard") from err

    # A ZstdDecompressor is one context and not safe for threads (its documentation, "Thread and Object Reuse").
    mine = local()

    def decode(data: bytes, limit: int) -> bytes:
        try:
            context = mine.context
        except AttributeError:
            context = mine.context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        try:
            # `decompress` allocates whatever the frame header claims: ask the header first.
            claimed = zstandard.frame_content_size(data)
            if claimed > limit:
                raise BadDataError(f"it claims {claimed} bytes, at most {limit} are allowed")
            result: bytes = context.decompress(data, max_output_size=limit)
        except (zstandard.ZstdError, MemoryError) as err:
            raise BadDataError(str(err)) from err
        return result

    return decode


def _whole(result: bytes, limit: int, *, ended: bool) -> bytes:
    if len(result) > limit:
        raise BadDataError(f"it decodes to more than {limit} bytes")
    if not ended:
        raise BadDataError("it ends early")
    return result


def _missing(compressor: str, package: str, hint: str) -> ToolError:
    return ToolError(f"The squash file is compressed with {compressor}; {package} is not installed.", hint=hint)


_MAKERS: dict[str, Callable[[], Decoder]] = {
    "gzip": _gzip,
    "lzma": _lzma,
    "lzo": _lzo,
    "xz": _xz,
    "lz4": _lz4,
    "zstd": _zstd,
}
