"""How a method is added: one file, one config section, one line in a table, and a test of its own.

Each addition below is made to a copy of this repository, as its author would make it; then 01 … 06
run on what was added. A network, a network with two heads, a criterion, a post-hoc step whose
parameters are an array, and a combiner.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from src.artifacts.files import read_arrays, read_json, read_table
from src.artifacts.heads import load_head
from src.fusion.store import load_recipe

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "additions"


@dataclass(frozen=True)
class Addition:
    """file: in tests/additions, copied to `to` · section: put before the union `into` of the config
    file `keys`, which gets its name · line: into the table of `table`, with the import it needs"""

    file: str
    to: str
    keys: str
    section: str
    into: str
    table: str
    line: str
    needs: str


ADDITIONS = [
    Addition(
        "mirror.py",
        "src/networks",
        "src/config/networks.py",
        'class Mirror(NetworkSection):\n    name: Literal["mirror"] = "mirror"\n',
        "Network = named(",
        "src/networks/build.py",
        '    "mirror": Mirror,',
        "from src.networks.mirror import Mirror",
    ),
    Addition(
        "two_looks.py",
        "src/networks",
        "src/config/networks.py",
        "class TwoLooks(NetworkSection):\n"
        '    branches = ("whole", "centre")\n'
        '    name: Literal["two_looks"] = "two_looks"\n',
        "Network = named(",
        "src/networks/build.py",
        '    "two_looks": TwoLooks,',
        "from src.networks.two_looks import TwoLooks",
    ),
    Addition(
        "poly.py",
        "src/losses",
        "src/config/losses.py",
        "class Poly(Section):\n"
        '    name: Literal["poly"] = "poly"\n'
        '    epsilon: float = Field(1.0, ge=-1, description="of the first term of the series")\n',
        "Criterion = named(",
        "src/losses/__init__.py",
        '    "poly": PolyLoss,',
        "from src.losses.poly import PolyLoss",
    ),
    Addition(
        "class_bias.py",
        "src/fusion",
        "src/config/posthoc.py",
        "class ClassBias(AnyStep):\n"
        '    name: Literal["class_bias"] = "class_bias"\n'
        '    rounds: int = Field(20, ge=1, description="of iterative fitting")\n',
        "PosthocStep = named(",
        "src/fusion/__init__.py",
        '    "class_bias": ClassBias,',
        "from src.fusion.class_bias import ClassBias",
    ),
    Addition(
        "best_member.py",
        "src/ensemble",
        "src/config/ensemble.py",
        'class BestMemberCombiner(Section):\n    name: Literal["best_member"] = "best_member"\n',
        "Combiner = named(",
        "src/ensemble/combiners.py",
        '    "best_member": BestMember,',
        "from src.ensemble.best_member import BestMember",
    ),
]

DATA = """
data: {source: digits, root: data/raw/digits, near_duplicates: null, workers: 0}
folds: {k: 2}
judge: {standard_errors: 0}
model: {backbone: cifar_resnet20, pretrained: false, image_size: 16, crop_pct: 1.0, network: %s}
train:
  {epochs: 4, warmup_epochs: 0, lr: 0.05, ema: 0.9, optimizer: sgd, eval_every: 9,
   augment: {crop: padded}, criterion: %s}
stage2: [{head: crt, epochs: 5}, ncm]
posthoc: %s
ensemble: {members: %s, combiner: best_member}
"""
SCRIPTS = [
    "01_prepare_folds", "02_train_stage1", "03_train_stage2", "04_posthoc_calibrate", "05_predict",
    "06_ensemble",
]  # fmt: skip
RUN = """
import runpy, sys
for script in {scripts}:
    for config in {configs}:
        sys.argv = [script, "--config", config]
        runpy.run_path(f"{root}/{{script}}.py", run_name="__main__")
