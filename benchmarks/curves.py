"""Accuracy over what it cost, drawn as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path, cost: str, aim: float, scale: str) -> None:
    """Draw a line for each way to train.

    Args:
        curves: Points (cost, test accuracy) of each, by its name.
        path: Where to, as .svg.
        cost: What it is, with its unit.
        aim: The accuracy that is compared.
        scale: Of the cost: "log" or "linear".
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "koinon"  # equal runs are drawn by equal bytes
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot([spent for spent, _ in points], [100 * accuracy for _, accuracy in points], label=name)
    axes.axhline(100 * aim, color="grey", linewidth=0.8, linestyle="dashed")
    axes.set(xscale=scale, xlabel=cost, ylabel="test accuracy in %")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
