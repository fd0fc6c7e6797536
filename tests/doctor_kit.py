"""What the tests of 01 --inspect share."""

from pathlib import Path

from src.config.read import load_config
from src.prepare import prepare as stage
from src.prepare.doctor.inspect import inspect
from tests.prepare_kit import photo

RAW = Path("data/raw")


def images(directory: Path, names: list[str], first: int = 0) -> None:
    for i, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(first + i, (50, 60)).save(path)


def names(count: int, ending: str = ".jpg", start: int = 0) -> list[str]:
    return [f"{i:05d}{ending}" for i in range(start, start + count)]


def prepared(root: Path, **more):
    """The config that is written, after 01 took it as it is; and the folds' directory."""
    found = inspect(root, **more)
    path = next(line for line in found.splitlines() if line.startswith("wrote"))
    config = load_config(path.split()[1].rstrip(":"))
    return config, stage.prepare(config)
