"""Test logits of every head: all networks of an experiment, with test-time augmentation.

One GPU, or the CPU:   python 05_predict.py --config configs/birds_lt.yaml
Many GPUs:             accelerate launch 05_predict.py --config configs/birds_lt.yaml
More views:            python 05_predict.py --config configs/birds_lt.yaml --set predict.tta.crops=5

Reads   runs/<dataset>/<experiment>/stage1, stage2, posthoc (from 02, 03, 04)
Writes  predict/stage1.npz, predict/<head>.npz, predict/posthoc.npz, manifest.json; and per network
        predict/cache/, so that a new head or calibration needs no second pass of the backbone;
        with predict.keep_views also predict/views/<network>/view<i>.npz
"""

from pathlib import Path

from src import cli
from src.config.read import load_config


def main() -> None:
    args = cli.parser(__doc__).parse_args()
    config = load_config(args.config, args.set)

    from src.inference.predict import predict  # after the config is known to be right

    for name, path in predict(config, Path(args.config).stem, args.overwrite).items():
        cli.say(f"{name:>12}  {path}")


if __name__ == "__main__":
    cli.run(main)
