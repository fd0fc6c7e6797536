"""benchmarks/RESULTS.md: the section of one config and budget, from the scores that are there."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks import results
from benchmarks.cifar_jobs import SCORES
from benchmarks.cifar_methods import (
    ABLATIONS,
    BUDGETS,
    METHODS,
    OTHER_SOURCES,
    PUBLISHED,
    in_order,
    row_title,
)
from benchmarks.judged import PLAIN, PUBLISHED_EPOCHS, TOO_SHORT, WITHIN, epochs_for, judged
from benchmarks.results import Scores, distinct, table_line
from src.artifacts.files import read_json
from src.artifacts.work import MANIFEST, RUNS
from src.config.read import load_config

TRAINED = {
    False: "all training images, last epoch",
    True: "trained on four fifths of the images, last epoch",
}
CHOSEN = {
    False: "; τ is chosen on fold 0 by a network that never saw it, and used on this one",
    True: "; τ is chosen on fold 0, the others",
}


@dataclass(frozen=True)
class Section:
    """Which part of RESULTS.md: the config's file and the budget."""

    base: str
    budget: str

    @property
    def name(self) -> str:
        return f"{Path(self.base).stem} {self.budget}"

    @property
    def scores(self) -> Scores:
        """epoch: last, or selected on fold 0."""
        return Scores(
            self.name.replace(" ", "-"),
            ("split", "row", "seed", "epoch"),
            ("accuracy", "head", "tail", "many", "medium", "few"),
            ("chosen", "device", "git"),
        )

    def epochs(self, row: str) -> tuple[int, int]:
        """Those of a row's training, and those that it should have."""
        name, budget = row.split("/")[0], BUDGETS[self.budget]
        whole = load_config(self.base)
        trained = {**budget.settings, **budget.adapted.get(name, {})}
        trained = trained.get("train.epochs", whole.train.epochs)
        return trained, max(epochs_for(whole), PUBLISHED_EPOCHS.get(name, 0))

    def published(self, row: str, split: str) -> tuple[float | None, float | None]:
        """Accuracy, and the gain over the same source's cross-entropy, in %."""
        table = PUBLISHED.get(Path(self.base).stem, {})
        own, base = (table.get(r, {}).get(split) for r in (row, PLAIN))
        known = row != PLAIN and None not in (own, base) and row not in OTHER_SOURCES
        return own, own - base if known else None

    def verdict(self, table: pd.DataFrame, row: str, split: str, epoch: str = "last") -> str:
        """TOO_SHORT, or nothing to say; nothing either of a row without figures."""
        there = table[(table["split"] == split) & (table["epoch"] == epoch)]
        means = 100 * there.dropna(subset="accuracy").groupby("row")["accuracy"].mean()
        if row not in means or PLAIN not in means:
            return ""
        trained, whole = self.epochs(row)
        gain = self.published(row, split)[1]
        fine = judged(row, means - means[PLAIN], METHODS, trained < whole, gain)
        return "" if fine else TOO_SHORT


def write_section(path: Path, section: Section, missing: dict[str, str]) -> str:
    """Replace the section between its markers, or append it; all other text stays.

    missing: title → why a method has no figures. Returns the section's text.
    """
    title = f"{section.name}: test accuracy, %"
    table = section.scores.keep(collect(section), path)
    body = render(section, table, missing)
    return results.write_section(section.name, title, body, path)


def collect(section: Section) -> list[dict]:
    """The scores under runs/, a line each."""
    dataset, lines = load_config(section.base).dataset, []
    for path in sorted(RUNS.glob(f"{dataset}_*/{section.budget}-*/score/{SCORES}")):
        if not path.with_name(MANIFEST).is_file():
            continue
        tree, manifest = read_json(path), read_json(path.with_name(MANIFEST))
        facts = {
            "split": tree["split"],
            "seed": str(tree["seed"]),
            "epoch": "selected" if tree["selected"] else "last",
            "chosen": ", ".join(f"{key} {value:.3g}" for key, value in tree["chosen"].items()),
            "device": tree["device"],
            "git": manifest["git"],
        }
        for row, scores in tree["rows"].items():
            names = [row, *(m.name for m in METHODS.values() if m.same_as == row)]
            lines += [{"row": name} | facts | scores for name in names]
    return lines


