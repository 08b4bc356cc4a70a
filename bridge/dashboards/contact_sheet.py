"""Draw every panel of every dashboard from a real database, placed as Grafana places them, without a Grafana.

    python -m bridge.dashboards.contact_sheet --dsn DSN --contact-sheet out.png [--box NAME]

writes out-audience.png, out-fleet.png and out-box.png: for looking at what the queries give. Needs matplotlib
(extra `demo`).
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg

from bridge.dashboards.ask import Answer, ask, first_choice, mistakes, reader, statement
from bridge.dashboards.generate import DASHBOARDS
from bridge.dashboards.macros import Range, seconds
from bridge.dashboards.model import SERIES, Dashboard, Panel, Place, Row, placed

INK, SOFT, PAPER, CARD, LINE = "#d8d9dd", "#8e9096", "#111217", "#1a1b21", "#2c2e35"
HUES = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#96d98d", "#ffa6b0")
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2", "gray": "#9fa1a8"}
WIDTH_IN, UNIT_IN, DPI = 18.0, 0.40, 100  # of the sheet; of one row of Grafana's grid
MARGIN_IN = 0.06
MOST_ROWS = 40  # of a table; fewer where it is less high


def draw(connection: psycopg.Connection[Any], page: Dashboard, now: datetime, box: str | None, path: Path) -> list[str]:
    """Draw one dashboard to `path` and return what is wrong with its answers, one sentence a panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = dict(first_choice(connection, page, Range.last(page.since, now)))
    if box is not None and not page.variables[-1].many:
        chosen["box"] = box
    laid = placed(page.items)
    high = max(place.y + place.h for _, place in laid) + 2
    figure = Figure((WIDTH_IN, high * UNIT_IN), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    _text(figure, 0.1, 1.1, f"facefleet · {page.title}", high, size=17, color=INK)
    choice = "   ".join(f"{name}: {'All' if value is None else value}" for name, value in chosen.items())
    _text(figure, 7, 1.1, f"{choice}   last {page.since}, {now:%Y-%m-%d %H:%M} UTC", high, size=11, color=SOFT)
    wrong = []
    for item, place in laid:
        if isinstance(item, Row):
            _text(figure, place.x + 0.1, place.y + 2.75, item.title, high, size=13, color=INK)
            continue
        answer = ask(connection, statement(page, item, now, chosen))
        wrong += [f"{page.title}, {item.title}: {mistake}" for mistake in mistakes(item, answer)]
        axes = _card(figure, item, place, high)
        if answer.rows:
            _DRAWN[item.shape](axes, item, answer)
            if item.shape in SERIES:
                shown = Range.last(item.since or page.since, now)
                axes.set_xlim(shown.start.timestamp() / 86400, shown.end.timestamp() / 86400)
        else:
            _nothing(axes)
    figure.savefig(path, facecolor=PAPER)
    return wrong


def _text(figure: Any, x: float, y: float, text: str, high: float, **look: Any) -> None:
    figure.text(x / 24, 1 - y / high, text, va="center", **look)


def _card(figure: Any, panel: Panel, place: Place, high: float) -> Any:
    """Draw the frame and title of a panel and return axes inside."""
    from matplotlib.patches import FancyBboxPatch

    pad_x, pad_y = MARGIN_IN / WIDTH_IN, MARGIN_IN / (high * UNIT_IN)
    left, bottom = place.x / 24 + pad_x, 1 - (place.y + 2 + place.h) / high + pad_y
    width, height = place.w / 24 - 2 * pad_x, place.h / high - 2 * pad_y
    figure.add_artist(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.002", facecolor=CARD, edgecolor=LINE,
            transform=figure.transFigure, zorder=0,
        )
    )  # fmt: skip
    title_h = 0.34 / (high * UNIT_IN)
    figure.text(left + 0.006, bottom + height - title_h * 0.55, panel.title, fontsize=11, color=INK, va="center")
    if panel.since:
        span = f"last {panel.since}"
        figure.text(
            left + width - 0.006,
            bottom + height - title_h * 0.55,
            span,
            fontsize=9,
            color=SOFT,
            ha="right",
            va="center",
        )
    curve = panel.shape in ("lines", "bars", "ranking")
    inset_l, inset_b = (0.62 / WIDTH_IN, 0.52 / (high * UNIT_IN)) if curve else (0.005, 0.08 / (high * UNIT_IN))
    if panel.shape == "ranking":
        inset_l = 0.95 / WIDTH_IN
    axes = figure.add_axes(
        (left + inset_l, bottom + inset_b, width - inset_l - 0.008, height - title_h - inset_b), facecolor=CARD
    )
    axes.tick_params(colors=SOFT, labelsize=8.5, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _nothing(axes: Any) -> None:
    _bare(axes)
    axes.text(0.5, 0.5, "no data", color=SOFT, ha="center", va="center", fontsize=13)


# Shapes ---------------------------------------------------------------------------------------------------------------


def _series(axes: Any, panel: Panel, answer: Answer) -> None:
    import matplotlib.dates as dates
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    curves = _curves(panel, answer)
    seen = sorted({at for points in curves.values() for at in points})
    floor = [0.0] * len(seen)
    step = min((b - a for a, b in pairwise(seen)), default=max(seconds(panel.least), 120.0))
    days = [at / 86400 for at in seen]
    for i, (name, points) in enumerate(curves.items()):
        colour = NAMED.get(panel.colours.get(name, ""), HUES[i % len(HUES)])
        values = [points.get(at) for at in seen]
        if panel.stacked:
            tops = [low + (value or 0) for low, value in zip(floor, values, strict=True)]
            if panel.shape == "bars":
                heights = [value or 0 for value in values]
                axes.bar(days, heights, step / 86400 * 0.85, bottom=floor, color=colour, label=name, align="edge")
            else:
                axes.fill_between(days, floor, tops, color=colour, alpha=0.45, linewidth=0.8, label=name)
            floor = tops
        else:
            own = [(at / 86400, value) for at, value in points.items() if value is not None]
            axes.plot(*zip(*own, strict=True), color=colour, linewidth=1.3, label=name) if own else None
            if own and len(curves) == 1:
                axes.fill_between(*zip(*own, strict=True), color=colour, alpha=0.12)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, show_offset=False))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=panel.shape == "bars"))
    ticks = [tick for tick in axes.get_yticks() if tick > 0]
    digits = 0 if all(tick == int(tick) for tick in ticks) else 1 if ticks[0] >= 0.1 else 3
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, panel.unit, digits)))
    columns = 4 if max(map(len, curves), default=0) < 16 else max(1, round(panel.w / 5))
    box, lines = axes.get_position(), math.ceil(len(curves) / columns)
    if lines > 1:  # make room for what hangs below
        room = (lines - 1) * 0.16 / axes.figure.get_figheight()
        axes.set_position((box.x0, box.y0 + room, box.width, box.height - room))
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.05, -0.09), ncols=columns, fontsize=8, frameon=False, labelcolor=SOFT,
        handlelength=1, borderaxespad=0, columnspacing=1.0, labelspacing=0.2,
    )  # fmt: skip


