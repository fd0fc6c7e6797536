"""Stage 2: re-train classifiers on the frozen features of stage 1.

One GPU, or the CPU:   python 03_train_stage2.py --config configs/birds_lt.yaml
Many GPUs:             accelerate launch 03_train_stage2.py --config configs/birds_lt.yaml
                       (the features are computed in parallel; the heads take seconds anyway)

Reads   runs/<dataset>/<experiment>/stage1/ (from 02)
Writes  stage2/features/: each training image's features, once per network and view
        stage2/<head>/fold<k>/: head.safetensors, oof.npz, manifest.json, and for a head with
        `bn: train` batchnorm.safetensors
"""

from pathlib import Path

from src import cli
from src.config import load_config


def main() -> None:
    args = cli.parser(__doc__).parse_args()
    config = load_config(args.config, args.set)

    from src.rebalance.stage2 import stage2  # after the config is known to be right

    rows = stage2(config, Path(args.config).stem, args.overwrite)
    cli.print_table(rows, "Stage 2, each fold's held-out images")


if __name__ == "__main__":
    cli.run(main)
