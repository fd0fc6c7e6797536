"""Does what a post-hoc step gains out of fold show on the test set? Every step on every head.

    python benchmarks/fusions.py --config configs/digits.yaml

Needs 01 … 05 of the experiments, and their solutions. Each step of src/fusion stands alone on each
head, with its default keys: chosen out of fold and cross-fitted as in 04, then applied once to the
test logits of the same networks. Nothing is chosen by the test set. Rows are kept in
benchmarks/scores/fusions.csv, so that experiments can be measured one after the other; the figure
and the correlations are of all that there are.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/fusions.py`

from benchmarks.results import RESULTS, Scores, distinct, machine, markdown, write_section
from src.artifacts.dataset import Dataset, finished_networks, load_dataset
from src.artifacts.oof import load_head_folds
from src.artifacts.predictions import load_predictions
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS, git_state
from src.config.names import STAGE1
from src.config.read import load_config, with_values
from src.config.schema import Config
from src.errors import UserError
from src.fusion import STEPS, build_steps
from src.fusion.network import all_logits
from src.fusion.step import Step
from src.inference.heads import trained_heads
from src.inference.passes import merged_file
from src.metrics import outcomes_of, pooled
from src.plots.style import legend_above, png
from src.posthoc.crossfit import cross_fitted, no_steps, try_step
from src.posthoc.inputs import Start, load_start
from src.submission.solution import find_solution, score_solution

RULES = (0.0, 1.0, 1.64, 2.0, 2.25, 2.5, 3.0)  # judge.standard_errors
SHOWN = ("accuracy", "balanced_accuracy", "many", "medium", "few", "nll", "ece")
KEPT = Scores(
    "fusions",
    ("experiment", "head", "step"),
    (*(f"{side}_{name}" for side in ("oof", "test") for name in SHOWN), "gain_se"),
    ("kept", "device", "git"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="*", default=[], help="experiments to measure")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args()
    for path in args.config:
        KEPT.keep(list(measure(path)), args.out)
    rows = KEPT.read(args.out)
    print(write_section("fusions", "What 04 gains out of fold, and on the test set",
                        body(rows, args.out), args.out))  # fmt: skip


def measure(path: str):
    """Rows of one experiment: every head as trained, and every step alone on it."""
    asked = load_config(path)
    name, data = Path(path).stem, load_dataset(asked.dataset)
    home = RUNS / asked.dataset / name
    config = trained_config(asked, home)
    steps = [step for step in map(partial(step_of, config), STEPS) if step]
    truth, bins = find_solution(data, None), data.classes["bin"].to_numpy()
    tests = [test_of(network, home, config, data) for network in finished_networks(home, data)]
    stage1 = load_head_folds(home, STAGE1, data)
    about = {"experiment": name, "device": machine(), "git": git_state()}
    for head in config.head_names:
        start = load_start(head, steps, stage1, home, data, config)
        for step in [None, *steps]:
            recipes, kept, error = no_steps(start), "", float("nan")
            if step is not None:
                trial = try_step(step, start, recipes, config)
                if not trial.recipes:
                    continue  # it cannot act on this head
                recipes, kept = trial.recipes, "yes" if trial.kept else "no"
                error = trial.gain.noise
            oof = scores_of(start, recipes, bins)
            found, _ = score_solution(*on_test(head, recipes[None], tests, data), data, truth)
            row = about | {"head": head, "step": step.name if step else "", "kept": kept,
                           "gain_se": error}  # fmt: skip
            for side, scores in (("oof", oof), ("test", found)):
                row |= {f"{side}_{n}": scores.get(n, float("nan")) for n in SHOWN}
            print({k: v for k, v in row.items() if k not in about}, flush=True)
            yield row


def step_of(config: Config, name: str) -> Step | None:
    """A step with its default keys; None where this experiment has not what it needs."""
    try:
        return build_steps(with_values(config, {"posthoc.steps": [name]}, name))[0]
    except UserError as error:
        print(error)
        return None


def scores_of(start: Start, recipes, bins: np.ndarray) -> dict[str, float]:
    found = [outcomes_of(z, start.labels[k]) for k, z in cross_fitted(start, recipes)]
    return pooled(found).summary(np.concatenate([start.labels[k] for k in start.states]), bins)


def on_test(head: str, recipe, tests: list, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Logits [M, K], the mean over the networks, and ids [M]. tests: of each network its passes'
    predictions and its heads, as 05 has them"""
    steps = [{"step": name, "params": params} for name, params in recipe]
    mean, counts = 0, data.counts(data.images)
    for found, own, heads in tests:
        logits = all_logits(found, own, heads, {"head": head, "steps": steps}, counts)
        mean = mean + logits["posthoc"] / len(tests)
    return mean, found.image_id


def test_of(network: Path, home: Path, config: Config, data: Dataset):
    """What 05 made of the test images by one network: the mean over its views, from the cache."""
    trained, directory = trained_heads(network, config), home / "predict"
    found, own = trained.predictions(
        lambda one: load_predictions(merged_file(config, data, one, directory), data.num_classes)
    )
    return found, own, trained.heads()


