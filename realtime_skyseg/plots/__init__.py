"""Pictures."""

from realtime_skyseg.plots.pictures import overlay
from realtime_skyseg.plots.quantities import VIEWS, plot_view
from realtime_skyseg.plots.runs import plot_programme, plot_run, plot_sweep
from realtime_skyseg.plots.training import plot_cases, plot_crops, plot_history, plot_sureness, plot_trust

__all__ = [
    "VIEWS", "overlay", "plot_cases", "plot_crops", "plot_history", "plot_programme", "plot_run", "plot_sureness",
    "plot_sweep", "plot_trust", "plot_view",
]  # fmt: skip
