"""Colour profiles, written by hand: Pillow makes none but sRGB."""

from __future__ import annotations

import struct

ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""The primaries of a wide colour space, adapted to D50."""


def matrix_profile(gamma: float = 2.2, primaries: tuple = ADOBE_RGB) -> bytes:
    """A display profile of three primaries and one gamma (ICC.1:2001, version 2)."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), (*primaries, (0.9642, 1.0, 0.8249))):
        tags[name] = b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in xyz)
    return profile(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in (0.9642, 1.0, 0.8249))
    return profile(b"GRAY", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)), b"wtpt": white})


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(78),
        b"cprt": b"text" + bytes(8),
        **tags,
    }
    table, content, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    body = struct.pack(">I", len(tags)) + table + content
    white = struct.pack(">iii", 63190, 65536, 54061)
    header = (
        struct.pack(">I", 128 + len(body)) + b"lcms" + b"\x02\x10\0\0" + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    )
    return (header + bytes(28) + white).ljust(128, b"\0") + body