def _curves(panel: Panel, answer: Answer) -> dict[str, dict[float, float | None]]:
    """Return name → (seconds since 1970 → value), as Grafana splits rows into series."""
    names = [name for name, kind in panel.columns.items() if kind == "number"]
    metric = answer.names.index("metric") if "metric" in answer.names else None
    curves: dict[str, dict[float, float | None]] = {}
    for row in answer.rows:
        at = row[0].timestamp() if isinstance(row[0], datetime) else float(row[0])
        for name in names:
            value = row[answer.names.index(name)]
            label = row[metric] if metric is not None else name
            curves.setdefault(label, {})[at] = None if value is None else float(value)
    return curves


def _pie(axes: Any, panel: Panel, answer: Answer) -> None:
    rows = [(str(name), float(value)) for name, value in answer.rows]
    total = sum(value for _, value in rows)
    if not total:
        _nothing(axes)
        return
    hues = [NAMED.get(panel.colours.get(name, ""), HUES[i % len(HUES)]) for i, (name, _) in enumerate(rows)]
    wedges = axes.pie(
        [value for _, value in rows], colors=hues, startangle=90, counterclock=False, radius=1.05,
        wedgeprops={"width": 0.42, "edgecolor": CARD},
    )[0]  # fmt: skip
    named = [f"{name}   {written(value, 'short', 0)}   {value / total:.0%}" for name, value in rows]
    narrow = panel.w < 6
    axes.legend(
        wedges, named, fontsize=8.5, frameon=False, labelcolor=SOFT, handlelength=0.8, handleheight=0.8,
        loc="upper center" if narrow else "center left", bbox_to_anchor=(0.5, 0.02) if narrow else (1.0, 0.5),
    )  # fmt: skip
    if narrow:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0 + box.height * 0.25, box.width, box.height * 0.72))
    axes.set_anchor("C" if narrow else "W")


