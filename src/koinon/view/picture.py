"""Pictures for papers and slides, drawn by matplotlib where it is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from koinon.core.errors import Unavailable
from koinon.durable.checkpoint import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from koinon.data.heterogeneity import Heterogeneity


def blank(width: float = 6.4, height: float = 4.0) -> "tuple[Figure, Axes]":
    """An empty picture of so many inches.

    Raises:
        Unavailable: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("pictures are drawn by matplotlib; install it: pip install 'koinon[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def save(figure: "Figure", path: Path) -> None:
    """Write a picture; its format follows from the file's name: PNG, SVG or PDF.

    Raises:
        Unavailable: if the file cannot be written, or the format is unknown.
    """
    from matplotlib import rc_context

    timeless = {"Date": None} if path.suffix == ".svg" else None  # with the salt: equal figures give equal bytes
    try:
        with replacing(path) as temporary, rc_context({"svg.hashsalt": "koinon"}):
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=timeless)
    except OSError as error:
        raise Unavailable(f"cannot write the picture {path}: {error.strerror}") from error
    except ValueError as error:
        raise Unavailable(f"cannot write {path} as a picture: {error}; name it .png, .svg or .pdf") from error


def draw_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    across: str,
    up: str,
    scale: Literal["linear", "log"] = "linear",
    level: float | None = None,
) -> None:
    """Draw a line for each name.

    Args:
        curves: Points of each line.
        path: Where to.
        across: What x is, with its unit.
        up: What y is.
        scale: Of x.
        level: A value of y to compare with; None for none.

    Raises:
        Unavailable: if matplotlib is not installed, or the file cannot be written.
    """
    figure, axes = blank()
    for name, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=name)
    if level is not None:
        axes.axhline(level, color="0.5", linewidth=0.8, linestyle="--")
    axes.set(xscale=scale, xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def draw_partition(found: "Heterogeneity", path: Path) -> None:
    """Draw what each client holds of each class: a column for each client, the darker the larger its share.

    Raises:
        Unavailable: if matplotlib is not installed, or the file cannot be written.
    """
    figure, axes = blank(width=7.0, height=3.2)
    shown = axes.imshow(found.mixtures.T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="client", ylabel="class", yticks=range(len(found.classes)), yticklabels=found.classes)
    figure.colorbar(shown, label="share of the client's examples")
    save(figure, path)
