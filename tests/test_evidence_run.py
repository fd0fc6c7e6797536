"""Which images 05 keeps evidence of, how it writes it, and what the report makes of it."""

import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy.special import logsumexp

import src.inference.evidence as module
from src.artifacts.dataset import load_dataset
from src.artifacts.evidence import FILE, KINDS, load_looked
from src.artifacts.files import read_json, read_table, sha256, write_json, write_table
from src.artifacts.predictions import Predictions, load_predictions
from src.config.read import parse_config
from src.config.tree import dump_config
from src.errors import UserError
from src.inference.evidence import evidence
from src.inference.predict import predict
from src.inference.sample import held_out_sample, unlabelled_sample
from src.networks import weights
from src.posthoc.calibrate import posthoc
from src.report import evidence as shown
from src.report.context import gather
from src.report.markup import CSS
from src.report.page import write_report
from src.training.stage1 import stage1
from tests.conftest import ROOT
from tests.fabricate import count, seal, write_evidence
from tests.training_kit import tiny_config, tiny_dataset

HOME = Path("runs/tiny/exp")
DIRECTORY = HOME / "predict" / "evidence"
BINS = np.array(["many", "many", "medium", "few"])


def config(per_kind: int = 2):
    tree = tiny_config(train={"epochs": 1, "warmup_epochs": 0}).model_dump(mode="json")
    return parse_config(tree | {"stage2": [], "predict": {"evidence": per_kind}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """02, 04 and 05's predictions of both folds of the tiny dataset."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = tiny_dataset()
        write_table(data.directory / "test.csv", data.images[["image_id", "path"]][::3])
        seal(data.directory)
        stage1(config(), "exp", ["0", "1"], False)
        posthoc(config(), "exp")
        predict(config(), "exp", False)
    return root


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def random_predictions(images: int = 200, seed: int = 0, *, known: bool = True) -> Predictions:
    """Logits of four classes with ties, most images right."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, images)
    logits = rng.integers(-1, 2, (images, 4)) + 2.0 * np.eye(4)[label] * (rng.random((images, 1)))
    ids = np.array([f"i{i:04d}" for i in rng.permutation(images)])
    fold, unknown = rng.integers(0, 3, images), np.full(images, -1)
    return Predictions(ids, logits.round(1), label if known else unknown, fold)


def confidence(found: Predictions) -> dict[str, float]:
    z = found.logits.astype(np.float64)
    sure = np.exp(z.max(1) - logsumexp(z, axis=1))  # to the last bit, as ties are by id
    return dict(zip(found.image_id, sure.tolist(), strict=True))


@pytest.mark.parametrize("limit", [1, 3, 8, 64])
def test_the_sample_is_bounded_balanced_and_true(limit):
    found = random_predictions()
    sample = held_out_sample(found, BINS, limit)
    label = dict(zip(found.image_id, found.label, strict=True))
    guess = dict(zip(found.image_id, found.logits.argmax(1), strict=True))
    sure = confidence(found)
    assert sample["image_id"].is_unique and set(sample["split"]) == {"oof"}
    for row in sample.to_dict("records"):
        i = row["image_id"]
        assert (row["label"], row["predicted"]) == (label[i], guess[i])
        assert row["probability"] == pytest.approx(sure[i])
        assert (row["kind"] == "right") == (label[i] == guess[i])
    for name in set(BINS):
        inside = [i for i in label if BINS[label[i]] == name]
        wrong = [i for i in inside if label[i] != guess[i]]
        part = sample[BINS[sample["label"]] == name].groupby("kind")["image_id"].agg(list)
        assert len(part["right"]) == min(limit, len(inside) - len(wrong))
        surest = sorted(wrong, key=lambda i: (-sure[i], i))
        half = (len(wrong) + 1) // 2
        assert part["confident and wrong"] == surest[: min(limit, half)]
        taken = len(part["confident and wrong"])
        assert len(part["wrong"]) == min(limit, len(wrong) - taken)
        assert part["wrong"][0] == surest[taken]  # then at equal distances
        places = [surest.index(i) for i in part["wrong"]]
        steps = np.diff(places)
        assert len(steps) == 0 or (min(steps) >= 1 and max(steps) - min(steps) <= 1)


def test_test_images_are_the_most_and_the_least_confident():
    found = random_predictions(known=False)
    sure = confidence(found)
    guess = dict(zip(found.image_id, found.logits.argmax(1), strict=True))
    sample = unlabelled_sample(found, BINS, 5)
    assert sample["image_id"].is_unique and set(sample["label"]) == {-1}
    for name in set(BINS):
        ranked = sorted((i for i in guess if BINS[guess[i]] == name), key=lambda i: (-sure[i], i))
        part = sample[BINS[sample["predicted"]] == name].groupby("kind")["image_id"].agg(list)
        assert part["most confident"] == ranked[:5]
        assert part["least confident"] == ranked[::-1][:5]
    everything = unlabelled_sample(found, BINS, 64)
    assert len(everything) == 200 and everything["image_id"].is_unique


def test_the_sample_does_not_depend_on_the_order_of_rows():
    found = random_predictions()
    order = np.random.default_rng(1).permutation(len(found.image_id))
    other = found.take(found.image_id[order])
    for choose in (held_out_sample, unlabelled_sample):
        a, b = choose(found, BINS, 3), choose(other, BINS, 3)
        pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True))


