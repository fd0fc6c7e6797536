"""Networks: images → logits. One file each; their table is in build.py, which imports them all, and
with them timm (seconds): what only reads heads, features or batch norm starts without."""
