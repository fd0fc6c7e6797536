"""What the six scripts share: their arguments, and errors without tracebacks.

What takes long to import is imported where it is used, here and in the scripts, so that `--help`
and wrong arguments are answered at once.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from src.config.names import SMOKE
from src.errors import MORE_ROOM, READ_ONLY, UserError, no_room

if TYPE_CHECKING:
    import pandas as pd

    from src.config.schema import Config

WIDTH = 120  # columns of a line, at most
said_at = time.monotonic()  # when something was said last
SHORT = {"accuracy": "overall", "balanced_accuracy": "balanced", "macro_f1": "f1"}  # in tables


def parser(
    doc: str, *, many_configs: bool = False, folds: str = "", needs_config: bool = True
) -> argparse.ArgumentParser:
    """A parser with --config, --set and --overwrite; `doc` is the script's docstring.

    folds: what --folds is for, where there is one
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.register("action", None, Once)
    parser.add_argument(
        "--config",
        required=needs_config,
        nargs="+" if many_configs else None,
        action="extend" if many_configs else None,
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
        "--overwrite",
        action="store_true",
        help="replace finished work instead of skipping it, once the new one is complete",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="the whole config once on a few images for an epoch, always anew, in "
        f"runs/<dataset>{SMOKE}: does it run? Give it to all scripts, in order",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done, with what files, and for how long; write nothing",
    )
    if folds:
        parser.add_argument("--folds", nargs="+", default=[], metavar="K", help=folds)
    return parser


def configs_of(args: argparse.Namespace) -> list[Config]:
    """What --config and --set say, for `--smoke` made small. Errors: UserError, see `load_config`.

    A smoke run is made anew whatever is there: args.overwrite is then set, and nothing is written
    outside its directory, so that args.out is not.
    """
    from src.config.read import load_config
    from src.config.smoke import smoked

    paths = _paths(args)
    configs = [load_config(path, args.set) for path in paths]
    if args.smoke:
        args.overwrite, args.out = True, None
        configs = [smoked(c, f"{path}, --smoke") for c, path in zip(configs, paths, strict=True)]
    return configs


def experiments_of(args: argparse.Namespace) -> list[str]:
    """Their names."""
    return [Path(path).stem for path in _paths(args)]


def _paths(args: argparse.Namespace) -> list[str]:
    return args.config if isinstance(args.config, list) else [args.config]


def no_dry_run(args: argparse.Namespace) -> None:
    """Errors: UserError, of options whose end is not known beforehand."""
    if args.dry_run:
        raise UserError("--dry-run does not tell how long --search takes; leave one of them out")


class Once(argparse.Action):
    """argparse's own way with an option that is given twice is to forget the first without a word;
    here it is an error, of every option that does not collect."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest, self.default)
        if before is not self.default:
            first, second = (_words(value) for value in (before, values))
            more = f"give all at once: {option_string} {first} {second}"
            one = "a run takes one" + (
                "; 06_ensemble.py takes several" if option_string == "--config" else ""
            )
            raise UserError(
                f"{option_string} is there twice, with {first} and {second}; "
                f"{more if isinstance(before, list) else one}"
            )
        setattr(namespace, self.dest, values)


def _words(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def run(main: Callable[[], None]) -> None:
    """Call `main`; print a UserError in words and exit with status 2."""
    try:
        for argument in sys.argv[1:]:
            if any("\ud800" <= letter <= "\udfff" for letter in argument):
                raise UserError(f"{argument!r}: not UTF-8; expected arguments and names in UTF-8")
        main()
    except UserError as error:
        print(wrapped(f"\nerror: {error}"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
            text = "nothing reads the output any more; run the same command again to continue"
            print(f"\nstopped: {text}", file=sys.stderr)
            sys.exit(141)  # as a shell says it of what a closed pipe ends
        if (text := _of_the_disk(error)) is None:
            raise
        print(wrapped(f"\nerror: {text}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _nobody_reads() -> bool:
    """Whether the output is a pipe whose other end is closed, as after `| head`."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _of_the_disk(error: OSError) -> str | None:
    """What a disk that is full or may not be written to is called; None for other errors."""
    if why := no_room(error):
        return f"{error.filename or 'while writing'}: {why}. {MORE_ROOM}"
    if error.errno not in READ_ONLY:
        return None
    return (
        f"{error.filename}: {error.strerror}; expected a file or directory that you may read, and "
        "under runs/ write. Change its permissions (chmod, chown), or mount its disk to be written."
    )


def is_main_process() -> bool:
    """False in the other processes that `accelerate launch` or `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print, above the bars if there are any, in lines of at most WIDTH columns."""
    global said_at
    if is_main_process():
        tqdm.write(wrapped(text))
        sys.stdout.flush()
        said_at = time.monotonic()


def wrapped(text: str) -> str:
    """Long lines are cut between words, and go on indented; words stay whole, however long, and so
    do `commands`, to be copied."""
    text, lines = re.sub("`[^`\n]*`", lambda found: found[0].replace(" ", "\0"), text), []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())] + "  "
        short = len(line) <= WIDTH
        how = {"break_long_words": False, "break_on_hyphens": False}
        lines += [line] if short else textwrap.wrap(line, WIDTH, subsequent_indent=indent, **how)
    return "\n".join(lines).replace("\0", " ")


def print_table(table: pd.DataFrame, title: str) -> None:
    """Aligned columns, three decimals; cells that are not known stay empty."""
    if table.empty:
        return
    table = table.dropna(axis="columns", how="all")
    text = table.to_string(
        index=False, float_format=lambda v: f"{v:.3f}", na_rep="", line_width=WIDTH
    )
    say(f"\n{title}\n{text}")
