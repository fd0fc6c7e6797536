"""Test logits of every head: all networks of an experiment, with test-time augmentation.

One GPU, or the CPU:   python 05_predict.py --config configs/birds_lt.yaml
Many GPUs:             accelerate launch 05_predict.py --config configs/birds_lt.yaml
More views:            python 05_predict.py --config configs/birds_lt.yaml --set predict.tta.crops=5

Reads   runs/<dataset>/<experiment>/stage1, stage2, posthoc (from 02, 03, 04)
Writes  predict/stage1.npz, predict/<head>.npz, predict/posthoc.npz, manifest.json; and per network
        predict/cache/, so that a new head or calibration needs no second pass of the backbone;
        with predict.keep_views also predict/views/<network>/view<i>.npz; and for a few images
        predict/evidence/evidence.npz, what the networks looked at, which the report shows
"""

from functools import partial
from pathlib import Path

from src import cli


def main() -> None:
    parser = cli.parser(
        __doc__, folds="networks to predict with, numbers or `full` (default: all that 02 finished)"
    )
    args = parser.parse_args()
    (config,) = cli.configs_of(args)

    from src.inference.evidence import evidence  # after the config is known to be right
    from src.inference.predict import predict
    from src.inference.views import tta_views

    experiment = Path(args.config).stem
    work = partial(predict, config, experiment, args.overwrite, args.folds)
    if args.dry_run:
        from src.plan import would

        return would("05", config, args, work, len(tta_views(config.predict.tta)))
    paths = work()
    if config.predict.evidence:
        paths["evidence"] = evidence(config, experiment, args.overwrite, args.folds)
    for name, path in paths.items():
        cli.say(f"{name:>12}  {path}")


if __name__ == "__main__":
    cli.run(main)
