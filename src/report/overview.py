"""The page's first part: what the dataset is."""

from src.artifacts.files import read_table
from src.artifacts.marks import PSEUDO
from src.artifacts.work import checked
from src.config.schema import Config
from src.forecast import read_forecast
from src.metrics import bin_names, short_name, sign
from src.plots.distribution import distribution_panel
from src.plots.style import bin_color, svg
from src.report.context import Experiment, Report
from src.report.markup import (
    counted,
    details,
    esc,
    facts,
    missing,
    note,
    number,
    section,
    swatch,
    table,
    thousands,
)
from src.report.stages import UNTRAINED

DUPLICATES_SHOWN = 12
HEADLINES = 3  # experiments, and submissions, on top of the page


def header(report: Report) -> str:
    """Title, headline scores and the facts of the dataset."""
    data = report.data
    count = data.classes["count"]
    names = ", ".join(title(e) for e in report.experiments)
    ratio = f"{count.max() / max(count.min(), 1):.0f} : 1"
    pairs = [
        ("images", thousands(len(data.images))),
        ("test images", thousands(len(data.test))),
        ("classes (K)", thousands(data.num_classes)),
        ("largest : smallest", ratio),
        ("folds", f"{len(data.folds)}"),
        ("commit", f"<code>{esc(report.commit).replace('+', '<wbr>+')}</code>"),
    ]
    return (
        f'<header><p class="eyebrow">Long-tailed image classification · {names}</p>\n'
        f"<h1>{esc(report.name)}</h1>{headline(report)}{facts(pairs)}</header>"
    )


def title(experiment: Experiment) -> str:
    """The experiment's name, with a badge where it trained on pseudo-labels, and where its
    out-of-fold scores flatter."""
    badges = {PSEUDO: experiment.pseudo, "OOF optimistic": " ".join(experiment.optimism)}
    shown = [
        f' <span class="badge" title="{esc(why)}">{badge}</span>'
        for badge, why in badges.items()
        if why
    ]
    return esc(experiment.name) + "".join(shown)


def headline(report: Report) -> str:
    """The competition's metric: of the best experiments from stage 1 to their last stage, and of
    the best submissions what they can expect and what they got. The leaderboard has all."""
    scored = [e for e in report.experiments if e.rows]
    if not scored:
        return ""
    metric = scored[0].config.metric
    scored = sorted(scored, key=lambda e: -sign(metric) * e.score(metric))[:HEADLINES]
    made = [m for m in report.submissions.items() if m[1]["settings"]["metric"] == metric]
    made = sorted(made, key=lambda m: -sign(metric) * m[1]["metrics"]["oof"][metric])[:HEADLINES]
    name = short_name(metric).replace("_", " ")
    pairs = [(f"{name}, out of fold", _from_to(e, metric)) for e in scored]
    pairs += [(f"{name}, test", shown) for m in made if (shown := _on_test(*m, metric))]
    return facts(pairs, "headline")


def _from_to(experiment: Experiment, metric: str) -> str:
    """From stage 1 to the last row."""
    scored = [row for row in experiment.rows.items() if row[0] != UNTRAINED]
    ends = scored[:1] if len(scored) == 1 else [scored[0], scored[-1]]
    value = " → ".join(number(scores.get(metric, float("nan"))) for _, scores in ends)
    stages = " → ".join(name for name, _ in ends)
    return f"{value}<small>{title(experiment)}: {esc(stages)}</small>"


def _on_test(name: str, manifest: dict, metric: str) -> str:
    """What a submission got where the truth is known, and what it can expect; earlier versions
    wrote nothing of that."""
    got, words = manifest["metrics"].get("solution"), []
    if "expected" in manifest:
        told = read_forecast(manifest["expected"])
        words.append(
            f"expected {told.value:.3f}, 90\u00a0%: {told.low:.3f}\u00a0–\u00a0{told.high:.3f}"
        )
    if got:
        words.append(f"{thousands(got['images'])} test images")
    if not words:
        return ""
    value = number(got[metric]) if got else f"≈ {told.value:.3f}"
    return f"{value}<small>submission {esc(name)}: {'; '.join(words)}</small>"


def distribution(report: Report) -> str:
    """How many images the classes have, and where the bins are cut."""
    classes = report.data.classes
    names = bin_names(classes["bin"].to_numpy())
    rows = []
    for name in names:
        inside = classes[classes["bin"] == name]
        images, low, high = inside["count"].sum(), inside["count"].min(), inside["count"].max()
        rows.append(
            [
                swatch(name),
                esc(rule(report.experiments[0].config, name) if report.experiments else ""),
                f"{thousands(len(inside))}{bar(len(inside) / len(classes), name)}",
                f"{thousands(images)}{bar(images / max(classes['count'].sum(), 1), name)}",
                f"{low} – {high}",
            ]
        )
    head = ["bin", "images per class", "classes", "images", "from – to"]
    alt = f"Images per class: {classes['count'].max()} down to {classes['count'].min()}"
    text = "How many training images each class has, and which frequency bin that puts it into."
    figure = svg(lambda ax: distribution_panel(ax, classes), alt, 4.4, 2.6)
    body = f'{note(text)}<figure class="large">{figure}</figure>' + table(head, rows)
    return section("distribution", "Distribution", body)


def rule(config: Config, name: str) -> str:
    """Which classes are in a bin, in words."""
    many, few = config.bins.many, config.bins.few
    if config.bins.mode == "thresholds":
        return {"many": f"> {many}", "medium": f"{few} – {many}", "few": f"< {few}"}[name]
    return {"terciles": "a third of the classes", "halves": "half of the classes"}[config.bins.mode]


def bar(share: float, name: str) -> str:
    """A share as a short bar in the bin's colour."""
    inside = f'<i style="width:{100 * share:.1f}%"></i>'
    return f'<span class="bar" style="--c:{bin_color(name)}">{inside}</span>'


def duplicates(report: Report) -> str:
    """What 01 found: the same photo under several names."""
    path = report.data.directory / "duplicates.csv"
    if not path.is_file():
        return section("duplicates", "Duplicates", missing("No table.", "01_prepare_folds.py"))
    found = read_table(checked(path))
    if not len(found):
        return section("duplicates", "Duplicates", note("No two files show the same photo."))
    keys = ["kind", "split_a", "split_b", "conflict"]
    rows = [
        [esc(kind), esc(f"{a} – {b}"), esc(conflict), thousands(pairs)]
        for (kind, a, b, conflict), pairs in found.groupby(keys).size().items()
    ]
    shows = "shows" if len(found) == 1 else "show"
    text = (
        f"{counted(len(found), 'pair')} of files {shows} one photo, or nearly. All images of one "
        "photo are in one fold, so none is scored by a model that saw its twin."
    )
    summary = table(["kind", "between", "classes differ", "pairs"], rows)
    columns = ["image_id_a", "image_id_b", "kind", "distance", "class_id_a", "class_id_b"]
    head = found[columns].head(DUPLICATES_SHOWN)
    known = report.data.classes.set_index("class_id")["class_name"]
    for side in columns[-2:]:
        head = head.assign(**{side: [known.get(c) or c for c in head[side]]})
    shown = table(
        ["image a", "image b", "kind", "distance", "class of a", "class of b"],
        [[esc(value or "–") for value in row] for row in head.itertuples(index=False)],
        "text",
    )
    many = f"The first {len(head)} of {counted(len(found), 'pair')}"
    return section("duplicates", "Duplicates", note(text) + summary + details(many, shown))