"""


def add(addition: Addition, root: Path) -> None:
    """Make the addition in the copy of the repository below `root`."""
    shutil.copy(HERE / addition.file, root / addition.to / addition.file)
    keys = root / addition.keys
    name = addition.section.split("(")[0].removeprefix("class ")
    text = keys.read_text()
    assert text.count(addition.into) == 1, f"{addition.into} is not once in {addition.keys}"
    keys.write_text(text.replace(addition.into, f"{addition.section}\n\n{addition.into}{name}, "))
    table = root / addition.table
    lines = table.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("from src."))
    end = next(i for i, line in enumerate(lines) if i > last and line.startswith("}"))
    lines[end:end] = [addition.line]
    lines[last + 1 : last + 1] = [addition.needs]
    table.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A copy of the repository with all additions, in which 01 … 06 ran on two experiments: mirror,
    trained with the new criterion, and the network of two heads."""
    home = tmp_path_factory.mktemp("added")
    root = home / "repository"
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for script in SCRIPTS:
        shutil.copy(ROOT / f"{script}.py", root)
    for addition in ADDITIONS:
        add(addition, root)
    mirror = ("mirror", "{name: poly, epsilon: 0.5}", "{heads: [crt], steps: [class_bias]}")
    looks = ("two_looks", "cross_entropy", "{steps: [tau_norm, ncm_fusion, temperature]}")
    (home / "mirror.yaml").write_text(DATA % (*mirror, "[stage1, ncm]"))
    (home / "looks.yaml").write_text(DATA % (*looks, "[stage1@centre, crt@whole, ncm@whole]"))
    code = RUN.format(scripts=SCRIPTS, configs=["mirror.yaml", "looks.yaml"], root=root)
    paths = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env=os.environ | paths,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:] + found.stdout[-3000:]
    (home / "said.txt").write_text(found.stdout)
    return home


def runs(world: Path, experiment: str) -> Path:
    return world / "runs" / "digits" / experiment


@pytest.mark.slow
def test_a_network_is_trained_and_predicts(world):
    home = runs(world, "mirror")
    assert read_json(home / "stage1/fold0/manifest.json")["status"] == "finished"
    assert set(read_json(home / "predict/manifest.json")["outputs"]) == {
        "stage1.npz", "crt.npz", "ncm.npz", "posthoc.npz",
    }  # fmt: skip


@pytest.mark.slow
def test_a_criterion_is_what_training_minimised(world):
    curve = read_table(runs(world, "mirror") / "stage1/fold0/metrics.csv", ["loss_criterion"])
    assert curve["loss_criterion"].iloc[-1] < curve["loss_criterion"].iloc[0]
    assert "name: poly" in (runs(world, "mirror") / "config.yaml").read_text()


@pytest.mark.slow
def test_two_heads_are_rebalanced_calibrated_and_fused(world):
    home = runs(world, "looks")
    names = ["stage1", "stage1@whole", "stage1@centre", "crt@whole", "crt@centre"]
    names += ["ncm@whole", "ncm@centre"]
    for branch, columns in (("whole", [0, 64]), ("centre", [64, 128])):
        for path in (f"stage1/fold1/head@{branch}", f"stage2/crt@{branch}/fold1/head"):
            assert load_head(home / f"{path}.safetensors")[1]["columns"].tolist() == columns
    tried = read_json(home / "posthoc/posthoc.json")["tried"]
    for step in ("ncm_fusion", "temperature"):
        assert {trial["head"] for trial in tried if trial["step"] == step} == set(names)
    calibrated = [t for t in tried if t["step"] == "temperature" and "@" in t["head"]]
    assert all(trial["params"]["T"] > 0 for trial in calibrated)
    fused = [t["params"]["head"] for t in tried if t["step"] == "ncm_fusion" and t["params"]]
    assert set(fused) <= {"ncm@whole", "ncm@centre"} and fused
    parts = {name: read_arrays(home / f"predict/{name}.npz")["logits"] for name in names}
    mean = (parts["stage1@whole"] + parts["stage1@centre"]) / 2
    np.testing.assert_allclose(mean, parts["stage1"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_step_keeps_its_array_beside_posthoc_json_and_05_applies_it(world):
    home = runs(world, "mirror")
    recipe = load_recipe(home / "posthoc")
    assert (recipe["head"], [step["step"] for step in recipe["steps"]]) == ("crt", ["class_bias"])
    bias = recipe["steps"][0]["params"]["bias"]
    assert bias.shape == (10,) and bias.std() > 0.1
    assert "posthoc.npz" in read_json(home / "posthoc/manifest.json")["outputs"]
    before, after = (read_arrays(home / f"predict/{n}.npz")["logits"] for n in ("crt", "posthoc"))
    np.testing.assert_allclose(after, before + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_combiner_is_judged_like_all_others_and_makes_the_submission(world):
    for experiment, best in (("mirror", "ncm"), ("looks", "ncm@whole")):
        home = world / "runs/digits/submissions"
        facts = read_json(home / f"{experiment}.manifest.json")
        assert facts["settings"]["combiner"] == {"name": "best_member"}
        assert facts["method"] == "best_member" and "cross-fitted gain" in facts["reason"]
        test = read_arrays(runs(world, experiment) / f"predict/{best}.npz")["logits"]
        found = read_arrays(home / f"{experiment}.npz")["logits"]
        np.testing.assert_allclose(found, log_softmax(test, axis=1), rtol=1e-4, atol=1e-4)
