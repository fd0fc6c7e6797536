"""01: raw images → classes, folds and test list.

    python 01_prepare_folds.py --config configs/digits.yaml
    python 01_prepare_folds.py --config configs/birds_lt.yaml --set data.resize=256 folds.k=5
    python 01_prepare_folds.py --config configs/birds_lt.yaml --overwrite
    python 01_prepare_folds.py --inspect data/raw/mine.zip --out configs/mine.yaml
    python 01_prepare_folds.py --inspect data/raw/mine.zip --probe

Needs no GPU. Every image is read once, by data.workers processes, and some a second time at a
fraction of their size, to look for scenes (data.scenes). Reads the competition's files under
data.root and never changes them; writes runs/<dataset>/folds/:

    folds.csv         image_id, path, class_id, label, fold (-1: always train), group_id, …
    classes.csv       label, class_id, class_name, count, bin
    test.csv          image_id, path, … in the order of the sample submission
    duplicates.csv    pairs of images that are one photo; each photo is in one fold
    scenes.csv        images of one burst, where there are any; each burst is in one fold
    class_labels.txt  `label class_id` per line
    figures/          class distribution, images of each bin, duplicate pairs
    manifest.json     settings, inputs, sha256 of every output

Says which format the submission will have (section `submission` of the config decides otherwise).
A killed run continues where it was. All experiments on one dataset share its folds.

--inspect looks at a directory, a zip (extracted to data/raw/<name>) or a CSV that nothing is known
of and writes a config for it in which each choice says why; nothing else is made or changed. With
--probe that config trains no network: heads on the features of pretrained weights, in minutes.
"""

import shlex
from argparse import SUPPRESS

from src import cli
from src.errors import UserError


def main() -> None:
    parser = cli.parser(__doc__, needs_config=False)
    parser.add_argument(
        "--inspect",
        metavar="PATH",
        help="a directory, zip or CSV to write a starting config for, instead of preparing folds",
    )
    parser.add_argument(
        "--out",
        metavar="YAML",
        help="with --inspect: the config to write (default: configs/<name of PATH>.yaml)",
    )
    parser.add_argument(
        "--probe", action="store_true", help="with --inspect: a config that trains no network"
    )
    parser.add_argument("bare", nargs="?", help=SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        option = "--config" if args.bare.endswith((".yaml", ".yml")) else "--inspect"
        raise UserError(
            f"{args.bare}: a config goes after --config, a competition's files after --inspect: "
            f"`python 01_prepare_folds.py {option} {shlex.quote(args.bare)}`"
        )
    if args.inspect:
        if args.config or args.set or args.smoke or args.dry_run:
            raise UserError(
                "--inspect reads no config: leave out --config, --set, --smoke and --dry-run"
            )
        from src.prepare.doctor.inspect import inspect

        cli.say(inspect(args.inspect, args.out, args.overwrite, args.probe))
        return
    if not args.config or args.out or args.probe:
        raise UserError(
            "expected --config YAML, or --inspect PATH [--probe] [--out YAML], which writes one"
        )
    (config,) = cli.configs_of(args)

    from src.prepare.describe import describe  # after the config is known to be right
    from src.prepare.prepare import prepare

    if args.dry_run:
        from src.plan import would

        return would("01", config, args, lambda: prepare(config, args.overwrite))
    cli.say(describe(prepare(config, args.overwrite)))


if __name__ == "__main__":
    cli.run(main)
