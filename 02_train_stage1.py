"""Stage 1: train the network on every fold, and keep out-of-fold logits.

One GPU, or the CPU:   python 02_train_stage1.py --config configs/birds_lt.yaml
Some folds, or all:    python 02_train_stage1.py --config configs/birds_lt.yaml --folds 0 1 full
Many GPUs:             accelerate launch 02_train_stage1.py --config configs/birds_lt.yaml
Two CPU processes:     torchrun --nproc_per_node 2 02_train_stage1.py --config configs/digits.yaml
Other settings:        python 02_train_stage1.py --config configs/birds_lt.yaml --set train.lr=5e-4
Search settings:       python 02_train_stage1.py --config configs/birds_lt.yaml --search

Reads   runs/<dataset>/folds/ (from 01)
Writes  runs/<dataset>/<experiment>/config.yaml and stage1/fold<k>/: weights.safetensors,
        head.safetensors, oof.npz, metrics.csv, last.pt, manifest.json; stage1/curves.png

A run that was stopped goes on after its last finished epoch, with the same result. `full` trains
one more network on every training image: it has no out-of-fold logits and borrows the calibration
of the folds.

--search tries values of `search.keys` on a split inside one fold's training images and writes
search/: trials.csv, history.png, best.json. It goes on where it was stopped; started again while
it runs, also on another GPU or machine, it has one worker more. Later runs of this script and of 03
take the values in best.json, and say so, unless search.use=false.

A config with train.pseudo.experiment=<first round> trains a second round, also on test images that
the first one's networks have labelled, each fold by its own network; the first needs 05 with
--set 'predict.keep_networks=[posthoc]'. Such an experiment is marked wherever it shows.

A config with `soup: {members: [a, b]}` trains nothing: its networks are the means of the weights of
these experiments, fold by fold, and 03 … 06 go on from there.
"""

from functools import partial
from pathlib import Path

from src import cli
from src.errors import UserError


def main() -> None:
    parser = cli.parser(
        __doc__, folds="folds to train, numbers or `full` (default: all numbered folds)"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="search the keys in `search.keys` instead of training; later runs use what it finds",
    )
    args = parser.parse_args()
    (config,) = cli.configs_of(args)
    if config.soup is None:
        from src.config.model import check_weights_file  # after the arguments are known to be right

        check_weights_file(config.model.weights_file)

    if args.search and config.soup is not None:
        raise UserError("--search: a soup is not trained; remove the section soup, or --search")
    if args.search:
        cli.no_dry_run(args)
        from src.training.trials import search

        table = search(config, Path(args.config).stem, args.overwrite)
        cli.print_table(table, "Trials, scored on the inner split")
        return

    experiment, title = Path(args.config).stem, "Stage 1, each fold's held-out images"
    if config.soup is not None:
        from src.training.soup import soup as make

        title = f"A soup: {title}"
    else:
        from src.training.stage1 import stage1 as make  # after the config is known to be right
    work = partial(make, config, experiment, args.folds, args.overwrite)
    if args.dry_run:
        from src.plan import would

        return would("02", config, args, work)
    rows = work()

    from src.artifacts.marks import marked, pseudo_labelled
    from src.artifacts.work import RUNS

    home = RUNS / config.dataset / experiment
    cli.print_table(rows, marked(title, home))
    if note := pseudo_labelled(home):
        cli.say(note)


if __name__ == "__main__":
    cli.run(main)
