"""Every kind of image file becomes upright 8-bit RGB with the right values."""

import io

import numpy as np
import pytest
from PIL import Image

from src.data.images import load_image, sealed
from src.errors import UserError

RAMP = np.add.outer(np.arange(20) * 4, np.arange(30) * 5).astype(np.uint8)  # 0 … 221, [20, 30]
GREY = np.repeat(RAMP[..., None], 3, axis=2)


def saved(image: Image.Image, path, **options) -> np.ndarray:
    image.save(path, **options)
    return load_image(path)


def test_rgb_and_grey_keep_their_values(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(saved(Image.fromarray(colour), tmp_path / "a.png"), colour)
    assert np.array_equal(saved(Image.fromarray(RAMP), tmp_path / "b.png"), GREY)


def test_palette_images_take_the_palettes_colours(tmp_path):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 250, 120, 10])
    image.putpixel((2, 0), 0)
    found = saved(image, tmp_path / "a.png")
    assert found[1, 1].tolist() == [250, 120, 10] and found[0, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path, ending):
    deep = RAMP.astype(np.uint16) * 257  # 0 … 65535
    found = saved(Image.fromarray(deep), tmp_path / f"a.{ending}")
    assert found.dtype == np.uint8 and np.array_equal(found, GREY)


def test_cmyk_colours_are_roughly_right(tmp_path):
    image = Image.new("RGB", (32, 32), (200, 40, 60)).convert("CMYK")
    found = saved(image, tmp_path / "a.jpg", quality=95)
    assert np.abs(found.astype(int) - [200, 40, 60]).max() < 12


def test_transparency_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert saved(image, tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_bilevel_and_floating_point_images(tmp_path):
    two = saved(Image.fromarray(RAMP > 100), tmp_path / "a.png")
    assert set(np.unique(two)) == {0, 255}
    unit = saved(Image.fromarray((RAMP / 255).astype(np.float32)), tmp_path / "b.tif")
    assert np.abs(unit.astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    "orientation, upright",
    [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(Image.fromarray(GREY), tmp_path / "a.png", exif=exif)
    assert np.array_equal(found, upright(GREY))


def test_damaged_exif_does_not_lose_the_image(tmp_path, recwarn):
    found = saved(Image.fromarray(GREY), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff")
    assert found.shape == (20, 30, 3)


@pytest.mark.parametrize("content", [b"", b"just some text", b"\xff\xd8\xff\xe0 not really"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jpg: not a readable image"):
        load_image(path)


def test_truncated_and_missing_files_are_named(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.tile(GREY, (10, 10, 1))).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"a\.jpg: not a readable image \(.*truncated"):
        load_image(path)
    with pytest.raises(UserError, match="missing"):
        load_image(tmp_path / "none.jpg")


def test_a_flipped_bit_in_a_copy_of_ours_is_named(tmp_path):
    """JPEG has no checksum: without one of ours most flips only change the colours."""
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("RGB").save(buffer, "JPEG")
    plain, path = buffer.getvalue(), tmp_path / "copy.jpg"
    path.write_bytes(plain)
    pixels = load_image(path)
    path.write_bytes(content := sealed(plain))
    assert (load_image(path) == pixels).all()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            same = (load_image(path) == pixels).all()
            assert same and place >= len(plain)  # in the name of the checksum
        except UserError as error:
            assert "copy.jpg" in str(error)
