"""open_clip's two towers: `model.backbone: open_clip/<architecture>[.<tag>]`, as in
`open_clip/ViT-B-16.openai`. The image tower is a backbone for any network; the text tower is built
by itself, so that what needs no text has none.

The tag names the pretrained weights, and with them the pixels' mean, std and interpolation, and the
activation: OpenAI's, and others, were trained with QuickGELU, x · sigmoid(1.702 x), and lose points
with GELU. So a tag belongs to the name where weights come from a local file, too.
"""

import difflib
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from src.artifacts.hub import hub_or_cache
from src.config.model import Model
from src.config.networks import OPEN_CLIP
from src.errors import UserError, needs, shortened, some

State = dict[str, torch.Tensor]
SMALLEST = {  # stands in for the tower that is not wanted
    "text_cfg": {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1},
    "vision_cfg": {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1},
}
LAYERS = {  # for timm's layer decay: a transformer's stem and blocks
    "stem": r"^(?:conv1|class_embedding|positional_embedding|ln_pre)",
    "blocks": [
        (r"^transformer\.resblocks\.(\d+)", None),
        (r"^(?:ln_post|proj|attn_pool)", (99999,)),  # timm's number for: with the last block
    ],
}


def is_open_clip(backbone: str) -> bool:
    return backbone.startswith(OPEN_CLIP)


def image_tower(model: Model) -> nn.Module:
    """images [N, 3, H, W] → embeddings [N, E], not normalised; random weights. What timm's models
    say of themselves it says, too.

    Errors: UserError for an architecture or tag that open_clip does not list, arguments that it
    does not take, and what only timm's models can have.
    """
    settings, facts = _settings(model)
    if model.drop_path or model.anti_alias:
        key = "drop_path" if model.drop_path else "anti_alias"
        raise UserError(
            f"model.{key} is of timm's models, and open_clip builds {model.backbone}; remove it"
        )
    size = settings["vision_cfg"]["image_size"] = model.image_size
    tower = _clip(settings | {"text_cfg": SMALLEST["text_cfg"]}, model).visual
    if getattr(tower, "trunk", None) is not None:
        tower.set_input_size(size)
    tower.num_features = settings["embed_dim"]
    tower.pretrained_cfg = facts
    tower.checkpoint_filter_fn = resampled
    if hasattr(tower, "transformer"):
        tower.group_matcher = _layers
    return tower


def text_tower(model: Model) -> nn.Module:
    """tokens [M, L] → embeddings [M, E], not normalised; random weights."""
    settings, _ = _settings(model)
    return _clip(settings | {"vision_cfg": SMALLEST["vision_cfg"]}, model).text


def tokens_of(model: Model, captions: list[str]) -> torch.Tensor:
    """[M, L] long. Errors: UserError where the tokenizer is on the hub, out of reach."""
    open_clip = _open_clip()
    settings, _ = _settings(model)
    length = settings["text_cfg"].get("context_length", 77)
    if "hf_tokenizer_name" in settings["text_cfg"]:
        hub_or_cache()
    try:
        tokenizer = open_clip.get_tokenizer(_split(model.backbone)[0], context_length=length)
        return tokenizer(captions)
    except (OSError, ImportError) as error:
        raise UserError(
            f"model.backbone={model.backbone}: its tokenizer could not be had "
            f"({shortened(str(error))}); run once where the hub can be reached, and bring "
            "its cache along (HF_HOME)"
        ) from error


def tag_weights(model: Model) -> Path:
    """The file of the tag's weights, fetched unless it is in the cache."""
    open_clip = _open_clip()
    architecture, tag = _split(model.backbone)
    check_tag(model)
    hub_or_cache()
    try:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, tag)))
    except Exception as error:  # of requests, urllib, huggingface_hub and open_clip
        raise UserError(
            f"model.pretrained: the weights of {model.backbone} could not be fetched from the hub "
            f"({shortened(str(error))}). Give a local file instead, and keep the tag: "
            "model.pretrained=path/to/open_clip_model.safetensors"
        ) from error


