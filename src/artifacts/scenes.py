"""What 01 found of scenes (photographs of one burst), in words: for 01 and for the report."""

SCENES = "scenes.csv"  # image_id, class_id, scene; beside folds.csv where there are scenes


def scenes_in_words(facts: dict) -> str:
    """What was found, and what to do. facts: `scenes` of the manifest; empty, of earlier versions:
    nothing is said"""
    if not facts:
        return ""
    if not facts["looked_at"]:
        return f"scenes: {facts['why']}"
    if not facts["scenes"]:
        return (
            f"scenes: no strong evidence of bursts in {facts['looked_at']} images, nothing to do. "
            "If yours are frames of few scenes all the same, set data.scenes.mode=always"
        )
    scenes = "1 scene" if facts["scenes"] == 1 else f"{facts['scenes']} scenes"
    return (
        f"scenes: {facts['images']} images show {scenes}, at most "
        f"{facts['largest']} images each, and each is in one fold. Otherwise "
        f"{100 * facts['split_without']:.0f} % of the held-out images would have a frame of their "
        "own scene among those that the network learned from, and out-of-fold scores would "
        f"flatter. If these are no scenes ({SCENES} lists them), set data.scenes.mode=never"
    )


def evidence_in_words(facts: dict) -> str:
    """What was measured, for the report; empty where nothing was looked at."""
    if not facts.get("looked_at"):
        return ""
    seen = (
        f"Looked at by {facts['features']}, {100 * facts['mates']:.1f} % of {facts['looked_at']} "
        "images have others of their class far nearer than any image of another class"
    )
    if facts["mates"]:
        seen += f", {100 * facts['apart']:.0f} % of these twice as near as the rest of their class"
    if facts["neighbours"]:
        seen += (
            f"; of {facts['neighbours']} neighbours by number or time "
            f"{100 * facts['closer']:.0f} % are more alike than two of their class at random"
        )
    return f"{seen}."
