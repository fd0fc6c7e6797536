"""python -m src.rerun MANIFEST: what a manifest says was made, made again and compared."""
