"""06 --bundle: what a code competition needs to predict hidden test images offline."""