def test_bins_without_mistakes_or_without_images():
    label = np.array([0, 0, 2])
    found = Predictions(np.array(["a", "b", "c"]), 5.0 * np.eye(4)[label], label, label * 0)
    sample = held_out_sample(found, BINS, 2)
    assert sample["image_id"].tolist() == ["a", "b", "c"] and set(sample["kind"]) == {"right"}
    assert unlabelled_sample(found, BINS, 2)["kind"].tolist() == [
        "most confident", "least confident", "most confident"
    ]  # fmt: skip


def test_05_keeps_what_each_images_own_network_saw(run):
    path = evidence(config(), "exp", False)
    assert path == DIRECTORY / FILE
    manifest = read_json(DIRECTORY / "manifest.json")
    assert manifest["outputs"] == {FILE: sha256(path)}
    assert "posthoc/oof.npz" in manifest["inputs"]
    looked, data = load_looked(path), load_dataset("tiny")
    assert len(looked) == manifest["images"] and set(looked.maps) == {"class_activation"}
    assert looked.maps["class_activation"].shape == (len(looked), 4, 4)
    assert looked.maps["class_activation"].dtype == np.float16 and not looked.boxes
    highest = looked.maps["class_activation"].max((1, 2))
    assert set(highest.tolist()) <= {0, 1} and (looked.maps["class_activation"] >= 0).all()
    final = {
        "oof": load_predictions(HOME / "posthoc/oof.npz", 6),
        "test": load_predictions(HOME / "predict/posthoc.npz", 6),
    }
    table, tests = data.images.set_index("image_id"), 0
    for row, image_id in enumerate(looked.image_id):
        of = final[looked.split[row]]
        z = of.logits[list(of.image_id).index(image_id)].astype(float)
        assert looked.predicted[row] == z.argmax()
        probability = 1 / np.exp(z - z.max()).sum()
        assert looked.probability[row] == pytest.approx(probability, rel=1e-5)
        if looked.split[row] == "test":
            assert looked.label[row] == -1 and looked.fold[row] == 0
            tests += 1
            continue
        assert looked.label[row] == table.loc[image_id, "label"]
        fold = table.loc[image_id, "fold"]
        assert looked.fold[row] == fold
        own = load_predictions(HOME / f"stage1/fold{fold}/oof.npz", 6)
        assert looked.explained[row] == own.logits[list(own.image_id).index(image_id)].argmax()
    assert 0 < tests < len(looked) <= 3 * 2 * (3 + 2)
    picture = Image.open(module.io.BytesIO(looked.jpeg[0]))
    assert picture.size == (16, 16) and picture.format == "JPEG" and looked.size == 16
    original = np.asarray(Image.open(table.loc[looked.image_id[0], "path"])).astype(float)
    assert abs(np.asarray(picture).astype(float).mean() - original.mean()) < 3


def test_finished_evidence_is_skipped_and_another_number_makes_it_anew(run, capsys, monkeypatch):
    loaded = count(monkeypatch, weights, "load_network")
    evidence(config(), "exp", False)
    before, made = sha256(DIRECTORY / FILE), len(loaded)
    assert made == 2
    evidence(config(), "exp", False)
    assert len(loaded) == made and "evidence: finished already" in capsys.readouterr().out
    evidence(config(1), "exp", False)
    assert len(loaded) == 2 * made and len(load_looked(DIRECTORY / FILE)) <= 15
    evidence(config(), "exp", False)
    assert sha256(DIRECTORY / FILE) == before
    (DIRECTORY / FILE).unlink()
    evidence(config(), "exp", False)
    assert sha256(DIRECTORY / FILE) == before
    predict(config(), "exp", False)  # its own work does not mind
    assert "predict: finished already" in capsys.readouterr().out