def render(section: Section, table: pd.DataFrame, missing: dict[str, str]) -> str:
    lines = [*_how(section, table), ""]
    if len(table):
        lines += [*_main_table(section, table), "", *_selected_table(section, table)]
        for title, rows in ABLATIONS.items():
            lines += _ablation(section, title, rows, table)
        lines += _chosen(table)
    if missing:
        lines += ["Not run:", "", *(f"- {title}: {why}" for title, why in missing.items()), ""]
    return "\n".join([*lines, *_not_run(section, table)]).rstrip()


def _not_run(section: Section, table: pd.DataFrame) -> list[str]:
    """Rows with a published figure that have none of ours at the published schedule."""
    figures = PUBLISHED.get(Path(section.base).stem, {})
    if section.budget != "published" or not figures:
        return []
    there, lacking = set(zip(table["split"], table["row"], strict=True)), []
    for split in dict.fromkeys(split for row in figures.values() for split in row):
        rows = [row for row in figures if split in figures[row]]
        left = [row_title(row) for row in rows if (split, row) not in there]
        if left:
            lacking.append(f"{split}: {'every row' if len(left) == len(rows) else ', '.join(left)}")
    why = "Published, and not run (a GPU, or some hours of a CPU with bf16 for each row)"
    return [f"{why}: {'; '.join(lacking)}."] if lacking else []


def _how(section: Section, table: pd.DataFrame) -> list[str]:
    budget = BUDGETS[section.budget]
    tau = CHOSEN[budget.held_out] if "tau" in budget.posthoc else ""
    lines = [
        f"{budget.schedule}. Mean ± standard deviation over seeds (their number); "
        f"{TRAINED[budget.held_out]}{tau}. "
        "`published`: ResNet-32, 200 epochs, all training images, from the sources in "
        "benchmarks/cifar_methods.py, most of them the best test epoch; their gain is over the "
        "cross-entropy of the same table, and left out where another source is quoted. The "
        "selected epoch is the best on fold 0 of a network trained on the other four fifths."
        + _judging(section, table),
        "",
        *(f"    {command}" for command in _commands(section, table)),
    ]
    if len(table):
        devices = " / ".join(sorted(set(table["device"])))
        lines += ["", f"{devices}; trained at commit {distinct(table['git'])}."]
    return lines


def _judging(section: Section, table: pd.DataFrame) -> str:
    """What `too short to judge` means here; nothing where every row was trained long enough."""
    usual = section.epochs(PLAIN)
    others = {name: section.epochs(name) for name in in_order(set(table["row"]))}
    others = {name: both for name, both in others.items() if both != usual and both[0] < both[1]}
    if usual[0] >= usual[1] and not others:
        return ""
    said = [f"{row_title(name)} {done} of {whole}" for name, (done, whole) in others.items()]
    said = [f"{usual[0]} of {usual[1]} epochs"] * (usual[0] < usual[1]) + said
    return (
        f" `{TOO_SHORT}` (benchmarks/judged.py): trained for less than was published "
        f"({', '.join(said)}), and not ahead of cross-entropy, of its baseline and, within "
        f"{WITHIN} points, by as much as is published."
    )


def _commands(section: Section, table: pd.DataFrame) -> list[str]:
    """What measures the table again: a line for each split and the methods trained alike."""
    commands = []
    for split in _splits(table):
        profile = split.rstrip("0123456789.")
        for options, methods in _trained_alike(section, table[table["split"] == split]).items():
            commands.append(
                f"python benchmarks/cifar_lt.py --config {section.base} --budget {section.budget} "
                f"--profile {profile} --ratios {split.removeprefix(profile)} "
                f"--methods {' '.join(methods)} {options}"
            )
    return commands


def _trained_alike(section: Section, table: pd.DataFrame) -> dict[str, list[str]]:
    """The options that say which seeds and whether selected, with the methods of each."""
    found: dict[str, list[str]] = {}
    methods = table["row"].str.partition("/")[0]
    for method in in_order(methods):
        part = table[methods == method]
        options = f"--seeds {' '.join(sorted(set(part['seed']), key=int))}"
        if not BUDGETS[section.budget].held_out and (part["epoch"] == "selected").any():
            options += " --selected"
        found.setdefault(options, []).append(method)
    return found


