"""The README's three steps on a competition made up for them, and the config to start by hand."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import timm

from src.artifacts.files import read_table
from src.config.read import load_config
from src.prepare import prepare as stage
from tests.prepare_kit import folder_source, photo, write_csv

ROOT = Path(__file__).parents[1]
SIZE = 24  # pixels: so small that the network is, too
QUICK = ["train.epochs=1", "train.warmup_epochs=0", "data.workers=0", "train.precision=fp32"]


def commands() -> list[list[str]]:
    """Of the code blocks of the section, in order."""
    text = (ROOT / "README.md").read_text()
    section = text.split("## Your own competition, in three steps")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def competition(place: Path) -> list[str]:
    """A zip as Kaggle gives it: nested, ids without ending, no solution. Returns the test ids."""
    root, species = place / "made", ["n012", "NA", "1e5", "7"]
    for split, count in (("train", 26), ("test", 6)):
        (root / f"{split}_images").mkdir(parents=True)
        for i in range(count):
            photo(100 * (split == "test") + i, (SIZE, SIZE)).save(
                root / f"{split}_images/{i:03d}.png"
            )
    rows = {"photo": [f"{i:03d}" for i in range(26)], "place": ["sea", "land"] * 13}
    write_csv(root / "train.csv", **rows, kind=[species[min(3, i // 8)] for i in range(26)])
    asked = [f"{i:03d}" for i in range(6)]
    write_csv(root / "sample_submission.csv", photo=asked, kind="7")
    shutil.make_archive(str(place / "my_competition"), "zip", root)
    shutil.rmtree(root)
    return asked


def test_three_steps_from_a_zip_to_a_submission(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "raw").mkdir(parents=True)
    steps = commands()
    fetched, written, *run = steps
    assert fetched[0] == "kaggle" and "--inspect" in written
    scripts = sorted(path.name for path in ROOT.glob("0*.py"))
    assert [words[1] for words in run] == scripts
    asked = competition(Path(fetched[-1]))
    for words in (written, *run):
        assert words[0] == "python" and (ROOT / words[1]).is_file()
        small = ["--set", *QUICK] if "--config" in words else []
        monkeypatch.setattr(sys, "argv", [*words[1:], *small])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    submission = read_table("runs/my_competition/submissions/mine.csv")
    assert submission["photo"].tolist() == asked and list(submission) == ["photo", "kind"]
    assert set(submission["kind"]) <= {"n012", "NA", "1e5", "7"}


def test_the_config_to_start_by_hand_needs_nothing_of_ours(tmp_path, monkeypatch):
    text = (ROOT / "configs" / "starter.yaml").read_text()
    assert "solution" not in text and "data/weights" not in text
    assert re.findall(r"# (\d)\. ", text) == list("12345")
    config = load_config(ROOT / "configs" / "starter.yaml")
    names = [config.model.backbone, *re.findall(r"\b\w+\.\w+_?in1k|\w+\.lvd142m", text)]
    assert config.model.pretrained is True and len(names) > 2
    assert all(timm.get_pretrained_cfg(name).has_weights for name in names)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "draw_figures", lambda *_: [])
    folder_source(Path(config.data.root), {"1_a": 5, "2_b": 5})
    assert stage.prepare(config).is_dir()
