"""One picture of a run: how many people were there over time, and which shares the heads saw among the visits."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from demo.errors import DemoError
from demo.report import Outcome, Presence

INK, SOFT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
FILL, LINE = "#c9def4", "#2b6cb0"
SHADES = ("#2b6cb0", "#63a4dc", "#f0a34a", "#7bb58b", "#b07cc6", "#e2726e", "#9aa5b1")
UNKNOWN = "#d5dae0"  # of visits whose head abstained
LIVE_AXIS_S = 300.0  # longer runs show the time of day, shorter ones seconds since their start


def write_chart(outcome: Outcome, path: Path) -> Path:
    """Write the chart as a PNG of 1600 × 900 pixels.

    Raises:
        DemoError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DemoError("the chart needs matplotlib; install facefleet[demo]") from error
    figure = Figure(figsize=(16, 9), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    heads = outcome.heads
    grid = figure.add_gridspec(
        2, 1, height_ratios=(5, 0.9 + 0.75 * len(heads)) if heads else (1, 0.01), left=0.075, right=0.955, top=0.79,
        bottom=0.07 if heads else 0.1, hspace=0.34,
    )  # fmt: skip
    _titles(figure, outcome)
    _curve(figure.add_subplot(grid[0]), outcome.presence)
    if heads:
        _shares(figure.add_subplot(grid[1]), outcome)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _titles(figure: Any, outcome: Outcome) -> None:
    visits = len(outcome.visits)
    headline = f"{visits} visit{'s' if visits != 1 else ''}"
    if visits:
        headline += f", {outcome.mean_dwell_s:.1f} s on average, at most {outcome.most_at_once} at once"
    figure.text(0.075, 0.925, headline, fontsize=25, fontweight="bold", color=INK)
    figure.text(0.075, 0.882, _when(outcome), fontsize=14, color=SOFT)


def _when(outcome: Outcome) -> str:
    if not outcome.presence:
        return "no presence was counted"
    begin, end = outcome.presence[0].at.astimezone(), _end(outcome.presence).astimezone()
    cameras = sorted({v.camera for v in outcome.visits})
    who = f"camera {', '.join(cameras)}, " if cameras else ""
    return f"{who}{begin:%d %B %Y, %H:%M:%S} – {end:%H:%M:%S}"


def _end(presence: tuple[Presence, ...]) -> datetime:
    return presence[-1].at + timedelta(seconds=presence[-1].period_s)


def _curve(axes: Any, presence: tuple[Presence, ...]) -> None:
    """Draw people on average as an area of steps; the most at once as a line above it."""
    axes.set_title("People in front of the camera", loc="left", fontsize=15, color=INK, pad=10)
    if presence:
        start = presence[0].at
        edges = [(p.at - start).total_seconds() for p in presence] + [(_end(presence) - start).total_seconds()]
        people, most = [p.people for p in presence], [p.most for p in presence]
        axes.stairs(people, edges, fill=True, color=FILL, label="average per slot")
        axes.stairs(most, edges, color=LINE, linewidth=2.2, baseline=None, label="most at once")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, max(*most, 1) * 1.18)
        axes.xaxis.set_major_formatter(lambda x, _: _time(start, x, edges[-1]))
        axes.legend(loc="upper right", ncols=2, frameon=False, fontsize=12, labelcolor=INK, borderaxespad=0.1)
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=12, labelcolor=SOFT, pad=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _time(start: datetime, x: float, length_s: float) -> str:
    if length_s > LIVE_AXIS_S:
        return f"{(start + timedelta(seconds=x)).astimezone():%H:%M}"
    return f"{x:.0f} s"


def _shares(axes: Any, outcome: Outcome) -> None:
    """Draw one bar of 100 % per head, cut by its labels; abstentions come last, in grey."""
    total = len(outcome.visits)
    axes.set_title("Among the visits, as the models saw them", loc="left", fontsize=15, color=INK, pad=10)
    for row, head in enumerate(outcome.heads):
        left = 0.0
        for i, (label, count) in enumerate(outcome.shares(head)):
            share = count / total
            color = UNKNOWN if label == "?" else SHADES[i % len(SHADES)]
            axes.barh(row, share, left=left, height=0.62, color=color, edgecolor="white", linewidth=2)
            text = f"{'unsure' if label == '?' else label}  {share:.0%}"
            if share * 100 > len(text) * 0.95:  # only where it fits: a character is about 0.9 % of the width
                ink = INK if label == "?" else "white"
                axes.text(left + share / 2, row, text, ha="center", va="center", fontsize=13, color=ink)
            left += share
    axes.set_yticks(range(len(outcome.heads)), outcome.heads, fontsize=14, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
