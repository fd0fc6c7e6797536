"""What the six scripts share: their arguments, and errors without tracebacks."""

import argparse
import os
import sys
from collections.abc import Callable

import pandas as pd

from src.errors import UserError


def parser(doc: str, *, many_configs: bool = False) -> argparse.ArgumentParser:
    """A parser with --config, --set and --overwrite; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        required=True,
        nargs="+" if many_configs else None,
        metavar="YAML",
        help="the experiment: configs/X.yaml; its name is the experiment's name",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="override keys of the config, for example train.epochs=3 model.backbone=resnet50",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace finished work instead of skipping it"
    )
    return parser


def run(main: Callable[[], None]) -> None:
    """Call `main`; print a UserError in words and exit with status 2."""
    try:
        for argument in sys.argv[1:]:
            if any("\ud800" <= letter <= "\udfff" for letter in argument):
                raise UserError(f"{argument!r}: not UTF-8; expected arguments and names in UTF-8")
        main()
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except PermissionError as error:
        print(
            f"\nerror: {error.filename}: {error.strerror}; expected a file or directory that you "
            "may read, and under runs/ write. Change its permissions (chmod, chown).",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def is_main_process() -> bool:
    """False in the other processes that `accelerate launch` or `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if is_main_process():
        print(text, flush=True)


def print_table(table: pd.DataFrame, title: str) -> None:
    """Aligned columns, three decimals; cells that are not known stay empty."""
    if table.empty:
        return
    table = table.dropna(axis="columns", how="all")
    text = table.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="")
    say(f"\n{title}\n{text}")
