"""One way to open an image file, used by every stage.

Grey, palette, 16-bit, CMYK and transparent images become 8-bit RGB; EXIF orientation is applied.
"""

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from src.errors import UserError

Image.MAX_IMAGE_PIXELS = 512 * 2**20  # pixels; satellite and microscope images are no attacks
SEAL = b"crc32:"  # and four bytes; after the end of a JPEG, where decoders do not look


def load_image(path: str | Path) -> np.ndarray:
    """Read an image as uint8 RGB, [H, W, 3].

    Errors: UserError that names the file when it is missing, empty, truncated or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = Path(path).read_bytes()
            _check_seal(content)
            with Image.open(io.BytesIO(content)) as image:
                return np.asarray(to_rgb(image))
    except FileNotFoundError:
        raise UserError(
            f"{path}: the image file is missing. Put it back, or run 01 again with --overwrite to "
            "go by the images that are there."
        ) from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(
            f"{path}: not a readable image ({error}). Replace or remove it, or set "
            "data.bad_images=skip and run 01 again."
        ) from error


def sealed(content: bytes) -> bytes:
    """A copy of ours with its checksum: most flipped bits in a JPEG show in no other way."""
    return content + SEAL + zlib.crc32(content).to_bytes(4, "big")


def is_sealed(content: bytes) -> bool:
    """Whether it is a copy of ours, as it was written."""
    return content == sealed(content[: -len(SEAL) - 4])


def _check_seal(content: bytes) -> None:
    if content[-len(SEAL) - 4 : -4] == SEAL and not is_sealed(content):
        raise ValueError("its checksum is another: it was damaged; 01 with --overwrite makes it")


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB. Transparency is laid on white; 16-bit greys keep their upper 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit and 32-bit integer greys
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray((deep >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.asarray(image) * (255 if np.max(image) <= 1 else 1)
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