def _stat(axes: Any, panel: Panel, answer: Answer) -> None:
    _bare(axes)
    shown = [(name, value) for name, value in zip(answer.names, answer.rows[0], strict=True)]
    for i, (name, value) in enumerate(shown):
        x = (i + 0.5) / len(shown)
        unit = panel.units.get(name, panel.unit)
        text = value if isinstance(value, str) else written(value, unit, panel.decimals)
        key = value if isinstance(value, str) else name
        colour = NAMED.get(panel.colours.get(str(key), ""), NAMED[_step(panel, value)])
        size = min(30.0, 30 * panel.w / 4 / len(shown) * 3.4 / max(len(text), 3))
        axes.text(x, 0.52, text, color=colour, fontsize=size, ha="center", va="center", weight="bold")
        if len(shown) > 1:
            axes.text(x, 0.14, name, color=SOFT, fontsize=9.5, ha="center", va="center")


def _step(panel: Panel, value: Any) -> str:
    colour = "green"
    for least, name in panel.steps:
        if least is None or (isinstance(value, (int, float)) and value >= least):
            colour = name
    return colour


def _table(axes: Any, panel: Panel, answer: Answer) -> None:
    _bare(axes)
    most = min(MOST_ROWS, int(panel.h * UNIT_IN / 0.235) - 2)
    rows = [
        [_cell(panel, name, value) for name, value in zip(answer.names, row, strict=True)] for row in answer.rows[:most]
    ]
    widths = [max(len(name), *(len(row[i]) for row in rows)) + 2 for i, name in enumerate(answer.names)]
    room = panel.w * WIDTH_IN / 24 * 12.5  # characters that fit
    widths = [min(width, max(8, int(room * 0.45))) for width in widths]
    scale = max(1.0, sum(widths) / room)
    lines = max(most, 1) + 1
    left = 0.0
    for i, name in enumerate(answer.names):
        axes.text(left, 1 - 0.5 / lines, name, color=NAMED["blue"], fontsize=9, va="center")
        for j, row in enumerate(rows):
            colour = NAMED.get(panel.colours.get(row[i], ""), INK)
            fits = max(3, int(widths[i] * 0.98))
            text = row[i] if len(row[i]) <= fits else row[i][: fits - 1] + "…"
            axes.text(left, 1 - (j + 1.5) / lines, text, color=colour, fontsize=9 / min(scale, 1.15), va="center")
        left += widths[i] / max(sum(widths), room)
    for j in range(len(rows) + 1):
        axes.axhline(1 - (j + 1) / lines, color=LINE, linewidth=0.6)
    if len(answer.rows) > most:
        axes.text(1, 0, f"{len(answer.rows) - most} more", color=SOFT, fontsize=8, ha="right", va="bottom")


