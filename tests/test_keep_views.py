"""predict.keep_views: what 05 keeps of each network and view, and when it makes them."""

from pathlib import Path

import numpy as np
import pytest

import src.inference.passes as module
from src.artifacts.files import read_json, sha256, write_json
from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.config.read import parse_config
from src.errors import UserError
from src.inference.predict import predict
from src.logits import head_logits
from src.rebalance.stage2 import stage2
from tests.training_kit import tiny_config, tiny_dataset, train_tiny

HOME = Path("runs/tiny/exp")
HEADS = [{"head": "crt", "name": "live", "bn": "train", "epochs": 1, "batch_size": 8}]
FILES = [f"{at}/view{i}.npz" for at in ("views/fold0", "views/fold0/live") for i in range(4)]


def config(keep: bool = True, seed: int = 0, scale: float = 1.2):
    tree = tiny_config(train={"epochs": 1, "warmup_epochs": 0}).model_dump(mode="json")
    tta = {"flip": True, "scales": [1.0, scale]}
    predict = {"tta": tta, "keep_views": keep}
    return parse_config(tree | {"stage2": HEADS, "seed": seed, "predict": predict})


@pytest.fixture
def passes(tmp_path, monkeypatch) -> list[str]:
    """One trained network and a head with a batch norm of its own; the passes of 05 over images."""
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    train(config())
    found: list[str] = []
    run = module.run_network

    def counted(*args, **kwargs):
        found.append(kwargs["label"])
        return run(*args, **kwargs)

    monkeypatch.setattr(module, "run_network", counted)
    return found


def train(settings) -> None:
    train_tiny(settings, "exp")
    stage2(settings, "exp", True)
    write_json(HOME / "posthoc" / "posthoc.json", {"head": "stage1", "steps": []})
    write_json(HOME / "posthoc" / "manifest.json", {"inputs": {}})


def results() -> dict[str, str]:
    return {path.name: sha256(path) for path in (HOME / "predict").glob("*.npz")}


def kept() -> dict[str, str]:
    home = HOME / "predict"
    return {p.relative_to(home).as_posix(): sha256(p) for p in home.glob("views/**/*.npz")}


def views(where: str) -> list:
    return [load_predictions(HOME / "predict" / where / f"view{i}.npz", 6) for i in range(4)]


def test_the_views_are_listed_in_order_and_their_mean_is_what_is_merged(passes):
    predict(config(), "exp", False)
    manifest = read_json(HOME / "predict" / "manifest.json")
    assert set(kept()) == set(FILES) and kept().items() <= manifest["outputs"].items()
    assert [(v["flip"], v["scale"]) for v in manifest["views"]] == [
        (False, 1.0), (True, 1.0), (False, 1.2), (True, 1.2)
    ]  # fmt: skip
    found = views("views/fold0")
    mean = np.mean([view.logits for view in found], 0)
    np.testing.assert_allclose(load_predictions(HOME / "predict/stage1.npz", 6).logits, mean)
    kind, arrays = load_head(HOME / "stage1/fold0/head.safetensors")
    for view in found:
        again = head_logits(view.features, arrays, kind)
        np.testing.assert_allclose(again, view.logits, atol=1e-4)
    kind, arrays = load_head(HOME / "stage2/live/fold0/head.safetensors")
    logits = [head_logits(view.features, arrays, kind) for view in views("views/fold0/live")]
    merged = load_predictions(HOME / "predict/live.npz", 6).logits
    np.testing.assert_allclose(np.mean(logits, 0), merged, atol=1e-4)
    origin = read_json(HOME / "predict/views/fold0/made_from.json")
    assert origin["views"] == manifest["views"]


def test_turned_on_later_only_the_views_are_made(passes, capsys):
    predict(config(keep=False), "exp", False)
    assert len(passes) == 8 and not (HOME / "predict" / "views").exists()
    before = results()
    predict(config(), "exp", False)
    assert "finished without 'views/fold0/view0.npz'" in capsys.readouterr().out
    assert len(passes) == 16 and set(kept()) == set(FILES) and results() == before
    whole = kept()
    predict(config(), "exp", False)
    assert "finished already, skipped" in capsys.readouterr().out
    predict(config(keep=False), "exp", False)  # it asks for less than there is
    assert "finished already, skipped" in capsys.readouterr().out and kept() == whole
    write_json(HOME / "posthoc" / "posthoc.json", {"head": "live", "steps": []})
    predict(config(), "exp", False)
    assert len(passes) == 16 and kept() == whole
    (HOME / "predict" / FILES[1]).unlink()
    predict(config(), "exp", False)
    assert len(passes) == 17 and kept() == whole
    with pytest.raises(UserError, match="tta.scales"):
        predict(config(scale=1.4), "exp", False)


@pytest.mark.parametrize("first", [True, False])
def test_a_killed_run_goes_on_after_the_views_that_are_done(passes, monkeypatch, first):
    """Also when views were not yet asked for in the run that was killed."""
    predict(config(), "exp", False)
    whole, calm = kept(), results()
    run = module.run_network
    passes.clear()

    def dying(*args, **kwargs):
        if len(passes) == 3:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "run_network", dying)
        predict(config(keep=first), "exp", True)
    passes.clear()
    predict(config(), "exp", False)
    assert len(passes) == 5 and kept() == whole and results() == calm
    assert not list((HOME / "predict" / "cache").glob("*.view.npz"))


def test_views_of_another_network_are_not_taken_for_this_ones(passes):
    predict(config(), "exp", False)
    before = kept()
    for path in (HOME / "stage1/fold0").iterdir():
        path.unlink()
    train(config(seed=1))
    passes.clear()
    predict(config(keep=False), "exp", False)
    predict(config(), "exp", False)
    assert len(passes) == 16 and not set(kept().values()) & set(before.values())


def test_a_damaged_view_is_made_again(passes):
    predict(config(), "exp", False)
    before, path = kept(), HOME / "predict" / FILES[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: damaged, or edited"):
        load_predictions(path, 6)
    passes.clear()
    predict(config(), "exp", False)
    assert kept() == before and len(passes) == 1
