"""The plot of a run, as SVG by hand: what each limit let through, against the limit."""

from xml.sax.saxutils import escape

WIDTH, PANEL, GAP = 960, 170, 58
LEFT, RIGHT, TOP = 72, 24, 96
INK, SOFT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
ALLOWED, LIMIT, OUTAGE, AGE = "#1f77b4", "#c0392b", "#f6c667", "#6b4fa0"
TICKS = 4


def _nice_top(value):
    """A round number not below `value`."""
    scale = 1.0
    while scale * 10 <= value:
        scale *= 10
    while scale > value:
        scale /= 10
    for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10):
        if step * scale >= value:
            return step * scale
    return value


def _number(value):
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


class Panel:
    """One diagram: its own y axis, the run's x axis."""

    def __init__(self, out, index, title, top, end_s, unit):
        self.out, self.end_s, self.unit = out, end_s, unit
        self.y0 = TOP + index * (PANEL + GAP)
        self.top = _nice_top(max(top, 1e-3))
        self.out.append(f'<text x="{LEFT}" y="{self.y0 - 10}" class="title">{escape(title)}</text>')

    def x(self, seconds):
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(seconds, 0), self.end_s) / self.end_s

    def y(self, value):
        return self.y0 + PANEL * (1 - min(value, self.top) / self.top)

    def shade(self, spans):
        for begin, end in spans:
            self.out.append(f'<rect x="{self.x(begin):.1f}" y="{self.y0}" '
                            f'width="{max(self.x(end) - self.x(begin), 1):.1f}" height="{PANEL}" '
                            f'fill="{OUTAGE}" fill-opacity="0.45"/>')

    def axes(self, kill_s):
        for tick in range(TICKS + 1):
            value = self.top * tick / TICKS
            y = self.y(value)
            self.out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                            f'stroke="{GRID}"/>')
            self.out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" class="tick" '
                            f'text-anchor="end">{_number(value)}</text>')
        step = 1 if self.end_s <= 15 else 5 if self.end_s <= 90 else 30
        for second in range(0, int(self.end_s) + 1, step):
            x = self.x(second)
            self.out.append(f'<line x1="{x:.1f}" y1="{self.y0 + PANEL}" x2="{x:.1f}" '
                            f'y2="{self.y0 + PANEL + 4}" stroke="{SOFT}"/>')
            self.out.append(f'<text x="{x:.1f}" y="{self.y0 + PANEL + 18}" class="tick" '
                            f'text-anchor="middle">{second}</text>')
        self.out.append(f'<line x1="{LEFT}" y1="{self.y0 + PANEL}" x2="{WIDTH - RIGHT}" '
                        f'y2="{self.y0 + PANEL}" stroke="{SOFT}"/>')
        self.out.append(f'<text transform="translate(16 {self.y0 + PANEL / 2}) rotate(-90)" '
                        f'class="tick" text-anchor="middle">{escape(self.unit)}</text>')
        if kill_s is not None:
            x = self.x(kill_s)
            self.out.append(f'<line x1="{x:.1f}" y1="{self.y0}" x2="{x:.1f}" '
                            f'y2="{self.y0 + PANEL}" stroke="{INK}" stroke-dasharray="2 3"/>')

    def level(self, value):
        y = self.y(value)
        self.out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                        f'stroke="{LIMIT}" stroke-width="1.5" stroke-dasharray="7 4"/>')

    def line(self, points, colour):
        if points:
            path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
            self.out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                            f'stroke-width="2" stroke-linejoin="round"/>')


def _legend(out):
    items = [(ALLOWED, "line", "allowed over both hosts, per second"),
             (LIMIT, "dash", "limit"),
             (OUTAGE, "area", "bucket in emergency"),
             (INK, "kill", "a Redis primary is killed")]
    x = LEFT
    for colour, kind, text in items:
        if kind == "area":
            out.append(f'<rect x="{x}" y="54" width="22" height="12" fill="{colour}" '
                       f'fill-opacity="0.45"/>')
        else:
            dash = {"dash": ' stroke-dasharray="7 4"', "kill": ' stroke-dasharray="2 3"'}
            out.append(f'<line x1="{x}" y1="60" x2="{x + 22}" y2="60" stroke="{colour}" '
                       f'stroke-width="2"{dash.get(kind, "")}/>')
        out.append(f'<text x="{x + 28}" y="64" class="legend">{escape(text)}</text>')
        x += 50 + 7 * len(text)


def begin(height, title, subtitle):
    """The lines that head an SVG of this height."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif">',
        f"<style>.title{{font-size:14px;font-weight:600;fill:{INK}}}"
        f".tick{{font-size:11px;fill:{SOFT}}}.legend{{font-size:12px;fill:{INK}}}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="18" font-weight="600" fill="{INK}">'
        f"{escape(title)}</text>",
        f'<text x="{LEFT}" y="44" class="tick">{escape(subtitle)}</text>',
    ]


def end(out, height):
    """Adds what ends it."""
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 12}" class="tick" '
               f'text-anchor="middle">seconds since the start</text>')
    out.append("</svg>")


def draw(rows, ages, end_s, kill_s, subtitle):
    """The SVG text. `rows`: bounds.Row; `ages`: [(second, s)], both over the run of `end_s`."""
    height = TOP + (len(rows) + 1) * (PANEL + GAP)
    out = begin(height, "sluice: two hosts, one limit", subtitle)
    _legend(out)
    for index, row in enumerate(rows):
        points = row.series.per_second(end_s)
        limit = row.limit
        top = max([limit.rate * 1.25, *(y * 1.08 for _, y in points)])
        word = {"open": "fails open", "closed": "fails closed",
                "degrade": f"degrades to {limit.factor:g} of the limit"}[limit.mode]
        if limit.for_s:
            word += f", after {limit.for_s:g} s closed"
        panel = Panel(out, index, f"{limit.label}  {row.value}: {limit.rate}/s, {word}", top,
                      end_s, "allowed per second")
        panel.shade(row.outage)
        panel.axes(kill_s)
        panel.level(limit.rate)
        panel.line(points, ALLOWED)
    panel = Panel(out, len(rows), "Age of the oldest use that Redis does not know", max(
        [1.0, *(age * 1.08 for _, age in ages)]), end_s, "seconds")
    panel.axes(kill_s)
    panel.line(ages, AGE)
    end(out, height)
    return "\n".join(out) + "\n"