def _main_table(section: Section, table: pd.DataFrame) -> list[str]:
    """The last epoch, and what the papers say of a split where they say something."""
    splits = _splits(table)
    head = ["method"]
    for split in splits:
        head += [split, "gain over CE"]
        head += ["published", "gain"] if _is_published(section, split) else []
    lines = [table_line(head), table_line(["---", *["---:"] * (len(head) - 1)])]
    for row in _main_rows(table):
        cells = [row_title(row)]
        for split in splits:
            ours = values(table, row, split)
            gain = ours.mean() - values(table, PLAIN, split).mean()
            said = section.verdict(table, row, split)
            cells += [_spread(ours), said or _signed(None if row == PLAIN else gain)]
            if not _is_published(section, split):
                continue
            known, gain = section.published(row, split)
            cells += ["" if known is None else f"{known:.1f}", _signed(gain)]
        lines.append(table_line(cells))
    return lines


def _is_published(section: Section, split: str) -> bool:
    published = PUBLISHED.get(Path(section.base).stem, {})
    return any(split in figures for figures in published.values())


def _selected_table(section: Section, table: pd.DataFrame) -> list[str]:
    """The epoch that fold 0 selects, for the rows and splits of the main table that have one."""
    table = table[table["epoch"] == "selected"]
    if not len(table):
        return []
    splits = _splits(table)
    lines = ["**the epoch selected on fold 0 instead of the last**", ""]
    lines.append(table_line(["method", *splits]))
    lines.append(table_line(["---", *["---:"] * len(splits)]))
    for row in _main_rows(table):
        cells = [row_title(row)]
        for split in splits:
            found = _spread(values(table, row, split, epoch="selected"))
            said = section.verdict(table, row, split, "selected")
            cells.append(", ".join(filter(None, (found, said))))
        lines.append(table_line(cells))
    return [*lines, ""]


def _main_rows(table: pd.DataFrame) -> list[str]:
    """All but the ablations, which have tables of their own."""
    return [row for row in in_order(table["row"]) if not METHODS[row.split("/")[0]].ablation]


def _ablation(
    section: Section, title: str, rows: tuple[str, ...], table: pd.DataFrame
) -> list[str]:
    """All classes, the head half and the tail half, on the split with the longest tail."""
    split = max(set(table["split"]), key=lambda s: (_ratio(s), s.startswith("exp")))
    there = [row for row in rows if len(values(table, row, split))]
    if len(there) < 2:
        return []
    bins = [b for b in ("head", "tail", "many", "medium", "few") if b in table and table[b].any()]
    lines = [f"**{title}**, {split}", "", table_line(["method", "all", *bins, ""])]
    lines.append(table_line(["---", *["---:"] * (len(bins) + 1), "---"]))
    for row in there:
        cells = [_spread(values(table, row, split, column)) for column in ("accuracy", *bins)]
        lines.append(table_line([row_title(row), *cells, section.verdict(table, row, split)]))
    return [*lines, ""]


def _chosen(table: pd.DataFrame) -> list[str]:
    """One line per network with parameters that were chosen on held-out images."""
    own = table[~table["row"].str.contains("/") & (table["chosen"] != "")]
    lines = [
        f"- {row_title(row)}, {split}, seed {seed}: {chosen}"
        for row, split, seed, chosen in own[["row", "split", "seed", "chosen"]].itertuples(False)
    ]
    return ["Chosen on held-out training images:", "", *lines, ""] if lines else []


def _splits(table: pd.DataFrame) -> list[str]:
    return sorted(set(table["split"]), key=lambda s: (s.startswith("step"), -_ratio(s)))


def values(
    table: pd.DataFrame, row: str | None, split: str, column: str = "accuracy", epoch: str = "last"
) -> pd.Series:
    """One per seed, in %."""
    wanted = (table["row"] == row) & (table["split"] == split) & (table["epoch"] == epoch)
    return 100 * table.loc[wanted, column].dropna()


def _spread(found: pd.Series) -> str:
    if not len(found):
        return ""
    return f"{found.mean():.1f}{deviation(found)} ({len(found)})"


def deviation(found: pd.Series) -> str:
    """± the standard deviation over seeds, where there are several."""
    return f" ± {found.std():.1f}" if len(found) > 1 else ""


def _signed(gain: float | None) -> str:
    return "" if gain is None or gain != gain else f"{gain:+.1f}"


def _ratio(split: str) -> float:
    return float(split.lstrip("abcdefghijklmnopqrstuvwxyz"))
