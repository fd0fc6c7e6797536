"""Small pieces of HTML. Whatever comes from a user's data passes through `esc`."""

import base64
import hashlib
import html
from collections.abc import Iterable
from pathlib import Path

from src.metrics import short_name
from src.plots.style import BIN_COLORS, bin_color

CSS, JS = (Path(__file__).with_name(f"page.{ending}") for ending in ("css", "js"))


def esc(value) -> str:
    """Text made safe for HTML, inside tags and attributes."""
    return html.escape(str(value))


def number(value: float, digits: int = 3) -> str:
    """`0.123`, or an en dash for what is not known."""
    return "–" if value != value else f"{value:.{digits}f}"


def cell(value) -> str:
    """Three decimals for fractions, everything else as it stands."""
    text = str(value)
    try:
        plain = text.lstrip("+-").isdigit()
        return esc(text) if plain else esc(number(float(text))).replace("-", "−")
    except ValueError:
        return esc(text or "–")


def thousands(value: int) -> str:
    """`12 345`, with a thin space that does not break."""
    return f"{value:,}".replace(",", "\u202f")


def counted(number: int, noun: str) -> str:
    """`1 pair`, `12 345 pairs`."""
    return f"{thousands(number)} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def column_name(name: str) -> str:
    """A column of a table of scores in words, or as a bin's swatch."""
    if name in BIN_COLORS:
        return swatch(name)
    short = {"nll": "NLL", "ece": "ECE", "macro_f1": "macro F1", "balanced_accuracy": "balanced"}
    return short.get(name) or esc(short_name(name).replace("_", " "))


def swatch(bin_name: str) -> str:
    """A dot in the bin's colour and its name."""
    dot = f'<span class="dot" style="--c:{bin_color(bin_name)}"></span>'
    return f'<span class="swatch">{dot}{esc(bin_name)}</span>'


def table(
    header: Iterable[str],
    rows: list[list[str]],
    kind: str = "",
    row_kinds: list[str] | None = None,
) -> str:
    """A table that scrolls sideways on a narrow screen. Cells are HTML already."""
    head = "".join(f"<th scope=col>{cell}</th>" for cell in header)
    body = "\n".join(
        (f'<tr class="{row_kind}">' if row_kind else "<tr>")
        + "".join(
            f"<th scope=row>{cell}</th>" if i == 0 else f"<td>{cell}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row, row_kind in zip(rows, row_kinds or [""] * len(rows), strict=True)
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    """Names with their values. Values are HTML already."""
    inside = "".join(f"<div><dt>{esc(name)}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="{kind}">{inside}</dl>'


def panels(svgs: Iterable[str]) -> str:
    """Figures side by side, one below the other where the screen is narrow."""
    return '<div class="panels">' + "".join(f"<figure>{s}</figure>" for s in svgs) + "</div>"


def interval(value: float, low: float, high: float, span: tuple[float, float]) -> str:
    """A dot with its interval as a small picture; `span` is what the width shows."""
    left, width = span[0], (span[1] - span[0]) or 1.0
    x, a, b = (f"{4 + 112 * (end - left) / width:.1f}" for end in (value, low, high))
    told = f"{low:.3f} to {high:.3f}" if low < high else "not known"
    return (
        f'<svg class="interval" viewBox="0 0 120 14" role="img" aria-label="95 %: {told}">'
        f"<title>95 %: {told}</title>"
        f'<path d="M0 7H120" class="axis"/><path d="M{a} 7H{b}M{a} 4V10M{b} 4V10"/>'
        f'<circle cx="{x}" cy="7" r="3"/></svg>'
    )


def note(text: str) -> str:
    """A quiet sentence below a heading. HTML already."""
    return f'<p class="note">{text}</p>'


def missing(what: str, script: str) -> str:
    """What stands in place of a stage that has not run: which script is next."""
    command = f"<code>python {esc(script)} --config …</code>"
    return f'<p class="missing">{what} Next: {command}</p>'


def details(summary: str, inside: str, opened: bool = False) -> str:
    """A part that opens on demand. Both are HTML already."""
    tag = "details open" if opened else "details"
    return f"<{tag}><summary>{summary}</summary>{inside}</details>"


def section(anchor: str, title: str, body: str) -> str:
    return f'<section id="{anchor}"><h2>{esc(title)}</h2>\n{body}\n</section>'


def document(title: str, body: str) -> str:
    """The whole page around its body. No other script than ours runs, and nothing is fetched: the
    page says so to the browser, which keeps to it."""
    script = JS.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; " + (
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{esc(title)}</title>\n<style>\n{CSS.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>\n{body}\n</main><script>{script}</script></body></html>\n"
    )
