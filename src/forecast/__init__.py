"""The score that a submission can expect on the leaderboard, with a 90 % interval. numpy only."""

from src.forecast.expect import Forecast, forecast, read_forecast
from src.forecast.measure import Evidence, Views

__all__ = ["Evidence", "Forecast", "Views", "forecast", "read_forecast"]
