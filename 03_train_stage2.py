"""Stage 2: re-train classifiers on the frozen features of stage 1.

One GPU, or the CPU:   python 03_train_stage2.py --config configs/birds_lt.yaml
Many GPUs:             accelerate launch 03_train_stage2.py --config configs/birds_lt.yaml
                       (the features are computed in parallel; the heads take seconds anyway)
Some folds:            python 03_train_stage2.py --config configs/birds_lt.yaml --folds 0
Search settings:       python 03_train_stage2.py --config configs/birds_lt.yaml --search

Reads   runs/<dataset>/<experiment>/stage1/ (from 02)
Writes  stage2/features/: each training image's features, once per network and view; those of a
        body that was frozen in 02, too, once for all folds, in stage1/features/
        stage2/<head>/fold<k>/: head.safetensors, oof.npz, manifest.json, and for a head with
        `bn: train` batchnorm.safetensors

--search tries values of `search.stage2.keys` on the cached features of every fold but `search.fold`
and writes stage2/<head>/search/: trials.csv, history.png, best.json. `search.fold`, on which
nothing is chosen, tells what the winner gains. It goes on where it was stopped; started again while
it runs, it has one worker more. Later runs take the values in best.json, and say so, unless
search.stage2.use=false.
"""

from functools import partial
from pathlib import Path

from src import cli


def main() -> None:
    parser = cli.parser(
        __doc__, folds="folds to work on, numbers or `full` (default: all that 02 finished)"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="search the keys in `search.stage2.keys`; later runs use what it finds",
    )
    args = parser.parse_args()
    (config,) = cli.configs_of(args)

    if args.search:
        cli.no_dry_run(args)
        from src.rebalance.trials import search_heads

        for name, table in search_heads(config, Path(args.config).stem, args.overwrite).items():
            table = table.sort_values("score", ascending=False, kind="stable").head(10)
            cli.print_table(table, f"{name}: the best trials, scored on all folds but one")
        return

    from src.rebalance.stage2 import stage2  # after the config is known to be right

    work = partial(stage2, config, Path(args.config).stem, args.overwrite, args.folds)
    if args.dry_run:
        from src.plan import would

        views = max((head.views for head in config.stage2), default=0)
        return would("03", config, args, work, 1 + views)
    rows = work()
    cli.print_table(rows, "Stage 2, each fold's held-out images")


if __name__ == "__main__":
    cli.run(main)