def test_a_killed_run_leaves_no_evidence_and_is_made_whole(run, monkeypatch):
    whole = sha256(evidence(config(), "exp", False))
    shutil.rmtree(DIRECTORY)
    look, calls = module.looked_at, []

    def dying(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return look(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "looked_at", dying)
        evidence(config(), "exp", False)
    assert not list(DIRECTORY.glob("*"))
    predict(config(), "exp", False)
    assert sha256(evidence(config(), "exp", False)) == whole


def test_only_the_main_process_writes_and_all_wait(run, monkeypatch):
    waited = []
    other = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: waited.append(1))
    monkeypatch.setattr(module, "PartialState", lambda **_: other)
    evidence(config(), "exp", False)
    assert waited and not DIRECTORY.exists()


def test_the_script_makes_it_unless_it_is_not_wanted(run, monkeypatch):
    Path("exp.yaml").write_text(yaml.safe_dump(dump_config(config())))
    for setting in ("predict.evidence=0", "predict.evidence=2"):
        argv = ["05_predict.py", "--config", "exp.yaml", "--set", setting]
        monkeypatch.setattr("sys.argv", argv)
        runpy.run_path(str(ROOT / "05_predict.py"), run_name="__main__")
        assert (DIRECTORY / FILE).is_file() == (setting[-1] == "2")


def test_images_that_are_gone_are_left_out_and_named(run, capsys):
    everything = load_looked(evidence(config(), "exp", False)).image_id
    lost = everything[0]
    table = load_dataset("tiny").images.set_index("image_id")
    Path(table.loc[lost, "path"]).unlink()
    looked = load_looked(evidence(config(), "exp", True))
    assert looked.image_id.tolist() == [i for i in everything if i != lost]
    said = capsys.readouterr().out
    assert f"{lost}.png" in said and "cannot be read and are left out" in said


def test_without_out_of_fold_logits_only_test_images_are_shown(run):
    (HOME / "posthoc" / "oof.npz").unlink()
    looked = load_looked(evidence(config(), "exp", False))
    assert len(looked) and set(looked.split) == {"test"}


def test_large_maps_become_small_ones():
    maps = module.torch.rand(2, 100, 20)
    maps[1] = 0
    kept = module._kept(maps)
    assert kept.shape == (2, 32, 20) and kept[0].max() == 1 and not kept[1].any()


def test_a_damaged_file_is_named(run):
    path = evidence(config(), "exp", False)
    (DIRECTORY / "manifest.json").unlink()
    arrays = module.np.load(path)
    np.savez(path, **{name: arrays[name] for name in arrays.files if name != "predicted"})
    with pytest.raises(UserError, match="evidence.npz: not what 05 writes .missing: .'predicted'"):
        load_looked(path)


def page() -> str:
    return write_report(gather("tiny", ["exp"], [config()])).read_text(encoding="utf-8")


def part() -> str:
    return shown.evidence(gather("tiny", ["exp"], [config()]))


def test_without_evidence_the_page_is_as_before(run):
    before = page()
    assert 'id="evidence"' not in before and "#evidence" not in before
    evidence(config(), "exp", False)
    assert part()
    shutil.rmtree(DIRECTORY)
    assert page() == before


def test_the_page_shows_every_picture_first_and_needs_nothing_but_itself(run):
    looked = load_looked(evidence(config(), "exp", False))
    text, inside = page(), part()
    assert inside in text and text.index('<section id="evidence">') < text.index(
        '<section id="distribution">'
    )
    assert inside.count("data:image/jpeg;base64,") == len(looked) == inside.count("<figure")
    drawn = sum(bool(m.any()) for m in looked.maps["class_activation"])
    assert inside.count("data:image/png;base64,") == drawn
    assert not re.search(r"https?:|<script|@import|<iframe|\son\w+=", inside)
    for reference in re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')>\s]+)', inside):
        assert reference.startswith("data:image/")
    for kind in {kind for kinds in KINDS.values() for kind in kinds} & set(looked.kind):
        assert f"<b>{kind.capitalize()}</b>" in inside
    assert inside.count("<details open>") == 1
    for field in re.findall(r' id="([^"]+)"', inside):
        assert text.count(f' id="{field}"') == 1
    assert inside.count("<label>") == 2  # the map, and no map


