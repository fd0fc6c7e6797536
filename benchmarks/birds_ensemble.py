"""birds_lt: a probe, second rounds on pseudo-labels, ensembles of three, as 06 left them.

    python benchmarks/birds_ensemble.py

Needs 01 … 05 of configs/probe.yaml, configs/birds_lt_recipe.yaml, configs/birds_lt.yaml and
configs/birds_lt_ensemble/*.yaml, and 06 of each alone and of three together. Reads the manifests of
the submissions and of stage 1; nothing is computed and nothing chosen by the public solution.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/birds_ensemble.py`

from benchmarks.birds_ceiling import by_count
from benchmarks.results import RESULTS, markdown, provenance, write_section
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, RUNS

DATASET = "birds_lt"
EXPERIMENTS = ("probe", "birds_lt_recipe", "plain", "birds_lt", "again", "pseudo")
COLUMNS = ("accuracy", "balanced_accuracy", "many", "medium", "few")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args()
    home = RUNS / DATASET
    found = [read_json(p) for p in sorted((home / "submissions").glob("*.manifest.json"))]
    found = [m for m in found if m["metrics"].get("solution") and m.get("expected")]
    single = [row(m) for m in found]
    body = f"{provenance()}\n\nOut of fold as 04 and 06 saw it, public: the {images(found[0])} "
    body += "test images of the public solution, looked at once for each submission. Expected is "
    body += f"what 06 forecast, with its 90 % interval.\n\n{markdown(single)}\n\n"
    body += "\n\n".join(
        dict.fromkeys(m["best_member"]["says"] for m in found if m.get("best_member"))
    )
    body += f"\n\n{markdown(times(home), 1)}\n\nOne process on one core each, beside other work: "
    body += "minutes of the CPU where the manifest has them, else of the clock."
    body += "\n\nRecall out of fold after 04, by the images that a class has (all folds together); "
    body += "probe trains no network (configs/probe.yaml):"
    body += f"\n\n{markdown(recalls(home))}"
    title = "birds_lt, pseudo-labels and an ensemble of three"
    print(write_section("birds_lt ensemble", title, body, args.out))


def row(manifest: dict) -> dict:
    expected, public = manifest["expected"], manifest["metrics"]["solution"]
    return {
        "members": " + ".join(sorted(n.split("/")[0] for n in manifest["weights"])),
        "out of fold": expected["oof"],
        "expected": f"{expected['value']:.3f} [{expected['low']:.3f}, {expected['high']:.3f}]",
    } | {f"public {name}": public[name] for name in COLUMNS}


def images(manifest: dict) -> int:
    return manifest["metrics"]["solution"]["images"]


def recalls(home: Path) -> list[dict]:
    """A row per experiment that 04 finished."""
    data, rows = load_dataset(DATASET), []
    for name in EXPERIMENTS:
        if (path := home / name / "posthoc" / "oof.npz").is_file():
            bands = by_count([load_predictions(path, data.num_classes)], data)
            found = {f"{band['images']} images": band["recall"] for band in bands}
            rows.append({"experiment": name} | found)
    return rows


def times(home: Path) -> list[dict]:
    """Minutes of stage 1 by experiment, and the commits it ran at."""
    rows = []
    for name in EXPERIMENTS:
        paths = sorted((home / name / "stage1").glob(f"fold*/{MANIFEST}"))
        folds = [read_json(path) for path in paths]
        rows.append(
            {
                "stage 1 of": name,
                "core minutes": sum(m.get("cpu_seconds", m["seconds"]) for m in folds) / 60,
                "commits": ", ".join(sorted({m["git"] for m in folds})),
            }
        )
    return rows


if __name__ == "__main__":
    main()
