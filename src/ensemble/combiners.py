"""The table of combiners: `ensemble.combiner.name` chooses. One file each, see combiner.py."""

from src.ensemble.combiner import Combiner
from src.ensemble.greedy import Greedy
from src.ensemble.mean import Mean

COMBINERS: dict[str, type[Combiner]] = {
    "mean": Mean,
    "greedy": Greedy,
}
