"""Configs of earlier versions: what a run wrote then, in today's words.

Manifests, weights and config.yaml carry settings; a run that was made before a key moved still
means what it meant.
"""

NETWORKS = ("bbn", "kt", "paco", "task_separator", "ride")  # had sections beside model.network


def upgraded(tree: dict) -> dict:
    """A tree of settings with today's keys. Sections that it lacks stay lacking."""
    tree = dict(tree)
    if isinstance(tree.get("model"), dict):
        tree["model"] = upgraded_model(tree["model"])
    if isinstance(train := tree.get("train"), dict) and isinstance(train.get("augment"), dict):
        tree["train"] = train | {"augment": _augment(train["augment"])}
    if isinstance(train := tree.get("train"), dict) and isinstance(train.get("freeze"), list):
        tree["train"] = train | {"freeze": [_frozen(item) for item in train["freeze"]]}
    if isinstance(augment := tree.get("augment"), dict):  # the manifest of a head with views
        tree["augment"] = _augment(augment)
    if isinstance(posthoc := tree.get("posthoc"), dict) and "min_gain" in posthoc:
        tree["posthoc"] = _posthoc(posthoc)
        tree["judge"] = {"standard_errors": 0.0, "min_gain": posthoc["min_gain"]}
    if isinstance(ensemble := tree.get("ensemble"), dict) and "weights" in ensemble:
        tree["ensemble"] = _combined(ensemble)
    if "weights" in tree and "rounds" in tree:  # the manifest of a submission
        tree = _combined(tree)
    return tree


def upgraded_model(model: dict) -> dict:
    """`network: bbn` with `bbn: {…}` beside it became `network: {name: bbn, …}`."""
    name = model.get("network")
    if not isinstance(name, str):
        return model
    rest = {key: value for key, value in model.items() if key not in NETWORKS}
    return rest | {"network": {"name": name} | (model.get(name) or {})}


def _augment(old: dict) -> dict:
    """`color_jitter: 0.2` became brightness, contrast and saturation of their own."""
    jitter = old.get("color_jitter")
    if not isinstance(jitter, int | float):
        return old
    return old | {"color_jitter": dict.fromkeys(("brightness", "contrast", "saturation"), jitter)}


def _frozen(old: str | dict) -> dict:
    """What is frozen was a name, which it was for the whole training."""
    return {"name": old, "until": None} if isinstance(old, str) else old


def _posthoc(old: dict) -> dict:
    """Steps were names, with their grids beside them, and were kept for any gain above min_gain."""
    grids = {"tau_norm": ("tau_max", "grid"), "logit_adjustment": ("tau_max", "grid")}
    grids["ncm_fusion"] = ("grid",)
    steps = [{"name": n} | {k: old[k] for k in grids.get(n, ()) if k in old} for n in old["steps"]]
    return {"heads": old.get("heads"), "steps": steps}


def _combined(old: dict) -> dict:
    """`weights: greedy` and `rounds: 30` became `combiner: {name: greedy, rounds: 30}`."""
    rounds = {"rounds": old["rounds"]} if old["weights"] == "greedy" else {}
    rest = {key: value for key, value in old.items() if key not in ("weights", "rounds")}
    return rest | {"combiner": {"name": old["weights"]} | rounds}
