"""Strips metadata from image files before Pillow reads them.

Text, comments and other metadata never decide whether an image can be read, and cost neither time nor memory: Pillow
would unpack and join all of it. Kept is what changes how the pixels look: transparency, the EXIF orientation, and one
colour profile of bounded size. Anything unexpected is left as it is, for Pillow to judge; only files of absurdly many
parts, which no program writes, are refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAX_METADATA = 1_000_000  # bytes of an EXIF block or a colour profile, unpacked
MAX_PARTS = 100_000  # of a file; each of them takes Pillow a moment
MAX_BLOCKS = 1_000_000  # of a part of a GIF, each up to 255 bytes

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = frozenset((b"tRNS", b"acTL", b"fcTL", b"fdAT"))  # chunks that are not critical, but are about pixels
PNG_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts in which Pillow looks for it

JPEG_START, JPEG_SCAN = b"\xff\xd8", 0xDA
JPEG_KEPT = (b"Exif\0\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/xap/1.0/\0")

GIF_EXTENSION, GIF_IMAGE, GIF_END = 0x21, 0x2C, b";"
GIF_CONTROL = 0xF9  # the extension with delay and transparency

TIFF_LAYOUTS = {  # byte order; formats of an offset, of the number of entries, and of an entry: tag, type, count, value
    b"II*\0": ("<I", "<H", "<HHII"),
    b"MM\0*": (">I", ">H", ">HHII"),
    b"II+\0": ("<Q", "<Q", "<HHQQ"),
    b"MM\0+": (">Q", ">Q", ">HHQQ"),
}
TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # of types; others have 1
TIFF_LAST, TIFF_KEPT = 532, (700, 34675)  # the last tag of the specification; XMP, in which Pillow looks, and profile


def without_metadata(data: bytes) -> bytes:
    """The file without most of its metadata; of a GIF, only the first frame.

    Raises:
        ValueError: it has absurdly many parts.
    """
    for start, parts in ((PNG_SIGNATURE, png_parts), (JPEG_START, jpeg_parts), (b"GIF8", gif_parts)):
        if data.startswith(start):
            return b"".join(parts(data))
    return tiff_with_few_tags(data) if data[:4] in TIFF_LAYOUTS else data


def bounded(number: int) -> Iterator[None]:
    for _ in range(number):
        yield
    raise ValueError("the file has too many parts")


def png_parts(data: bytes) -> Iterator[bytes]:
    position, seen = len(PNG_SIGNATURE), set[bytes]()
    yield data[:position]
    for _ in bounded(MAX_PARTS):
        if position + 12 > len(data):
            break
        length = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + length + 12
        if not kind[0] & 0x20 or kind in PNG_PIXELS:
            yield data[position:end]
        elif kind not in seen and is_useful_chunk(kind, data[position + 8 : end - 4], data[end - 4 : end]):
            seen.add(kind)
            yield data[position:end]
        position = end
        if kind == b"IEND":
            return
    yield data[position:]


def is_useful_chunk(kind: bytes, content: bytes, checksum: bytes) -> bool:
    """Whether an ancillary chunk is intact, not too large, and can change how the pixels look."""
    if kind == b"eXIf":
        packed = None
    elif kind == b"iCCP":
        packed = content.partition(b"\0")[2][1:]
    elif kind in (b"tEXt", b"zTXt", b"iTXt") and content.startswith(PNG_ORIENTATION):
        rest = content.partition(b"\0")[2]
        if kind == b"iTXt":  # flag, method, language, translated keyword, text
            packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else None
        else:
            packed = rest[1:] if kind == b"zTXt" else None
    else:
        return False
    if len(content) > MAX_METADATA or zlib.crc32(kind + content).to_bytes(4, "big") != checksum:
        return False
    try:
        return packed is None or len(zlib.decompressobj().decompress(packed, MAX_METADATA)) < MAX_METADATA
    except zlib.error:
        return False


def jpeg_parts(data: bytes) -> Iterator[bytes]:
    position, kept = 2, 0
    yield data[:2]
    for _ in bounded(MAX_PARTS):
        if data[position : position + 2] == b"\xff\xff":  # padding
            position += 1
            continue
        if position + 4 > len(data) or data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == JPEG_SCAN or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9:
            break  # the pixels, or nothing that has a length
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        is_metadata = marker == 0xFE or 0xE1 <= marker <= 0xED or marker == 0xEF  # not JFIF, not Adobe's colours
        if not is_metadata:
            yield data[position:end]
        elif marker in (0xE1, 0xE2) and data.startswith(JPEG_KEPT, position + 4) and kept < MAX_METADATA:
            kept += end - position
            yield data[position:end]
        position = end
    yield data[position:]


def gif_parts(data: bytes) -> Iterator[bytes]:
    """The first frame."""
    position = 13 + color_table(data[10:11])
    yield data[:position]
    for _ in bounded(MAX_PARTS):
        start = position
        if position >= len(data):
            break
        if data[position] == GIF_EXTENSION:
            position = end_of_blocks(data, position + 2)
            if data[start + 1 : start + 2] == bytes([GIF_CONTROL]):
                yield data[start:position]
        elif data[position] == GIF_IMAGE:
            position = end_of_blocks(data, position + 11 + color_table(data[position + 9 : position + 10]))
            yield data[start:position] + GIF_END
            return
        else:
            break
    yield data[position:]


def tiff_with_few_tags(data: bytes) -> bytes:
    """A TIFF file whose first image has no private tags, and together no more data than the file has: Pillow reads all.

    Their entries are removed in place; what they refer to stays, unread.
    """
    offset_format, number_format, entry_format = TIFF_LAYOUTS[data[:4]]
    offset_size, number_size, entry_size = map(struct.calcsize, (offset_format, number_format, entry_format))
    try:
        (start,) = struct.unpack_from(offset_format, data, offset_size)
        (number,) = struct.unpack_from(number_format, data, start)
        first, total, kept = start + number_size, 0, []
        for position in range(first, min(first + number * entry_size, len(data)), entry_size):
            tag, kind, count, _ = struct.unpack_from(entry_format, data, position)
            size = count * TIFF_SIZES.get(kind, 1)
            if (tag <= TIFF_LAST or tag in TIFF_KEPT) and total + size <= len(data):
                total += size
                kept.append(data[position : position + entry_size])
    except struct.error:
        return data
    directory = struct.pack(number_format, len(kept)) + b"".join(kept) + bytes(offset_size)
    return data[:start] + directory + data[start + len(directory) :]


def color_table(flags: bytes) -> int:
    """The length in bytes of the colour table that these flags announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def end_of_blocks(data: bytes, position: int) -> int:
    """Where a chain of GIF's sub-blocks ends."""
    for _ in bounded(MAX_BLOCKS):
        if position >= len(data) or not data[position]:
            break
        position += data[position] + 1
    return position + 1
