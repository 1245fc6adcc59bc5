"""Pictures and masks as people have them: odd, huge, broken, or no pictures at all."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cpu_time import no_longer_than
from PIL import Image

from amused.errors import UserError
from amused.generation.images import check_digest, composite, fit, load_image, to_image, to_tensor
from amused.generation.pixel_masks import (
    cells_at,
    load_mask,
    mask_of_cells,
    resize_mask,
    token_indices,
    touched_cells,
)
from amused.limits import MAX_PICTURE_BYTES

RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int = 40, height: int = 24) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def refusal(source) -> str:
    with pytest.raises(UserError) as caught:
        load_image(source)
    sentence = str(caught.value)
    assert "/" not in sentence and "\n" not in sentence and sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_reads_every_accepted_format_from_bytes_path_and_memory(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (40, 24), RED), kind)
    path = tmp_path / "picture.dat"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(io.BytesIO(data))):
        picture = load_image(source)
        assert picture.mode == "RGB" and picture.size == (40, 24)
        assert np.abs(np.asarray(picture).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (511, 513)])
def test_keeps_odd_sizes(size: tuple[int, int]) -> None:
    assert load_image(encoded(Image.new("RGB", size, RED), "PNG")).size == size


@pytest.mark.parametrize("side", [6_400, 13_000, 20_000])
def test_refuses_bombs_by_their_header(side: int) -> None:
    data = png_bomb(side)
    with no_longer_than(1):
        assert "megapixels" in refusal(data)


def test_refuses_a_file_of_too_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as stream:
        stream.truncate(MAX_PICTURE_BYTES + 1)
    assert "MB" in refusal(path)
    assert "MB" in refusal(path.read_bytes())


def test_refuses_too_many_pixels_in_memory() -> None:
    assert "megapixels" in refusal(Image.new("1", (10_000, 4_001)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    picture = load_image(Image.new(mode, (5, 3)))
    assert picture.mode == "RGB" and picture.size == (5, 3)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(np.asarray(load_image(data)).astype(int) - RED).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    ramp = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    picture = np.asarray(load_image(encoded(Image.fromarray(ramp), kind)))
    assert picture[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_tiff_is_scaled() -> None:
    ramp = np.array([[0.0, 0.25, 0.5, 1.0]], dtype=np.float32)
    assert np.asarray(load_image(encoded(Image.fromarray(ramp), "TIFF")))[0, :, 0].tolist() == [0, 64, 128, 255]
    dark = np.full((1, 1), 0.25, dtype=np.float32)
    assert load_image(encoded(Image.fromarray(dark), "TIFF")).getpixel((0, 0)) == (64, 64, 64)
    wide = np.array([[-10.0, 0.0, 500.0, 1000.0, np.nan, np.inf]], dtype=np.float32)
    values = np.asarray(load_image(encoded(Image.fromarray(wide), "TIFF")))[0, :, 0]
    assert values[0] == 0 and values[3] == 255 and values[0] < values[1] < values[2] < values[3]


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (*BLACK, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.putpixel((2, 0), (*BLACK, 128))
    pixels = [WHITE, RED, (127, 127, 127)]
    assert list(load_image(encoded(image, "PNG")).get_flattened_data()) == pixels
    assert load_image(encoded(Image.new("LA", (1, 1), (0, 0)), "PNG")).getpixel((0, 0)) == WHITE


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    picture = load_image(encoded(image, "PNG", transparency=bytes([0, 255])))
    assert list(picture.get_flattened_data()) == [WHITE, GREEN]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_upright_by_exif(orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 16, 8))  # red in the upper left, green in the upper right: no symmetry
    upright.paste(GREEN, (16, 0, 32, 8))
    turns = Image.Transpose
    undo = {
        1: None,
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if undo is None else upright.transpose(undo)
    picture = load_image(encoded(stored, "PNG", exif=exif))
    assert picture.size == upright.size and picture.tobytes() == upright.tobytes()


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\xff\xff\xff\xffgarbage"])
def test_broken_exif_does_not_spoil_a_picture(exif: bytes) -> None:
    assert load_image(encoded(Image.new("RGB", (8, 8), RED), "PNG", exif=exif)).getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_takes_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(load_image(data)).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_refuses_truncated_files(kind: str, part: float) -> None:
    data = encoded(noise(), kind)
    refusal(data[: int(len(data) * part)])


def test_refuses_damaged_png() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    header_crc = data.index(b"IHDR") + 4 + 13
    data[header_crc] ^= 0xFF
    refusal(bytes(data))
    data[header_crc] ^= 0xFF
    data[data.index(b"IDAT") + 40] ^= 0xFF
    refusal(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<!doctype html><script>alert(1)</script>",
        b"%PDF-1.7\n%%EOF",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
    ],
)
def test_refuses_what_is_no_picture_whatever_its_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert str(tmp_path) not in refusal(path)
    refusal(data)


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "EPS"])
def test_refuses_formats_that_are_not_listed(kind: str) -> None:
    refusal(encoded(Image.new("RGB", (16, 16)), kind))


def test_reads_the_picture_of_a_file_that_is_also_a_zip() -> None:
    assert load_image(encoded(noise(), "PNG") + b"PK\x05\x06" + bytes(18)).tobytes() == noise().tobytes()


@pytest.mark.parametrize("path", ["missing.png", "nul\x00.png", ""])
def test_refuses_paths_that_cannot_be_opened(path: str) -> None:
    refusal(path)


def test_fit_crops_pads_and_stretches() -> None:
    wide = Image.new("RGB", (64, 32), RED)
    wide.paste(GREEN, (24, 0, 40, 32))
    cropped, padded, stretched = (fit(wide, 32, 32, mode) for mode in ("crop", "pad", "stretch"))
    assert {picture.size for picture in (cropped, padded, stretched)} == {(32, 32)}
    assert cropped.getpixel((0, 16)) == RED and cropped.getpixel((16, 16)) == GREEN
    assert np.asarray(cropped)[:, :, 1].mean() > np.asarray(stretched)[:, :, 1].mean() * 1.5  # half green, a quarter
    assert padded.getpixel((16, 0)) == WHITE and padded.getpixel((16, 31)) == WHITE
    assert padded.getpixel((0, 16)) == RED


@pytest.mark.parametrize("mask", [Image.new("L", (64, 64)), Image.new("RGBA", (64, 64)), Image.new("RGB", (8, 8))])
def test_refuses_an_empty_mask(mask: Image.Image) -> None:
    with pytest.raises(UserError, match=r"^Paint over the part to change, or upload a mask\.$"):
        load_mask(mask, (64, 64))


def test_a_full_mask_repaints_all() -> None:
    assert touched_cells(load_mask(Image.new("1", (64, 64), 1), (64, 64)), 16).all()


@pytest.mark.parametrize("grey", [1, 255])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (15, 16), (63, 63), (31, 5)])
def test_one_pixel_is_exactly_one_token(x: int, y: int, grey: int) -> None:
    mask = Image.new("L", (64, 64))
    mask.putpixel((x, y), grey)
    cells = touched_cells(load_mask(encoded(mask, "PNG"), (64, 64)), 16)
    assert cells.shape == (4, 4) and cells.dtype == bool
    assert np.argwhere(cells).tolist() == [[y // 16, x // 16]]


def test_no_thin_stroke_vanishes_when_a_mask_is_made_smaller() -> None:
    for position in range(0, 999, 37):
        mask = Image.new("L", (999, 777))
        mask.paste(255, (position, 0, position + 1, 777))
        small = load_mask(mask, (64, 64))
        assert small.size == (64, 64)
        assert np.asarray(small).max(axis=1).tolist() == [255] * 64
        assert np.asarray(small)[0].argmax() == position * 64 // 999


def test_a_smaller_mask_is_enlarged() -> None:
    mask = Image.new("L", (4, 2))
    mask.putpixel((3, 1), 200)
    values = np.asarray(load_mask(mask, (64, 32)))
    assert (values[16:, 48:] == 200).all() and values[:16].max() == 0 and values[:, :48].max() == 0


def test_strokes_count_by_their_opacity_whatever_their_colour() -> None:
    strokes = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    strokes.paste((0, 0, 0, 255), (0, 0, 16, 16))
    strokes.paste((0, 0, 0, 90), (32, 32, 48, 48))
    mask = load_mask(strokes, (64, 64))
    assert mask.mode == "L"
    assert [mask.getpixel(at) for at in ((5, 5), (40, 40), (60, 5))] == [255, 90, 0]


def test_a_black_and_white_mask_saved_as_rgba_counts_by_its_greys() -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    picture.paste((255, 255, 255, 255), (0, 0, 16, 16))
    assert touched_cells(load_mask(picture, (64, 64)), 16).sum() == 1


def test_soft_greys_are_kept() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert load_mask(ramp, (16, 16)).tobytes() == ramp.tobytes()


def test_composite_keeps_the_original_bit_by_bit_where_the_mask_is_black() -> None:
    original, generated = noise(64, 64), Image.new("RGB", (64, 64), GREEN)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 20, 20))
    mask.paste(128, (40, 40, 60, 60))
    result = np.asarray(composite(original, generated, mask)).astype(int)
    before, greys = np.asarray(original).astype(int), np.asarray(mask)
    assert (result[greys == 0] == before[greys == 0]).all()
    assert (result[greys == 255] == GREEN).all()
    assert np.abs(result[greys == 128] - (before[greys == 128] * 127 + np.array(GREEN) * 128) / 255).max() <= 1


def test_tensors_are_those_of_the_reference() -> None:
    from diffusers.image_processor import VaeImageProcessor

    reference = VaeImageProcessor(vae_scale_factor=16, do_normalize=False)
    picture = noise(64, 32)
    assert torch.equal(to_tensor(picture), reference.preprocess(picture))
    assert to_image(to_tensor(picture)[0]).tobytes() == picture.tobytes()
    pixels = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    assert to_image(pixels).tobytes() == reference.postprocess(pixels[None].clip(0, 1), "pil")[0].tobytes()
    halves = ((torch.arange(255) + 0.5) / 255).expand(3, 1, 255)
    assert to_image(halves).tobytes() == reference.postprocess(halves[None], "pil")[0].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (17, 301), (300, 40), (999, 5)], ids=str)
@pytest.mark.parametrize("target", [(64, 64), (16, 48), (7, 333)], ids=str)
def test_masks_are_resized_by_adaptive_max_pooling(size: tuple[int, int], target: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(256, size=size[::-1], dtype=np.uint8)
    found = np.asarray(resize_mask(Image.fromarray(values), target))
    expected = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(values).float()[None, None], target[::-1])
    assert found.tolist() == expected[0, 0].tolist()


@pytest.mark.parametrize("size", [(64, 64), (70, 33)], ids=str)
@pytest.mark.parametrize("pixels_per_token", [8, 16])
def test_cells_and_pixels_agree(size: tuple[int, int], pixels_per_token: int) -> None:
    mask = Image.fromarray((np.random.default_rng(0).random(size[::-1]) < 0.005).astype(np.uint8))
    cells = touched_cells(mask, pixels_per_token)
    assert 0 < cells.sum() < cells.size
    painted = {(y // pixels_per_token, x // pixels_per_token) for y, x in np.argwhere(np.asarray(mask))}
    assert {tuple(cell) for cell in np.argwhere(cells).tolist()} == painted
    assert (touched_cells(mask_of_cells(cells, pixels_per_token), pixels_per_token) == cells).all()
    assert (cells_at(token_indices(cells), cells.shape) == cells).all()


def test_a_missing_image_is_not_called_another_one() -> None:
    with pytest.raises(UserError, match="needs the image"):
        check_digest(None, "0" * 16, "image")
    with pytest.raises(UserError, match="another image"):
        check_digest(Image.new("RGB", (8, 8)), "0" * 16, "image")
