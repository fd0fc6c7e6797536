"""The table of combiners: `ensemble.combiner.name` chooses. One file each, see combiner.py."""

from src.ensemble.combiner import Combiner
from src.ensemble.greedy import Greedy
from src.ensemble.mean import Mean
from src.ensemble.mean_probability import MeanProbability
from src.ensemble.per_bin import PerBin
from src.ensemble.rank_mean import RankMean
from src.ensemble.simplex import Simplex
from src.ensemble.stacking import Stacking

COMBINERS: dict[str, type[Combiner]] = {
    "mean": Mean,
    "greedy": Greedy,
    "mean_probability": MeanProbability,
    "rank_mean": RankMean,
    "simplex": Simplex,
    "per_bin": PerBin,
    "stacking": Stacking,
}
