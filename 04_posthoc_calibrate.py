"""Stage 4: calibrate and fuse the logits of stages 1 and 2 on out-of-fold images.

    python 04_posthoc_calibrate.py --config configs/digits.yaml
    python 04_posthoc_calibrate.py --config configs/digits.yaml --folds 0    # a one-fold baseline

Needs 02 and 03 of all folds, or of those that --folds names. Runs on any CPU in seconds to minutes
and never imports torch; there is nothing here for a GPU to do. From every head of stages 1 and 2 it
tries posthoc.steps in the config's order, keeps a step only if its cross-fitted gain (chosen on the
other folds, scored on this one; of a single fold: parts of it) passes the section `judge`, takes
the head that ends best, and writes runs/<dataset>/<experiment>/posthoc/: posthoc.json, search.csv,
table.csv, oof.npz, and posthoc.npz for steps with many parameters. Behind a gain stands its 95 %
interval and what it is counted in.
"""

from functools import partial
from pathlib import Path

from src import cli

HIDDEN = ["start", "step", "kept", "gain", "gain_low", "gain_high", "params", "reason"]


def main() -> None:
    args = cli.parser(__doc__, folds="folds to go by, numbers (default: all)").parse_args()
    (config,) = cli.configs_of(args)

    from src.artifacts.marks import marked, pseudo_labelled  # after the config is known to be right
    from src.artifacts.work import RUNS
    from src.fusion.store import load_recipe
    from src.posthoc.calibrate import posthoc
    from src.posthoc.words import choice_in_words, ends

    experiment = Path(args.config).stem
    work = partial(posthoc, config, experiment, overwrite=args.overwrite, folds=args.folds)
    if args.dry_run:
        from src.plan import would

        return would("04", config, args, work)
    table = work()
    directory = RUNS / config.dataset / experiment / "posthoc"
    title = "cross-fitted on the out-of-fold images, with the steps that were kept"
    short = ends(table).drop(columns=HIDDEN, errors="ignore").rename(columns=cli.SHORT)
    cli.print_table(short, marked(title, directory.parent))
    result = load_recipe(directory)
    cli.say(f"\n{choice_in_words(result)}\n{directory / 'posthoc.json'}, every trial: table.csv")
    if "decision" in result:  # older ones have none
        cli.say(f"06 of this alone, {result['decision']['says']}")
    for note in filter(None, (result.get("optimistic"), result.get("caveat"))):
        cli.say(note)
    if note := pseudo_labelled(directory.parent):
        cli.say(note)


if __name__ == "__main__":
    cli.run(main)
