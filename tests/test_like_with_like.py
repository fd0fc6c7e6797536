"""benchmarks/like_with_like.py on a few images: who is compared with whom, on which images."""

from pathlib import Path

import pytest

from benchmarks import like_with_like
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_table, write_json
from src.artifacts.predictions import load_predictions
from src.config.read import load_config
from src.errors import UserError
from src.inference.predict import predict
from src.prepare.prepare import prepare
from src.training.stage1 import stage1
from tests.benchmark_kit import row, tiny
from tests.prepare_kit import write_csv

HOME = Path("runs/tiny/tiny")
SETTINGS = [
    "data.cache=memory",
    "data.solution=some.csv",
    "longtail.profile=exp",
    "longtail.ratio=4",
    "bins={many: 10, few: 4}",
    "train.epochs=2",
    "train.batch_size=8",
    "train.warmup_epochs=0",
    "model.network=paco",
    "train.second_sampler=same",
    "train.criterion=balanced_softmax",
    "stage2=[]",
    "predict.tta.flip=true",
]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A RESULTS.md, beside an experiment of two-sample training and the solution of six images."""
    out = tiny(tmp_path, monkeypatch)
    config = load_config("tiny.yaml", [*SETTINGS, "data.solution=null"])
    prepare(config)
    ids = read_table("runs/tiny/folds/test.csv")["image_id"].tolist()[:6]
    write_csv(Path("raw/tiny/some.csv"), image_id=ids[::-1], class_id=["0", "1", "2"] * 2)
    config = load_config("tiny.yaml", SETTINGS)
    stage1(config, "tiny", [], False)
    write_json(HOME / "posthoc" / "posthoc.json", {"head": "stage1", "steps": []})
    write_json(HOME / "posthoc" / "manifest.json", {"inputs": {}})
    predict(config, "tiny", False)
    return out


def run(out: Path, *args: str) -> str:
    common = ["--config", "tiny.yaml", "--out", str(out), "--set", *SETTINGS]
    like_with_like.main([*args, *common])
    return out.read_text()


def test_one_network_against_one_and_then_what_is_added(trained, capsys):
    text = run(trained)
    assert "timm's loop, epoch 2/2" in capsys.readouterr().out
    assert "On the 6 test images of the public solution" in text and Path("tiny.png").is_file()
    titles = ["timm's loop, one network", "ours, one network", "+ views", "+ folds",
              "+ heads and calibration"]  # fmt: skip
    found = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [title for title in found if title in titles] == titles
    truth = read_table("raw/tiny/some.csv").set_index("image_id")["class_id"]
    every = load_predictions(HOME / "predict" / "stage1.npz", 3)
    classes = load_dataset("tiny").classes["class_id"].to_numpy()
    said = dict(zip(every.image_id, classes[every.logits.argmax(1)], strict=True))
    right = sum(said[image_id] == class_id for image_id, class_id in truth.items())
    assert row(text, "+ folds")[1] == f"{right / 6:.3f}"
    again = run(trained)  # what was trained is kept
    assert "timm's loop, epoch" not in capsys.readouterr().out
    assert row(again, titles[0]) == row(text, titles[0])


def test_an_ensemble_is_scored_as_06_did(trained):
    scores = dict.fromkeys(like_with_like.COLUMNS, 0.5)
    for name, members in (("mine", ["tiny/stage1"]), ("both", ["tiny/stage1", "b/stage1"])):
        tree = {"metrics": {"solution": scores}, "weights": dict.fromkeys(members, 0.5)}
        write_json(Path(f"runs/tiny/submissions/{name}.manifest.json"), tree)
    assert row(run(trained), "+ ensemble of 2 experiments")[1] == "0.500"
    with pytest.raises(UserError, match="--ensemble other: .* has both, mine"):
        run(trained, "--ensemble", "other")
