"""The reliability diagram of `osm calibrate`: accuracy against probability, before and after calibration."""

from __future__ import annotations

from pathlib import Path

from osm.errors import OsmError
from osm.evaluation.metrics.calibration import Calibration
from osm.files import replacing

SUFFIXES = (".png", ".svg")
_SERIES = (("before", "#d55e00", "s", "--"), ("after", "#0072b2", "o", "-"))  # differ in more than their color


def check_plot(path: Path) -> None:
    """Raise OsmError if the file name of a diagram does not end in .png or .svg."""
    if path.suffix.lower() not in SUFFIXES:
        raise OsmError(f"--plot {path}: expected a name that ends in {' or '.join(SUFFIXES)}")


def draw_reliability(path: Path, before: Calibration, after: Calibration, unsure: float) -> None:
    """Draw the accuracy of each bin against its mean probability, and write the diagram to a PNG or SVG file.

    The dotted diagonal is perfect calibration, and the vertical line is the threshold below which names are unsure.

    Raises:
        OsmError: the file name has a different suffix, or the file cannot be written.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "osm", "font.family": ["DejaVu Sans"], "font.size": 10}):
        figure = Figure((4.6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#777777", linestyle=":", linewidth=1)
        axes.axvline(unsure, color="#777777", linewidth=1)
        axes.text(unsure - 0.015, 0.98, "unsure", ha="right", va="top", color="#555555")
        for (name, color, marker, line), table in zip(_SERIES, (before, after), strict=True):
            bins = [(one.prob, one.acc) for one in table.bins if one.prob is not None]
            probs, accs = zip(*bins, strict=True)
            label = f"{name} calibration, ECE {100 * (table.ece or 0):.1f}%"
            axes.plot(probs, accs, color=color, marker=marker, linestyle=line, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the name", ylabel="share of correct names")
        axes.set_aspect("equal")
        axes.legend(loc="lower right", frameon=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                figure.savefig(
                    file,
                    format=path.suffix[1:].lower(),
                    dpi=150,
                    metadata={"Date": None} if path.suffix.lower() == ".svg" else None,
                )
        except OSError as error:
            raise OsmError(f"--plot {path} cannot be written ({error})") from None
