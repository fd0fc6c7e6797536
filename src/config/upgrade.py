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
    return tree


def upgraded_model(model: dict) -> dict:
    """`network: bbn` with `bbn: {…}` beside it became `network: {name: bbn, …}`."""
    name = model.get("network")
    if not isinstance(name, str):
        return model
    rest = {key: value for key, value in model.items() if key not in NETWORKS}
    return rest | {"network": {"name": name} | (model.get(name) or {})}
