"""The competition's file: which format it has, what is written into it, and how it is checked.

A format is one file with a subclass of `Format`, a choice of `submission.format` in
src/config/submission.py, and one line in the table below.
"""

from src.submission.format import Format
from src.submission.label import Label
from src.submission.long import Long
from src.submission.probabilities import Probabilities
from src.submission.topk import TopK

FORMATS: dict[str, Format] = {
    "label": Label(),
    "topk": TopK(),
    "probabilities": Probabilities(),
    "long": Long(),
}