def body(rows: pd.DataFrame, out: Path) -> str:
    """Tables by experiment, the correlations, and the figure beside the Markdown."""
    gains, parts = gains_of(rows), []
    draw(gains, out.with_name("fusions.png"))
    for name, group in gains.groupby("experiment", sort=False):
        parts.append(f"**{name}**: {agreement(group)}\n\n{markdown(table(group))}")
    text = (
        f"`python benchmarks/fusions.py --config …` · {distinct(rows['device'])} · commits "
        f"{distinct(rows['git'])}\n\nEach step alone on each head, chosen and cross-fitted out of "
        "fold, then applied once to the test images that have a label. Kept is what passes the "
        f"section judge. All together: {agreement(gains)}\n\n![](fusions.png)\n\n"
        "What another `judge.standard_errors` would have kept of these, and what a head has of it "
        f"on test:\n\n{markdown(by_rule(gains), 1)}"
    )
    return "\n\n".join([text, *parts])


def gains_of(rows: pd.DataFrame) -> pd.DataFrame:
    """With the gains in balanced accuracy over the head as trained; 0 for the head itself."""
    plain = rows[rows["step"] == ""].set_index(["experiment", "head"])
    at = pd.MultiIndex.from_frame(rows[["experiment", "head"]])
    out = rows.copy()
    for side in ("oof", "test"):
        column = f"{side}_balanced_accuracy"
        out[f"{side}_gain"] = rows[column].to_numpy() - plain[column].reindex(at).to_numpy()
    return out


def judged(gains: pd.DataFrame) -> pd.DataFrame:
    """Rows of steps that are judged by the metric: temperature changes no decision."""
    return gains[[bool(n) and STEPS[n].scored_by == "metric" for n in gains["step"]]]


def agreement(gains: pd.DataFrame) -> str:
    """How well cross-fitted gains predict those on the test set, in words."""
    tried = judged(gains)
    a, b = tried["oof_gain"].to_numpy(), tried["test_gain"].to_numpy()
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return f"{len(a)} steps, too few to correlate."
    kept = tried["kept"] == "yes"
    said = [
        f"{100 * part['oof_gain'].mean():+.1f} points out of fold and "
        f"{100 * part['test_gain'].mean():+.1f} on test for the {len(part)} {name}"
        for name, part in (("kept", tried[kept]), ("others", tried[~kept]))
        if len(part)
    ]
    return (
        f"{len(a)} steps on heads; cross-fitted and test gain correlate with r = "
        f"{np.corrcoef(a, b)[0, 1]:.2f} (ranks: {spearmanr(a, b).statistic:.2f}); the mean gain is "
        f"{', '.join(said)}."
    )


def by_rule(gains: pd.DataFrame) -> list[dict]:
    """What is kept at each number of standard errors: how many steps, and what they are worth in
    points of balanced accuracy, where of each head's kept steps the best out of fold is taken."""
    tried, found = judged(gains), []
    for times in RULES:
        gained = tried["oof_gain"] > np.maximum(0, times * tried["gain_se"])
        kept = tried[gained]
        best = kept.sort_values("oof_gain").groupby(["experiment", "head"]).tail(1)
        heads = len(tried[["experiment", "head"]].drop_duplicates())
        found.append({
            "standard errors": f"{times:g}", "kept": len(kept), "of": len(tried),
            "worse on test": int((kept["test_gain"] < 0).sum()),
            "mean test gain of kept": 100 * kept["test_gain"].mean(),
            "of dropped": 100 * tried["test_gain"][~gained].mean(),
            "best step per head, mean test gain over heads": 100 * best["test_gain"].sum() / heads,
        })  # fmt: skip
    return found


def table(group: pd.DataFrame) -> list[dict]:
    shown = [n for n in SHOWN if group[f"oof_{n}"].notna().any()]
    return [
        {"head": row["head"] + (f" + {row['step']}" if row["step"] else ""), "kept": row["kept"]}
        | {f"{n}: oof / test": f"{row[f'oof_{n}']:.3f} / {row[f'test_{n}']:.3f}" for n in shown}
        for row in group.to_dict("records")
    ]


def draw(gains: pd.DataFrame, path: Path) -> None:
    def panel(ax: Axes) -> None:
        tried = judged(gains)
        for name, group in tried.groupby("experiment", sort=False):
            ax.scatter(100 * group["oof_gain"], 100 * group["test_gain"], 16, label=name)
        low, high = ax.get_xlim()
        ax.plot([low, high], [low, high], lw=0.8, color="#8b929b")
        ax.set_xlabel("cross-fitted gain, points of balanced accuracy")
        ax.set_ylabel("gain on the test set")
        ax.set_title("Does the out-of-fold gain hold?")
        legend_above(ax)

    png([panel], path, columns=1)


if __name__ == "__main__":
    main()