def fabricated(name: str = "<script>alert(1)</script>&", images: int = 6) -> pd.DataFrame:
    """Evidence of the first images of folds.csv, half of them wrong, with classes of this name."""
    folder = Path("runs/tiny/folds")
    classes = read_table(folder / "classes.csv", ("label", "count"))
    write_table(folder / "classes.csv", classes.assign(class_name=name))
    table = read_table(folder / "folds.csv", ("label", "fold"))
    table.loc[0, "image_id"] = '"><img src=x onerror=alert(2)>'
    rows = table.head(images)
    seal(folder)
    guess = np.where(np.arange(len(rows)) % 2, rows["label"], (rows["label"] + 1) % 6)
    write_evidence(HOME, rows, guess)
    return rows


def test_hostile_names_are_escaped(run):
    fabricated()
    inside = part()
    assert "<script" not in inside and "<img src=x" not in inside
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in inside
    assert "&quot;&gt;&lt;img src=x onerror=alert(2)&gt;" in inside


def test_captions_say_true_and_predicted_class_and_how_many_images_they_have(run):
    rows = fabricated("a bird")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", part())
    plain = [re.sub(r"<[^>]+>", "", text) for text in captions]
    assert sum("→" in text for text in plain) == len(rows) // 2
    first = next(text for text in plain if "→" in text)
    assert re.fullmatch(r"a bird \w+, \d+ images → \d+\u00a0% a bird \w+, \d+ images", first)
    assert "90\u00a0%" in "".join(plain)


def test_boxes_lie_on_the_picture_and_those_without_area_are_none(run):
    fabricated()
    inside = part()
    assert inside.count('<svg class="boxes" viewBox="0 0 8 8"') == 12
    assert '<rect x="2" y="2" width="4" height="4" ' in inside
    looked = load_looked(DIRECTORY / FILE)
    looked.boxes["object"][:, :, 2] = 2
    looked.save(DIRECTORY / FILE)
    seal(DIRECTORY)
    assert "<rect" not in part()


def test_the_page_keeps_to_its_budget(run, monkeypatch):
    fabricated(images=40)
    whole = part()
    monkeypatch.setattr(shown, "BUDGET", len(whole) // 2)
    less = part()
    assert len(less) < 0.6 * len(whole) and re.search(r"The first \d+ of each bin and kind", less)
    monkeypatch.setattr(shown, "BUDGET", 0)
    assert 1 <= part().count("<figure") <= 3 * 5


def test_evidence_of_other_folds_or_an_earlier_calibration_is_said(run):
    fabricated()
    assert "Of an earlier calibration" not in part()
    path = DIRECTORY / "manifest.json"
    facts = read_json(path)
    inputs = facts["inputs"] | {"posthoc/oof.npz": "0" * 64}
    write_json(path, facts | {"inputs": inputs})
    assert "Of an earlier calibration; run 05 again" in part()
    write_json(path, facts | {"inputs": inputs | {"folds.csv": "0" * 64}})
    assert "made from a different folds.csv" in part() and "<figure" not in part()


def test_a_map_is_clear_where_it_is_small():
    values = np.zeros((4, 7), np.float16)
    values[:, 6] = 1
    pixels = np.asarray(Image.open(module.io.BytesIO(shown.heat(values))))
    assert pixels.shape == (28, 28, 4)
    assert (pixels[:, :16, 3] == 0).all() and (pixels[:, -1, 3] > 150).all()
    raised = np.asarray(Image.open(module.io.BytesIO(shown.heat((values + 3) / 4))))
    np.testing.assert_array_equal(raised, pixels)
    same = Image.open(module.io.BytesIO(shown.heat(np.ones((4, 7), np.float16))))
    assert (np.asarray(same)[..., 3] == 0).all()


def test_each_map_has_a_switch_that_the_style_knows(run):
    fabricated()
    looked = load_looked(DIRECTORY / FILE)
    found = looked.maps.pop("class_activation")
    looked.maps.update({f"boost_{i}": found for i in range(shown.SHOWN_MAPS + 1)})
    looked.save(DIRECTORY / FILE)
    seal(DIRECTORY)
    inside, style = part(), CSS.read_text()
    kinds = re.findall(r'<input type="radio" name="look0" class="(\w+)"', inside)
    assert kinds == [f"m{i}" for i in range(shown.SHOWN_MAPS)] + ["none"]
    for kind in kinds:
        assert f":has(.{kind}:checked) .heat" in style
    assert inside.count('class="heat m0"') == inside.count("<figure") == len(looked)
