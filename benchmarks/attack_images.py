"""Small files of very many pixels, and others that want more of a decoder than they look like."""

import struct
import zlib
from collections.abc import Mapping

__all__ = ["create_bombs", "png"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int, height: int, *, rows: int = 0, extra: bytes = b"") -> bytes:
    """A black and white PNG of so many pixels, of which only `rows` are there."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    squeezer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(squeezer.compress(row) for _ in range(rows)) + squeezer.flush()
    return (
        SIGNATURE + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    )


def _text(size: int) -> bytes:
    """A compressed comment of so many bytes."""
    return _chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(size), 9))


def create_bombs() -> Mapping[str, bytes]:
    """By what they are called."""
    bitmap = struct.pack("<IiiHHIIiiII", 40, 46_000, 46_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return {
        "PNG of 400 million pixels": png(20_000, 20_000, rows=20_000),
        "PNG that says 4 billion billion": png(2**31 - 1, 2**31 - 1),
        "PNG of 50 million x 1": png(50_000_000, 1, rows=1),
        "PNG just below the limit": png(7_000, 7_000, rows=7_000),
        "PNG with 100 MB of comment": png(8, 8, rows=8, extra=_text(100_000_000)),
        "PNG of no rows": png(4_000, 4_000),
        "GIF of 65535 x 65535": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00\x00\x00;",
        "BMP of 2 billion": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + bitmap,
        "JPEG of 65535 x 65535": bytes.fromhex("ffd8ffc0000b08ffffffff01011100ffd9"),
    }
