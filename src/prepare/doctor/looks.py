"""What a sample of the images says: size and shape, ground, time to open one, which cannot be."""

import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.config.auto import usual_size
from src.data.images import load_image
from src.errors import UserError, some
from src.prepare.doctor.choice import Choice

SAMPLE = 300  # images whose header is read
OPENED = 40  # of them, decoded whole
SECONDS = 15  # after which no more are opened
CROP = 0.875  # model.crop_pct: sides are resized to image_size / CROP
NEAR = 8  # of 255: edge pixels so near to their median are one colour
EVEN = 0.75  # share of them on the edge of an object that is cut out (benchmarks/stamps.py)
CUT_OUT = 0.5  # share of such images from which on nothing is cropped


@dataclass(frozen=True)
class Looks:
    """short, long: sides in pixels of the sample, [n] · even: share of one colour on the edges of
    the opened, [m] · seconds: to open one image · bad: those that cannot be · of: images there are
    """

    short: np.ndarray
    long: np.ndarray
    even: np.ndarray
    seconds: float
    bad: list[str]
    of: int

    @property
    def side(self) -> int:
        return int(np.median(self.short))


def look(paths: list[str]) -> Looks:
    """Evenly over all. Errors: UserError where none can be opened."""
    began = time.monotonic()
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, SAMPLE).astype(int))]
    step = max(1, len(chosen) // OPENED)
    sides, even, bad, spent = [], [], [], []
    for i, path in enumerate(chosen):
        if time.monotonic() - began > SECONDS and sides:
            break
        try:
            if i % step:
                with Image.open(path) as image:
                    sides.append(sorted(image.size))
                continue
            start = time.perf_counter()
            pixels = load_image(path)
            spent.append(time.perf_counter() - start)
            sides.append(sorted(pixels.shape[:2]))
            even.append(even_edge(pixels))
        except (UserError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            bad.append(path)
    if not sides:
        raise UserError(
            f"none of {len(bad)} images that were looked at can be opened: {some(bad)}. Download "
            "them again."
        )
    short, long = np.array(sides).T
    return Looks(short, long, np.array(even), float(np.median(spent or [0])), bad, len(paths))


def even_edge(image: np.ndarray) -> float:
    """Share of the outermost pixels of an image [H, W, 3] that are their median colour, nearly."""
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(int)
    return float((abs(edge - np.median(edge, axis=0)).max(axis=1) <= NEAR).mean())


def framing(looks: Looks) -> list[Choice]:
    """The whole image for the network where most are an object cut out, which reaches the edges;
    photographs keep the middle, where what they show usually is."""
    cut_out = int((looks.even > EVEN).sum())
    if cut_out <= CUT_OUT * len(looks.even):
        return []
    kept = CROP**2 * np.median(looks.short / looks.long)
    why = (
        f"{cut_out} of {len(looks.even)} images opened have edges of one colour: objects cut out, "
        f"not photographs. The middle alone, as usual, would be {kept:.0%} of the area of one and "
        "cut the object; the whole image is seen, at the price of its proportions"
    )
    return [Choice("model.resize", "exact", why), Choice("model.crop_pct", 1.0, "see above")]


def image_size(looks: Looks, largest: int) -> Choice:
    """The largest usual size that images have; not above `largest`, what the machine can train."""
    size = usual_size(looks.side, largest)
    low, high = np.percentile(looks.short, (5, 95)).astype(int)
    why = (
        f"the shorter sides of {len(looks.short)} of {looks.of} images are {low} … {high} pixels, "
        f"{looks.side} in the middle"
    )
    if looks.side > largest:
        why += f"; more than {largest} is slow on this machine, and worth a try on a larger one"
    return Choice("model.image_size", size, why)


def data_choices(looks: Looks, size: int) -> list[Choice]:
    """A resized copy where images are much larger than what the network sees; bad images."""
    choices, needed = [], round(size / CROP)
    if looks.side >= 2 * needed:
        why = (
            f"images are {looks.side / needed:.1f} times as large as the network sees them: 01 "
            f"makes a smaller copy once. Opening one takes {1000 * looks.seconds:.0f} ms"
        )
        choices.append(Choice("data.resize", max(needed, round(1.25 * needed)), why))
    if looks.bad:
        why = (
            f"{len(looks.bad)} of the images looked at cannot be opened, {some(looks.bad)}: leave "
            "such images out of training (01 lists them); stop, the default, refuses them"
        )
        choices.append(Choice("data.bad_images", "skip", why))
    return choices