def check_tag(model: Model) -> None:
    """Errors: UserError where `model.pretrained: true` has no tag to go by."""
    architecture, tag = _split(model.backbone)
    if tag is None:
        tags = _open_clip().list_pretrained_tags_by_model(architecture)
        raise UserError(
            f"model.backbone={model.backbone}: which weights? With model.pretrained=true name one "
            f"of {some(tags, 12)}, as in {OPEN_CLIP}{architecture}.{tags[0]}"
            if tags
            else f"model.backbone={model.backbone}: open_clip has no weights of it; set "
            "model.pretrained to a local file, or false"
        )


def from_checkpoint(state: State) -> State:
    """Tensors of a whole CLIP under our names: `backbone.…`, `text.…` and `logit_scale`. A file of
    the image tower alone has no `visual.` in it."""
    if "positional_embedding" in state and "text_projection" in state:  # text tower at the top
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    if not any(key.startswith("visual.") for key in state):
        return {f"backbone.{key}": tensor for key, tensor in state.items()}
    return {
        f"backbone.{key.removeprefix('visual.')}" if key.startswith("visual.") else key: tensor
        for key, tensor in state.items()
    }


def resampled(state: State, tower: nn.Module) -> State:
    """Weights of an image tower with their position embeddings, [1 + h w, C], on its grid."""
    own = tower.state_dict()
    moved = {
        key: _on_grid(state[key], own[key].shape)
        for key in own.keys() & state.keys()
        if "pos" in key and own[key].shape != state[key].shape
    }
    return state | moved


def _on_grid(positions: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    prefix = int((shape[-2] ** 0.5) % 1 > 0)  # whether a class token comes first
    side = round((shape[-2] - prefix) ** 0.5)
    rows = positions if positions.ndim == 3 else positions[None]
    found = resample_abs_pos_embed(rows, (side, side), num_prefix_tokens=prefix)
    return found.reshape(shape) if found.numel() == shape.numel() else positions


# ---- what open_clip knows of a name -------------------------------------------------------------


def _open_clip():
    needs("open_clip", "model.backbone=open_clip/…")
    import open_clip

    return open_clip


def _split(backbone: str) -> tuple[str, str | None]:
    """Architecture and tag, as timm divides names."""
    architecture, _, tag = backbone.removeprefix(OPEN_CLIP).partition(".")
    return architecture, tag or None


def _settings(model: Model) -> tuple[dict, dict]:
    """The architecture with model.kwargs, and what its weights expect of pixels."""
    open_clip = _open_clip()
    architecture, tag = _split(model.backbone)
    settings = open_clip.get_model_config(architecture)
    if settings is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), 3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(OPEN_CLIP + name for name in near)}?" if near else ""
        raise UserError(f"model.backbone: open_clip has no model {architecture!r}{hint}")
    if "multimodal_cfg" in settings:
        raise UserError(
            f"model.backbone={model.backbone}: CoCa's towers give more than one embedding; choose "
            f"another, for example {OPEN_CLIP}ViT-B-32"
        )
    facts = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    facts["interpolation"] = "bicubic"
    if tag is not None:
        about = open_clip.get_pretrained_cfg(architecture, tag)
        if not about:
            tags = open_clip.list_pretrained_tags_by_model(architecture)
            raise UserError(
                f"model.backbone={model.backbone}: {architecture} has no weights {tag!r}, but "
                f"{some(tags, 12)}"
            )
        facts |= {key: about[key] for key in facts if about.get(key)}
        settings["quick_gelu"] = bool(about.get("quick_gelu") or settings.get("quick_gelu"))
    for key, value in model.kwargs.items():
        settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
    settings["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in settings["text_cfg"]:
        settings["text_cfg"]["hf_model_pretrained"] = False
    settings.pop("custom_text", None)
    return settings, facts


def _clip(settings: dict, model: Model) -> nn.Module:
    try:
        return _open_clip().CustomTextCLIP(**settings)
    except TypeError as error:
        raise UserError(f"model.kwargs: {model.backbone} does not take them: {error}") from error


def _layers(coarse: bool = False) -> dict:
    return LAYERS
