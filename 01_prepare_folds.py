"""01: raw images → classes, folds and test list.

    python 01_prepare_folds.py --config configs/digits.yaml
    python 01_prepare_folds.py --config configs/birds_lt.yaml --set data.resize=256 folds.k=5
    python 01_prepare_folds.py --config configs/birds_lt.yaml --overwrite

Needs no GPU. Every image is opened once, by data.workers processes. Reads the competition's files
under data.root and never changes them; writes runs/<dataset>/folds/:

    folds.csv         image_id, path, class_id, label, fold (-1: always train), group_id, …
    classes.csv       label, class_id, class_name, count, bin
    test.csv          image_id, path, … in the order of the sample submission
    duplicates.csv    pairs of images that are one photo; each photo is in one fold
    class_labels.txt  `label class_id` per line
    figures/          class distribution, images of each bin, duplicate pairs
    manifest.json     settings, inputs, sha256 of every output

Says which format the submission will have (section `submission` of the config decides otherwise).
A killed run continues where it was. All experiments on one dataset share its folds.
"""

from src.cli import parser, run
from src.config.read import load_config
from src.prepare.describe import describe
from src.prepare.prepare import prepare


def main() -> None:
    args = parser(__doc__).parse_args()
    config = load_config(args.config, args.set)
    print(describe(prepare(config, args.overwrite)))


if __name__ == "__main__":
    run(main)
