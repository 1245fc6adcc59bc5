"""What lies beside the pixels of an image file: bounded, dropped, and never a reason to refuse; colour profiles."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from helpers.cpu_time import no_longer_than
from helpers.profiles import grey_profile, matrix_profile
from PIL import Image, ImageCms

from amused.errors import UserError
from amused.generation.images import digest, load_image
from amused.generation.inputs import InputReader
from amused.generation.pixel_masks import STROKES_RULE, WHITE_RULE, load_mask, mask_rule
from amused.limits import MAX_PICTURE_BYTES
from amused.recipe.recipe import Recipe

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int = 40, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def raw_png(rows: bytes, size: tuple[int, int], depth: int, color_type: int, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0)
    return b"".join(
        (SIGNATURE, chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


LONG = b"x" * 2_000_000
ASIDE = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG)),
    "tEXt": chunk(b"tEXt", b"Comment\0" + LONG),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "raw EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LONG)),
    "EXIF": chunk(b"eXIf", LONG),
    "profile": chunk(b"iCCP", b"name\0\0" + zlib.compress(LONG)),
    "no zlib": chunk(b"iCCP", b"name\0\0" + b"nothing"),
    "no keyword": chunk(b"zTXt", b"x" * 200),
    "bad checksum": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0",
    "many": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG[:900_000])) * 100,
    "unknown": chunk(b"abCd", b"hello"),
}


@pytest.mark.parametrize("aside", ASIDE)
@pytest.mark.parametrize("before", [True, False], ids=["before the pixels", "after the pixels"])
def test_a_png_is_taken_whatever_is_beside_its_pixels(aside: str, before: bool) -> None:
    plain = encoded(noise(), "PNG")
    place = plain.index(b"IDAT") - 4 if before else plain.index(b"IEND") - 4
    data = plain[:place] + ASIDE[aside] + plain[place:]
    image = load_image(data)
    assert image.tobytes() == noise().tobytes() and image.info == {}


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "segments",
    [
        jpeg_segment(0xE1, b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff"),
        jpeg_segment(0xE1, b"Exif\0\0" + b"x" * 60_000) * 100,
        jpeg_segment(0xE2, b"ICC_PROFILE\0\1\2" + b"x" * 60_000) * 100,
        jpeg_segment(0xE2, b"MPF\0" + b"\xff" * 200),
        jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\xff\xff\xff\xff"),
        jpeg_segment(0xFE, b"") * 50_000,
    ],
    ids=["EXIF", "much EXIF", "profile", "frames", "Photoshop", "comments"],
)
def test_a_jpeg_is_taken_whatever_is_beside_its_pixels(segments: bytes) -> None:
    plain = encoded(noise(), "JPEG", quality=95)
    assert load_image(plain[:2] + segments + plain[2:]).tobytes() == load_image(plain).tobytes()


def test_a_webp_is_taken_whatever_is_beside_its_pixels() -> None:
    data = encoded(noise(), "WEBP", lossless=True, exif=b"Exif\0\0" + LONG, xmp=LONG, icc_profile=LONG)
    assert load_image(data).tobytes() == noise().tobytes()


def gif_of(comments: int) -> bytes:
    data = encoded(Image.new("P", (8, 8)), "GIF")
    place = data.index(b",", 13)
    return data[:place] + b"\x21\xfe" + (b"\xff" + b"a" * 255) * comments + b"\0" + data[place:]


def test_a_gif_s_comments_take_no_time() -> None:
    data = gif_of(80_000)
    assert len(data) < MAX_PICTURE_BYTES
    with no_longer_than(1):
        assert load_image(data).size == (8, 8)


def tiff_of(tags: int, size: int) -> bytes:
    """A pixel, and private tags that all refer to the same `size` bytes."""
    needed = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    place = 8 + 2 + 12 * (len(needed) + tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, place if tag == 273 else value) for tag, value in needed.items()]
    entries += [struct.pack("<HHII", 40_000 + number, 1, size, place) for number in range(tags)]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + bytes(size)


def test_a_tiff_s_tags_take_no_more_memory_than_the_file() -> None:
    data = tiff_of(tags=200, size=2_000_000)
    tracemalloc.start()
    try:
        assert load_image(data).getpixel((0, 0)) == BLACK
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


MANY = {
    "PNG chunks": raw_png(b"\0\0", (1, 1), 8, 0, chunk(b"abCd", b"") * 2_000_000),
    "JPEG segments": jpeg_segment(0xDB, b"") * 6_000_000,
    "JPEG padding": b"\xff" * 24_000_000,
    "GIF extensions": b"\x21\xfe\0" * 8_000_000,
    "GIF blocks": b"\x21\xfe" + b"\1a" * 12_000_000 + b"\0",
}


@pytest.mark.parametrize("name", MANY)
def test_files_of_millions_of_parts_are_refused_at_once(name: str) -> None:
    data = MANY[name]
    if name.startswith("JPEG"):
        plain = encoded(noise(), "JPEG")
        data = plain[:2] + data + plain[2:]
    elif name.startswith("GIF"):
        data = gif_of(0)[:13] + data if not gif_of(0)[10] & 0x80 else gif_of(0)[: gif_of(0).index(b"!")] + data
    assert len(data) < MAX_PICTURE_BYTES
    with no_longer_than(1), pytest.raises(UserError):
        load_image(data)


# Transparent values


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_lies_on_white(depth: int) -> None:
    most = 2**depth - 1
    value = most // 3  # a dark grey; black for one bit
    values = [value, 0 if value else most]
    bits = "".join(f"{number:0{depth}b}" for number in values).ljust(8, "0")
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    image = load_image(raw_png(row, (2, 1), depth, 0, chunk(b"tRNS", struct.pack(">H", value))))
    other = round(values[1] / most * 255)
    assert list(image.get_flattened_data()) == [WHITE, (other, other, other)]


def test_a_transparent_16_bit_colour_lies_on_white() -> None:
    row = b"\0" + struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC) + struct.pack(">HHH", 0x2234, 0x5678, 0x9ABC)
    transparent = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    assert list(load_image(raw_png(row, (2, 1), 16, 2, transparent)).get_flattened_data()) == [
        WHITE,
        (0x22, 0x56, 0x9A),
    ]


# Colour profiles

WIDE = matrix_profile()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_wide_profile_is_converted_to_srgb_once(kind: str) -> None:
    data = encoded(Image.new("RGB", (16, 16), (200, 120, 90)), kind, icc_profile=WIDE)
    for source in (data, Image.open(io.BytesIO(data))):
        image = load_image(source)
        assert np.abs(np.array(image.getpixel((8, 8))) - (224, 121, 88)).max() <= 1
        assert load_image(image).tobytes() == image.tobytes()
        assert load_image(encoded(image, "PNG")).tobytes() == image.tobytes()


def test_profiles_of_other_modes_are_converted() -> None:
    translucent = Image.new("RGBA", (2, 2), (200, 120, 90, 0))
    translucent.putpixel((0, 0), (200, 120, 90, 255))
    read = load_image(encoded(translucent, "PNG", icc_profile=WIDE))
    assert read.getpixel((0, 0)) == (224, 121, 88) and read.getpixel((1, 1)) == WHITE
    palette = Image.new("P", (2, 2))
    palette.putpalette([200, 120, 90])
    assert load_image(encoded(palette, "PNG", icc_profile=WIDE)).getpixel((0, 0)) == (224, 121, 88)
    linear = grey_profile(gamma=1.0)
    assert load_image(encoded(Image.new("L", (2, 2), 128), "PNG", icc_profile=linear)).getpixel((0, 0)) == (188,) * 3
    grey16 = Image.fromarray(np.full((2, 2), 128 * 257, dtype=np.uint16))
    assert load_image(encoded(grey16, "PNG", icc_profile=linear)).getpixel((0, 0)) == (188,) * 3


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        WIDE[:200],
        b"nothing",
        WIDE[:128] + b"\xff" * 400,
        WIDE + bytes(5_000_000),
        grey_profile(1.0),
    ],
    ids=["sRGB", "cut", "nothing", "broken", "huge", "of another mode"],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_srgb_and_unusable_profiles_change_no_bit(kind: str, profile: bytes) -> None:
    plain, with_profile = (encoded(noise(), kind, **options) for options in ({}, {"icc_profile": profile}))
    assert load_image(with_profile).tobytes() == load_image(plain).tobytes()


def test_masks_are_not_colour_managed() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    assert load_mask(encoded(grey, "PNG", icc_profile=matrix_profile(gamma=1.0)), (4, 4)).getpixel((0, 0)) == 100


def test_an_old_recipe_still_finds_its_image_with_a_profile() -> None:
    """Before 0.5.0 profiles were ignored, and digests in recipes are of the pixels as they were read."""
    image = Image.new("RGB", (64, 64), (200, 120, 90))
    data = encoded(image, "PNG", icc_profile=WIDE)
    reader = InputReader("a model", 64, 16, 16, parent_tokens=lambda *_: pytest.fail("no parent"))
    old, new = (Recipe("image_to_image", "a", (1,), image=digest(one)) for one in (image, load_image(data)))
    assert reader.read(old, data, None).image.getpixel((0, 0)) == (200, 120, 90)
    assert reader.read(new, data, None).image.getpixel((0, 0)) == (224, 121, 88)
    with pytest.raises(UserError, match="another image"):
        reader.read(Recipe("image_to_image", "a", (1,), image="0" * 16), data, None)


# Masks of colours and opacity


def black_and_white() -> Image.Image:
    """White in the left half."""
    image = Image.new("RGBA", (40, 40), (*BLACK, 255))
    image.paste((*WHITE, 255), (0, 0, 20, 40))
    return image


def area(image: Image.Image) -> list[int]:
    """Columns of the mask that are repainted in the middle row."""
    return np.flatnonzero(np.asarray(load_mask(encoded(image, "PNG"), image.size))[20]).tolist()


def test_a_pixel_that_is_not_quite_opaque_does_not_turn_a_mask_round() -> None:
    for alpha in (254, 0):
        image = black_and_white()
        image.putpixel((30, 5), (*BLACK, alpha))
        assert area(image) == list(range(20)) and mask_rule(encoded(image, "PNG")) == WHITE_RULE


def test_black_is_kept_where_half_of_the_white_is_transparent() -> None:
    image = black_and_white()
    image.paste((0, 0, 0, 0), (0, 0, 10, 40))
    assert area(image) == list(range(10, 20)) and mask_rule(encoded(image, "PNG")) == WHITE_RULE


@pytest.mark.parametrize("color", [BLACK, RED, (255, 255, 0), (244, 63, 94), (90, 90, 90)])
def test_strokes_of_any_colour_are_repainted(color: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (40, 40))
    image.paste((*color, 255), (5, 0, 15, 40))
    assert area(image) == list(range(5, 15)) and mask_rule(encoded(image, "PNG")) == STROKES_RULE
    image.putpixel((30, 5), (*WHITE, 255))
    assert area(image) == list(range(5, 15))


def test_white_strokes_and_opaque_masks_are_as_they_were() -> None:
    image = Image.new("RGBA", (40, 40))
    image.paste((*WHITE, 130), (5, 0, 15, 40))
    assert np.asarray(load_mask(encoded(image, "PNG"), image.size)).max() == 130 and area(image) == list(range(5, 15))
    soft = Image.linear_gradient("L")
    assert load_mask(encoded(soft, "PNG"), soft.size).tobytes() == soft.tobytes()
    assert load_mask(encoded(soft.convert("RGBA"), "PNG"), soft.size).tobytes() == soft.tobytes()
