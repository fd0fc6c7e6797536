"""What a training that learns from other experiments must know of them."""

from pathlib import Path

from src.artifacts.files import read_json
from src.artifacts.oof import head_dir, optimism
from src.config.names import STAGE1, of_stage1
from src.fusion.store import RECIPE


def flatters(heads: list[tuple[Path, str]]) -> list[str]:
    """Why out-of-fold scores of heads flatter, sorted; each is an experiment's directory and its
    head's name. What flatters an experiment flatters those that learned from it."""
    return sorted({reason for home, head in heads for reason in _of_head(home, head)})


def _of_head(home: Path, head: str) -> list[str]:
    if head == "posthoc":
        why = read_json(home / "posthoc" / RECIPE).get("optimistic")
        return [why] if why else []
    own = [] if of_stage1(head) else [head_dir(home, head)]
    return optimism([home / STAGE1, *own])
