"""The page's part on scenes: bursts of photographs that folds must not split."""

from src.artifacts.files import read_table
from src.artifacts.scenes import SCENES, evidence_in_words, scenes_in_words
from src.artifacts.work import checked
from src.report.confusions import thumbnail
from src.report.context import Report
from src.report.markup import counted, details, esc, note, section

SHOWN, FRAMES = 6, 4


def scenes(report: Report) -> str:
    """What 01 saw and did; empty for folds of earlier versions."""
    facts = report.manifest.get("scenes", {})
    if not (words := scenes_in_words(facts)):
        return ""
    text = words.removeprefix("scenes: ")
    path = report.data.directory / SCENES
    shown = _largest(report) if facts.get("scenes") and path.is_file() else ""
    told = note(esc(text[0].upper() + text[1:] + ".")) + note(esc(evidence_in_words(facts)))
    what = note("A scene is a burst of photographs of one thing, which folds must not tear apart.")
    return section("scenes", "Scenes", what + told + shown)


def _largest(report: Report) -> str:
    """A few images of each of the largest scenes."""
    table = read_table(checked(report.data.directory / SCENES))
    paths = report.data.images.set_index("image_id")["path"]
    names = report.data.classes.set_index("class_id")["class_name"]
    size = table["scene"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    parts = []
    for scene, count in size.head(SHOWN).items():
        rows = table[table["scene"] == scene]
        class_id = rows["class_id"].iloc[0]
        frames = filter(None, (thumbnail(paths[i]) for i in rows["image_id"].head(FRAMES)))
        images = "".join(f'<img src="data:image/jpeg;base64,{f}" alt="">' for f in frames)
        name = f"{esc(names.get(class_id) or class_id)} <small>{counted(count, 'image')}</small>"
        parts.append(f'<div><p>{name}</p><div class="strip">{images}</div></div>')
    inside = f'<div class="sides">{"".join(parts)}</div>'
    return details(f"The largest {counted(len(parts), 'scene')}", inside, opened=True)
