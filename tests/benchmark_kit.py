"""What the tests of benchmarks share: a folder of small images with a test set and its labels."""

from pathlib import Path

from src.errors import UserError
from src.prepare import prepare as module
from tests.prepare_kit import photo

CONFIG = """
data: {root: raw/tiny, near_duplicates: null, cache: device, workers: 0}
folds: {k: 3}
bins: {mode: halves}
model: {backbone: cifar_resnet20, pretrained: false, image_size: 16, crop_pct: 1.0}
train: {optimizer: sgd, lr: 0.01, augment: {crop: padded, color_jitter: 0}}
"""


def tiny(directory: Path, monkeypatch) -> Path:
    """Twelve images of each of three classes and tiny.yaml in `directory`, where the test then is;
    returns a RESULTS.md that somebody wrote into."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(module, "draw_figures", lambda *args: [])
    for part, count in (("train", 12), ("test", 3)):
        for c, name in enumerate(("0_a", "1_b", "2_c")):
            Path("raw/tiny", part, name).mkdir(parents=True)
            for i in range(count):
                number = 1000 * c + 100 * (part == "test") + i
                photo(number, (16, 16)).save(f"raw/tiny/{part}/{name}/{i}.png")
    Path("tiny.yaml").write_text(CONFIG)
    out = Path("RESULTS.md")
    out.write_text("# Benchmarks\n\nby hand, above\n")
    return out


def row(text: str, title: str) -> list[str]:
    """Cells of the first row with this title: the main table stands before the ablations."""
    found = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    assert found, (title, text)
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def work(number: int) -> dict[str, str]:
    """A job for benchmarks/pool.py: what it does depends on its number."""
    if number == 2:
        raise UserError("two\n  lines")
    if number == 3:
        raise ZeroDivisionError("three")
    return {"head": "no images"} if number == 4 else {}
