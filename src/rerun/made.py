"""What a manifest says of a stage: which script made it, of what config, with which arguments."""

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml

from src.artifacts.files import read_json
from src.artifacts.work import MANIFEST, made
from src.config.names import title_of
from src.config.upgrade import upgraded
from src.errors import UserError, read_text

NEEDS = {"settings": dict, "inputs": dict, "outputs": dict}
SUBMISSION = "submissions"
# keys of a submission's settings that are keys of the section `ensemble`
ENSEMBLE = ("combiner", "decision", "fallback", "label_shift", "missing_folds")
SCRIPTS = {
    "folds": "01_prepare_folds.py",
    "stage1": "02_train_stage1.py",
    "stage2": "03_train_stage2.py",
    "posthoc": "04_posthoc_calibrate.py",
    "predict": "05_predict.py",
    SUBMISSION: "06_ensemble.py",
}


@dataclass(frozen=True)
class Made:
    """manifest: its path · facts: what it says · root: the directory that has `runs` · place: of
    the manifest below `runs`, as parts · experiments: whose configs made it, none for 01"""

    manifest: Path
    facts: dict
    root: Path
    place: tuple[str, ...]
    experiments: tuple[str, ...]

    @property
    def dataset(self) -> str:
        return self.place[0]

    @property
    def stage(self) -> str:
        """A key of SCRIPTS."""
        return self.place[1] if self.place[1] in ("folds", SUBMISSION) else self.place[2]

    @property
    def directory(self) -> Path:
        """Of the artifacts, below the root."""
        return Path("runs", *self.place[:-1])

    @property
    def arguments(self) -> list[str]:
        """Of the script, beside --config: those that say what of the config's work is done. Of 02
        and 03 the fold alone that the manifest is of, of later ones the folds they went by."""
        if self.stage in ("stage1", "stage2"):
            return ["--folds", self.place[-2].removeprefix("fold")]
        words = self.facts.get("argv", [])
        after = words[words.index("--folds") + 1 :] if "--folds" in words else []
        folds = list(takewhile(lambda word: not word.startswith("-"), after))
        return ["--folds", *folds] if folds else []

    def trees(self) -> dict[str, dict]:
        """The config of each experiment (of 01: of the dataset), as it was resolved then.

        Errors: UserError when an experiment's config.yaml is not there.
        """
        settings = upgraded(self.facts["settings"])
        if self.stage == "folds":
            return {self.dataset: settings}
        return {
            name: _tree(self, self._resolved(name), settings, name) for name in self.experiments
        }

    def _resolved(self, experiment: str) -> dict:
        path = self.root / "runs" / self.dataset / experiment / "config.yaml"
        tree = yaml.safe_load(read_text(path, "the resolved config, which 02 writes"))
        if not isinstance(tree, dict):
            raise UserError(f"{path}: expected the keys of a config; run 02 again, it writes it")
        tree = upgraded(tree)
        search = tree.get("search") or {}  # what it found is among the values already
        stage2 = (search.get("stage2") or {}) | {"use": False}
        return tree | {"search": search | {"use": False, "stage2": stage2}}


def made_by(path: Path) -> Made:
    """Errors: UserError for a file that is no manifest of a stage that can be made again."""
    path = Path(path).absolute()
    facts = read_json(path, NEEDS)
    at = [i for i, part in enumerate(path.parts) if part == "runs"]
    place = path.parts[at[-1] + 1 :] if at else ()
    named = place[-1:] == (MANIFEST,)
    first = place[1] if len(place) > 2 else ""
    if first == SUBMISSION and path.name.endswith(f".{MANIFEST}"):
        experiments = tuple(facts["settings"].get("members", ()))
    elif first == "folds" and named and len(place) == 3:
        experiments = ()
    elif named and (place[2], len(place)) in (
        ("stage1", 5), ("stage2", 6), ("posthoc", 4), ("predict", 4),
    ) and "search" not in place:  # fmt: skip
        experiments = (place[1],)
    else:
        raise UserError(
            f"{path}: not a manifest that can be made again. Expected one below runs/<dataset>: of "
            "folds, submissions, or an experiment's stage1/fold<k>, stage2/<head>/fold<k>, posthoc "
            "or predict"
        )
    return Made(path, facts, Path(*path.parts[: at[-1]]), place, experiments)


def _tree(made: Made, tree: dict, settings: dict, experiment: str) -> dict:
    """The resolved config with the settings of the stage, which may be newer than 02's; keys that
    only set the speed are not among those."""
    if made.stage == "stage2":
        title = title_of(made.place[3])
        others = [spec for spec in tree["stage2"] if _title(spec) != title]
        return tree | {"stage2": [*others, settings["head"]]}
    if made.stage != "stage1":
        home = made.root / "runs" / made.dataset / experiment
        tree = tree | {"stage2": _heads(tree["stage2"], home, made.facts["inputs"])}
    if made.stage == "predict":
        return merged(tree, {"predict": settings})
    if made.stage == SUBMISSION:
        keys = {key: settings[key] for key in ENSEMBLE if key in settings}
        keys["members"] = settings["members"][experiment]
        ours = (*ENSEMBLE, "members", "observation")
        settings = {k: v for k, v in settings.items() if k not in ours} | {"ensemble": keys}
    return merged(tree, {k: v for k, v in settings.items() if k != "observation"})


def merged(tree: dict, settings: dict) -> dict:
    """`settings` over `tree`, sections key by key."""
    return tree | {
        k: tree[k] | v if isinstance(v, dict) and isinstance(tree.get(k), dict) else v
        for k, v in settings.items()
    }


def _heads(listed: list, home: Path, inputs: dict[str, str]) -> list:
    """The section stage2 with the heads that the stage read: 03 may have made others since 02."""
    used = {title_of(part) for name in inputs for part in name.split("/")}
    of = sorted((home / "stage2").glob("*/"))
    manifests = [read_json(path) for head in of for path in made(head, MANIFEST)]
    heads = [facts.get("settings", {}).get("head") for facts in manifests]
    known = {_title(head): head for head in heads if head}
    found = {_title(spec): spec for spec in listed} | known
    wanted = [spec for title, spec in found.items() if title in used]
    return wanted or listed


def _title(spec: dict | str) -> str:
    return spec if isinstance(spec, str) else spec.get("name") or spec["head"]
