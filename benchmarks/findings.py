"""The first page of RESULTS.md: what the tables say, from their scores, with a figure.

    python benchmarks/findings.py      # nothing is trained

Every number is computed from benchmarks/scores, or read from the one table that has none there; the
sentences say where each table stands. Gains are paired differences of balanced accuracy on held-out
images, with 95 % intervals. What is too short to judge (benchmarks/judged.py) is not drawn, and
called so.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/findings.py`

from benchmarks import fine_grained, longer, regret
from benchmarks.birds_methods import BIRDS, Job, job_config, judged_rows, scores_of, too_short
from benchmarks.cifar_methods import row_title
from benchmarks.cifar_table import Section
from benchmarks.fine_methods import METHODS as FINE
from benchmarks.judged import TOO_SHORT, WITHIN
from benchmarks.results import RESULTS, write_section
from src import cli
from src.config.schema import Config
from src.metrics import NORMAL
from src.plots.style import BIN_COLORS, MUTED, legend_above, png

FIGURE = "findings.png"
ALIKE = "birds_lt like with like"  # the section's name
COLORS = {"birds_lt": BIN_COLORS["many"], "digits": BIN_COLORS["medium"]}
FOREST = (  # rows of the method tables, most alike beside each other
    "balanced_softmax", "ce/prior", "ce/cosine", "ce/ncm", "ce/lws", "ce/crt", "ce_drw", "ce_drs",
    "ldam_drw", "bbn", "kt", "paco", "focal", "cb_focal", "mixup", "manifold_two",
)  # fmt: skip
BASE = "plain_12"  # of the rows of fine_methods with as many epochs
STARTS = ("class_means", "text", "text_shuffled", "label_embedding", "label_embedding_shuffled")
CONFIGS = RESULTS.parents[1] / "configs"
CIFAR = str(CONFIGS / "cifar10_lt.yaml")
BASES = {"birds_lt": str(CONFIGS / "birds_lt_plain.yaml"), "digits": str(CONFIGS / "digits.yaml")}
SPLIT = "exp100"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    out = parser.parse_args(argv).out
    panels = [panel for panel in (forest(out), cost(out), published(out)) if panel is not None]
    png(panels, out.with_name(FIGURE))
    lines = [f"![gains of methods, their cost, and published figures]({FIGURE})", ""]
    parts = (repeated, like_with_like, least_regret, with_time, starts, costs)
    lines += [f"- {text}" for said in parts for text in said(out)]
    lines += ["", "In brackets behind a difference: its 95 % interval, in points."]
    print(write_section("findings", "What the tables say", "\n".join(lines), out))


# ---- panels -------------------------------------------------------------------------------------


def forest(out: Path) -> Callable[[Axes], None] | None:
    """Gains over cross-entropy, a row per method, a mark per data set."""
    tables = {name: methods_table(name, out) for name in COLORS}
    tables = {name: judgeable(name, table) for name, table in tables.items() if len(table)}
    rows = [row for row in FOREST if any(row in table.index for table in tables.values())]
    if not rows:
        return None

    def panel(ax: Axes) -> None:
        for place, (name, table) in enumerate(tables.items()):
            found = table.reindex(rows)
            y = np.arange(len(rows)) + 0.3 * (place - (len(tables) - 1) / 2)
            gain, noise = 100 * found["gain"], 100 * NORMAL * found["noise"]
            style = {"fmt": "o", "ms": 3, "lw": 1, "color": COLORS[name]}
            style["label"] = f"{name}, {trained(name).train.epochs} epochs"
            ax.errorbar(gain, y, xerr=noise, **style)
        ax.axvline(0, lw=0.8, color=MUTED)
        ax.set_yticks(range(len(rows)), [row_title(row, BIRDS) for row in rows], fontsize=6.5)
        ax.invert_yaxis()
        ax.set_xlabel("points of balanced accuracy over cross-entropy, 95 %")
        ax.set_title(f"Methods (none where {TOO_SHORT})")
        legend_above(ax)

    return panel


def cost(out: Path) -> Callable[[Axes], None] | None:
    """birds_lt: what a method gains over plain training, and how much longer it takes."""
    table = fine_table(out)
    table = table[[not name.endswith("/prior") for name in table.index]].dropna(subset="gain")
    if fine_grained.too_short(BASES["birds_lt"]):
        table = table[table["gain"] > 0]
    if not len(table):
        return None

    def panel(ax: Axes) -> None:
        x, y = table["seconds"], 100 * table["gain"]
        ax.errorbar(x, y, yerr=100 * NORMAL * table["noise"], fmt="o", ms=3, lw=0.7,
                    color=BIN_COLORS["many"])  # fmt: skip
        best = table["gain"].nlargest(2).index
        for name in best:
            ax.annotate(FINE[name].title, (x[name], y[name]), (3, 3), fontsize=5.5,
                        textcoords="offset points")  # fmt: skip
        ax.axhline(0, lw=0.8, color=MUTED)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel(f"seconds of training, × those of {fine_grained.EPOCHS} plain epochs")
        ax.set_ylabel("points over them, 95 %; what is behind\nis too short to judge", fontsize=8)
        ax.set_title("birds_lt: what time buys")

    return panel


def published(out: Path) -> Callable[[Axes], None] | None:
    """CIFAR-10-LT 1:100 by the published schedule beside the published figures; None before any."""
    ours, theirs = beside_published(out)
    if not len(ours):
        return None

    def panel(ax: Axes) -> None:
        x, y = theirs, ours
        ax.scatter(x, y, 14, color=BIN_COLORS["many"])
        for row, a, b in zip(ours.index, x, y, strict=True):
            ax.annotate(row_title(row, BIRDS), (a, b), (3, 3), fontsize=5.5,
                        textcoords="offset points")  # fmt: skip
        low, high = min(*x, *y) - 1, max(*x, *y) + 1
        ax.plot([low, high], [low, high], lw=0.8, color=MUTED)
        ax.set_xlabel("published accuracy, %")
        ax.set_ylabel("ours")
        ax.set_title("CIFAR-10-LT 1:100, published schedule")

    return panel


# ---- sentences ----------------------------------------------------------------------------------


def repeated(out: Path) -> list[str]:
    """How many of the published figures were met; nothing before any was tried."""
    ours, theirs = beside_published(out)
    if not len(ours):
        return []
    off = ours - theirs
    said = [
        f"{row_title(row, BIRDS)} {ours[row]:.1f} ({theirs[row]:.1f})"
        for row in off.abs().sort_values().index
    ]
    return [
        "**Published figures** (CIFAR-10-LT 1:100, ResNet-32, "
        f"{Section(CIFAR, 'published').epochs('ce')[0]} epochs): {(off >= -WITHIN).sum()} of "
        f"{len(off)} are met within {WITHIN} points; ours, and in brackets published: "
        f"{'; '.join(said)}."
    ]


def like_with_like(out: Path) -> list[str]:
    """One network against one, then what the rest adds: the table of like_with_like.py."""
    text = out.read_text(encoding="utf-8") if out.is_file() else ""
    section = text.partition(f"<!-- {ALIKE} -->")[2].partition(f"<!-- /{ALIKE} -->")[0]
    lines = [line for line in section.splitlines() if line[:2] == "| " and "---" not in line]
    if not lines:
        return []
    names, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    whole, few = names.index("balanced_accuracy"), names.index("few")
    told = "; ".join(f"{row[0]} {row[whole]} ({row[few]})" for row in rows)
    return [
        "**Like with like** (birds_lt, public test images: one network against one on the same "
        "images, then each adds to the one before; balanced accuracy, and in brackets that of the "
        f'few-shot classes): {told} (section "birds_lt, like with like").'
    ]


def least_regret(out: Path) -> list[str]:
    table, _ = regret.scores(out)
    loss = regret.regrets(table)
    best = regret.least(loss)
    second = regret.least(loss.drop(index=best))
    worst = loss.max(axis=1)
    return [
        f"**One method for all data, at short schedules**: {row_title(best, BIRDS)} is nowhere "
        f"more than {worst[best]:.1f} points behind the best of {len(table)} methods, on "
        f"{loss.shape[1]} data sets; next is {row_title(second, BIRDS)} ({worst[second]:.1f}), and "
        f'cross-entropy alone is up to {worst[regret.PLAIN]:.1f} behind (section "The least '
        'regret").'
    ]


def with_time(out: Path) -> list[str]:
    """Methods that go on from plain training, against plain training that goes on."""
    table = longer.scores_of("birds_lt").read(out)
    table = table[table["gain"].notna() & ~table["row"].str.contains("/")].set_index("row")
    rows = [row for row in BIRDS if row in table.index]
    if not rows:
        return []
    gains = [f"{BIRDS[n].title} {difference(table.loc[n], 'gain', 'noise')}" for n in rows]
    return [
        "**With time** (birds_lt at full size: from the weights of a whole plain training, against "
        f"as many epochs more of that, before the prior is taken out): {'; '.join(gains)} (section "
        '"birds_lt, methods with time").'
    ]


def starts(out: Path) -> list[str]:
    """Heads that know something before training, against those that do not, in as many epochs."""
    table = fine_table(out)
    names = [name for name in STARTS if name in table.index]
    if not names or BASE not in table.index:
        return []
    gains = [
        f"{FINE[name].title.removesuffix(', 12 epochs')}: "
        + (
            TOO_SHORT
            if fine_grained.too_short(BASES["birds_lt"]) and table.loc[name, "equal_gain"] <= 0
            else difference(table.loc[name], "equal_gain", "equal_noise")
        )
        for name in names
    ]
    return [
        "**Where the head begins**, against a random head in as many epochs (birds_lt, 128 px, out "
        f'of fold, before the prior is taken out): {"; ".join(gains)} (section "birds_lt, '
        'fine-grained methods"). Rows with shuffled names tell what the names themselves give.'
    ]


def costs(out: Path) -> list[str]:
    """Which rows are ahead of plain training of as many seconds, beyond noise."""
    table = fine_table(out)
    ahead = table[table["equal_gain"] > NORMAL * table["equal_noise"]]
    ahead = ahead.sort_values("equal_gain", ascending=False)
    said = [
        f"{FINE[row.split('/')[0]].title}{' + logit adjustment' * row.endswith('/prior')} "
        f"{difference(ahead.loc[row], 'equal_gain', 'equal_noise')}"
        for row in ahead.index
    ]
    tried = table["equal_gain"].notna().sum()
    return [
        f"**For as many seconds as plain training** (birds_lt, same section), {len(ahead)} of "
        f"{tried} rows are ahead by more than the noise: {'; '.join(said) or 'none'}."
    ]


def difference(line: pd.Series, gain: str, noise: str) -> str:
    """Of shares: points, and their 95 % interval."""
    found, reach = 100 * line[gain], 100 * NORMAL * line[noise]
    return f"{found:+.1f} [{found - reach:+.1f}, {found + reach:+.1f}]"


def trained(dataset: str) -> Config:
    """What the methods of a data set were trained with."""
    return job_config(Job(BASES[dataset], "ce", ()))


def judgeable(dataset: str, table: pd.DataFrame) -> pd.DataFrame:
    """Its rows that may be judged."""
    return table.loc[judged_rows(table, too_short(Job(BASES[dataset], "ce", ())))]


def beside_published(out: Path) -> tuple[pd.Series, pd.Series]:
    """Accuracies by row in %, ours by the published schedule and the published ones."""
    sections = [Section(CIFAR, name) for name in ("gpu", "published")]
    found = pd.concat([t for s in sections if len(t := s.scores.read(out))] or [pd.DataFrame()])
    if found.empty:
        return pd.Series(dtype=float), pd.Series(dtype=float)
    found = found[(found["split"] == SPLIT) & (found["epoch"] == "last")]
    ours = 100 * found.groupby("row")["accuracy"].mean()
    theirs = pd.Series({row: sections[0].published(row, SPLIT)[0] for row in ours.index})
    theirs = theirs.dropna().astype(float)
    return ours[theirs.index], theirs


def methods_table(dataset: str, out: Path) -> pd.DataFrame:
    table = scores_of(dataset).read(out)
    return table.drop_duplicates("row", keep="last").set_index("row")


def fine_table(out: Path) -> pd.DataFrame:
    table = fine_grained.SCORES.read(out)
    return table[table["folds"] == "0 1"].set_index("row")


if __name__ == "__main__":
    cli.run(main)
