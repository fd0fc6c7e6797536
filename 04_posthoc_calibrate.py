"""Stage 4: calibrate and fuse the logits of stages 1 and 2 on out-of-fold images.

    python 04_posthoc_calibrate.py --config configs/digits.yaml

Needs 02 and 03. Runs on any CPU in seconds to minutes and never imports torch; there is nothing
here for a GPU to do. From every head of stages 1 and 2 it tries posthoc.steps in the config's
order, keeps a step only if its cross-fitted gain (chosen on the other folds, scored on this one)
passes the section `judge`, takes the head that ends best, and writes
runs/<dataset>/<experiment>/posthoc/: posthoc.json, search.csv, table.csv, oof.npz, and posthoc.npz
for steps with many parameters. Behind a gain stands its 95 % interval.
"""

from pathlib import Path

import pandas as pd

from src import cli
from src.artifacts.marks import marked, pseudo_labelled
from src.artifacts.work import RUNS
from src.config.read import load_config
from src.fusion.store import brief, load_recipe
from src.metrics import gain_text
from src.posthoc.calibrate import posthoc

SHORT = {"accuracy": "overall", "balanced_accuracy": "balanced"}


def main() -> None:
    args = cli.parser(__doc__).parse_args()
    config = load_config(args.config, args.set)
    experiment = Path(args.config).stem
    table = posthoc(config, experiment, overwrite=args.overwrite)
    directory = RUNS / config.dataset / experiment / "posthoc"
    title = "cross-fitted on the out-of-fold images"
    cli.print_table(readable(table), marked(title, directory.parent))
    result = load_recipe(directory)
    steps = [f"{step['step']} {brief(step['params'])}" for step in result["steps"]]
    print(f"{directory / 'posthoc.json'}: {' + '.join([result['head'], *steps])}")
    if "decision" in result:  # older ones have none
        print(f"06 of this alone, {result['decision']['says']}")
    if result.get("optimistic"):
        print(result["optimistic"])
    if note := pseudo_labelled(directory.parent):
        print(note)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for a terminal: one line per head and step."""
    names = [f"{h} + {s}" if s else h for h, s in zip(table["start"], table["step"], strict=True)]
    names[-1] = f"final: {table['start'].iloc[-1]}"
    gains = [gain_text(*row) for row in table[["gain", "gain_low", "gain_high"]].to_numpy()]
    table = table.drop(columns=["gain_low", "gain_high"]).assign(gain=gains)
    short = table.drop(columns=["start", "step", "reason"]).rename(columns=SHORT)
    ends = ["gain", "kept", "params"]
    short = short[[c for c in short if c not in ends] + ends]
    short.insert(0, "head + step", names)
    return short


if __name__ == "__main__":
    cli.run(main)
