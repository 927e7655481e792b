"""The plot of a scenario: what each rule lets go on, against the limit, on one axis of time."""

import bisect

import plot

STEP_S = 0.1
ASKED = "asked"  # the panel of the arrivals


def draw(title, panels, end_s):
    """The SVG text. `panels`: (label, instants in seconds, in order; the limit per second)."""
    height = plot.TOP + len(panels) * (plot.PANEL + plot.GAP)
    out = plot.begin(height, title, f"requests that go on, in steps of {STEP_S:g} s; "
                     "dashed: the limit")
    series = {label: _steps(instants, end_s) for label, instants, _ in panels}
    # One scale for all rules, so that heights compare.
    top = max(y for label, points in series.items() if label != ASKED for _, y in points)
    for index, (label, _, rate) in enumerate(panels):
        points = series[label]
        highest = max(y for _, y in points) if label == ASKED else top
        panel = plot.Panel(out, index, label, max(rate * 1.25, highest * 1.08), end_s,
                           "per second")
        panel.axes(None)
        panel.level(rate)
        panel.line(points, plot.SOFT if label == ASKED else plot.ALLOWED)
    plot.end(out, height)
    return "\n".join(out) + "\n"


def _steps(instants, end_s):
    points = []
    for step in range(round(end_s / STEP_S)):
        begin = step * STEP_S
        count = bisect.bisect_left(instants, begin + STEP_S) - bisect.bisect_left(instants, begin)
        points += [(begin, count / STEP_S), (begin + STEP_S, count / STEP_S)]
    return points
