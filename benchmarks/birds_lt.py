"""birds_lt from 01 to 06 with the shipped config: time per stage, and what each stage is worth.

    python benchmarks/birds_lt.py

Runs the six scripts (finished stages are skipped) and scores the test logits of every head on the
public solution. That score is looked at here and nowhere else: nothing was chosen by it.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/birds_lt.py`

from benchmarks.results import markdown, provenance, write_section
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, read_table
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.work import RUNS
from src.config.read import load_config
from src.metrics import summary

CONFIG = "configs/birds_lt.yaml"
SCRIPTS = {
    "01_prepare_folds.py": "folds",
    "02_train_stage1.py": "birds_lt/stage1/*",
    "03_train_stage2.py": "birds_lt/stage2/*/*",
    "04_posthoc_calibrate.py": "birds_lt/posthoc",
    "05_predict.py": "birds_lt/predict",
    "06_ensemble.py": None,
}
# Measured by the author with timm's train.py on the whole test set of 2,903 images.
LINES_TO_BEAT = {
    "timm train.py, cross-entropy, 15 epochs": (0.620, 0.624, 0.852, 0.726, 0.429),
    "… its features, nearest class mean": (0.655, 0.657, 0.809, 0.729, 0.525),
    "… its logits, logit adjustment τ = 1": (0.647, 0.650, 0.756, 0.693, 0.563),
}
COLUMNS = ("accuracy", "balanced_accuracy", "many", "medium", "few")


def main() -> None:
    for script in SCRIPTS:
        subprocess.run([sys.executable, script, "--config", CONFIG], check=True)
    print()
    config = load_config(CONFIG)
    data = load_dataset(config.dataset)
    truth = read_table(Path(config.data.root) / "public_solution.csv")
    label_of = dict(zip(data.classes["class_id"], data.classes["label"], strict=True))
    labels = truth["class_id"].map(label_of).to_numpy(int)
    bins = data.classes["bin"].to_numpy()
    predict = RUNS / config.dataset / "birds_lt" / "predict"
    rows = [{"test images": name} | dict(zip(COLUMNS, v, strict=True))
            for name, v in LINES_TO_BEAT.items()]  # fmt: skip
    for path in sorted(predict.glob("*.npz"), key=lambda p: (p.stem == "posthoc", p.stem)):
        every = load_predictions(path, data.num_classes)
        found = rows_of(every, truth["image_id"].tolist())
        scores = summary(found, labels, bins)
        rows.append({"test images": f"five folds, {path.stem}"} | {c: scores[c] for c in COLUMNS})
    body = f"{provenance()}\n\nThe first three rows are on all 2,903 test images, ours on the "
    body += f"{len(truth)} of the public solution.\n\n{markdown(rows)}\n\n"
    body += f"{out_of_fold(config.dataset)}\n\n{times(config.dataset)}"
    print(write_section("birds_lt", "birds_lt, 01 to 06", body))


def rows_of(every: Predictions, ids: list[str]):
    """Logits of some images, in their order."""
    at = {image_id: row for row, image_id in enumerate(every.image_id)}
    return every.logits[[at[image_id] for image_id in ids]]


def out_of_fold(dataset: str) -> str:
    """What 04 saw: by this, and not by the test images, the recipe was chosen."""
    numbers = COLUMNS[1:]
    table = read_table(RUNS / dataset / "birds_lt" / "posthoc" / "table.csv", numbers)
    rows = [
        {"out of fold": f"{start} + {step}" if step else start, "kept": kept}
        | {name: float(row[name]) for name in numbers}
        for start, step, kept, row in zip(
            table["start"], table["step"], table["kept"], table.to_dict("records"), strict=True
        )
        if row["balanced_accuracy"] == row["balanced_accuracy"] and step != "final"
    ]
    return f"04's table, on the 1,129 training images, cross-fitted:\n\n{markdown(rows)}"


def times(dataset: str) -> str:
    """Minutes per stage and the commit that it ran at, from the manifests."""
    rows = []
    for script, pattern in SCRIPTS.items():
        if pattern:
            found = [
                read_json(p) for p in sorted((RUNS / dataset).glob(f"{pattern}/manifest.json"))
            ]
            seconds = sum(m["seconds"] for m in found)
            commits = ", ".join(sorted({m["git"] for m in found}))
            rows.append({"stage": script, "minutes": round(seconds / 60, 1), "commit": commits})
    total = sum(row["minutes"] for row in rows)
    return markdown(rows, 1) + f"\n\nTogether {total:.1f} minutes; 06 takes seconds."


if __name__ == "__main__":
    main()