def _heat(axes: Any, panel: Panel, answer: Answer) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    days, hours = [row[0] for row in answer.rows], answer.names[1:]
    values = [[float(value) if value is not None else 0.0 for value in row[1:]] for row in answer.rows]
    shades = LinearSegmentedColormap.from_list("blpu", ["#1f2a52", "#5c4db1", "#b877d9", "#f0c6ff"])
    axes.imshow(values, aspect="auto", cmap=shades, extent=(0, len(hours), len(days), 0))
    top = max(map(max, values)) or 1
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            ink = "#1a1b21" if value > 0.5 * top else INK
            axes.text(x + 0.5, y + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=9, color=ink)
    axes.set_yticks([y + 0.5 for y in range(len(days))], days)
    axes.set_xticks([x + 0.5 for x in range(len(hours))], hours)
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=9, labelcolor=SOFT, pad=2)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.025, box.y0, box.width - 0.025, box.height - 0.012))


def _ranking(axes: Any, panel: Panel, answer: Answer) -> None:
    from matplotlib.ticker import FuncFormatter

    names = [row[0] for row in answer.rows]
    numbers = answer.names[1:]
    for i, name in enumerate(numbers):
        values = [float(value or 0) for value in answer.column(name)]
        places = [y + 0.4 * i for y in range(len(names))]
        axes.barh(places, values, 0.36, color=HUES[i], label=name)
        for y, value in zip(places, values, strict=True):
            axes.text(value, y, f" {written(value, panel.unit, panel.decimals)}", color=SOFT, fontsize=7.5, va="center")
    axes.set_yticks([y + 0.2 for y in range(len(names))], names)
    axes.invert_yaxis()
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, panel.unit, 0)))
    axes.margins(x=0.15)
    axes.legend(loc="lower right", fontsize=8, frameon=False, labelcolor=SOFT)


_DRAWN: dict[str, Callable[[Any, Panel, Answer], None]] = {
    "lines": _series, "bars": _series, "pie": _pie, "stat": _stat, "table": _table, "heat": _heat, "ranking": _ranking,
}  # fmt: skip


def _cell(panel: Panel, name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%m-%d %H:%M:%S}"
    if isinstance(value, str):
        return value
    whole = float(value) == int(value)
    return written(value, panel.units.get(name, panel.unit), 0 if whole else panel.decimals)


def written(value: Any, unit: str, decimals: int | None = None) -> str:
    """Return a number as Grafana writes it in that unit."""
    if value is None:
        return "–"
    number = float(value)
    digits = 1 if decimals is None else decimals
    if unit == "percentunit":
        return f"{number * 100:.{digits}f} %"
    if unit == "s" and abs(number) >= 120:
        for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if abs(number) >= size * 1.5:
                return f"{number / size:.1f} {name}"
    if unit in ("s", "ms", "d", "celsius"):
        return f"{number:.{digits}f} {'°C' if unit == 'celsius' else unit}"
    for name, thousands in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= thousands and (unit == "decbytes" or thousands > 1e3 or abs(number) >= 1e4):
            return f"{number / thousands:.1f} {name}{'B' if unit == 'decbytes' else ''}"
    text = f"{number:.0f}" if number == int(number) else f"{number:.{max(digits, 1)}f}"
    return text + (" B" if unit == "decbytes" else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all dashboards; 0 when every panel has something to show, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m bridge.dashboards.contact_sheet", description=__doc__)
    parser.add_argument("--dsn", required=True, help="of a member of facefleet_reader")
    parser.add_argument("--contact-sheet", type=Path, required=True, metavar="OUT.png")
    parser.add_argument("--box", help="the box of the Box dashboard; the first unless given")
    parser.add_argument("--now", type=datetime.fromisoformat, help="the moment to look at; now unless given")
    options = parser.parse_args(argv)
    try:
        import matplotlib  # noqa: F401  (asked here, so that the message names the extra)
    except ImportError:
        print('matplotlib is missing: pip install "facefleet[demo]"', file=sys.stderr)
        return 1
    wrong = []
    with reader(options.dsn) as connection:
        for page in DASHBOARDS:
            path: Path = options.contact_sheet.with_stem(f"{options.contact_sheet.stem}-{page.title.lower()}")
            wrong += draw(connection, page, options.now or datetime.now(UTC), options.box, path)
            print(path)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
