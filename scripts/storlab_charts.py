"""SVG charts of one figure of a result document: what scripts/figures draws with.

A chart looks the same everywhere: colours are classes with a light and a dark value, text is real text, every mark has
its values as a tooltip. Nothing is measured by a font engine: text widths are estimated, a little too wide.
"""

import math
import re

WIDTH = 760
PLOT_HEIGHT = 300
FONT = 12

LIGHT = ["#2563b8", "#c2570c", "#15805a", "#a83279", "#7a5c00", "#0e7490", "#c0273a", "#5b5bd6"]
DARK = ["#6ea8fe", "#ffa657", "#4fd1a1", "#f08fcb", "#e3c14a", "#56d4e8", "#ff8a8a", "#b0a8ff"]
COLOURS = len(LIGHT)
HEAT = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"]


def _theme(colours, back, ink, soft, grid, inside):
    rules = [f".bg{{fill:{back}}}.ink{{fill:{ink}}}.soft{{fill:{soft}}}.in{{fill:{inside}}}",
             f".axis{{stroke:{soft}}}.grid{{stroke:{grid}}}.halo{{fill:{ink};stroke:{back}}}.none{{fill:{grid}}}"]
    rules += [f".f{i}{{fill:{c}}}.l{i}{{stroke:{c}}}" for i, c in enumerate(colours)]
    return "".join(rules)


STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:12px}"
    "text.title{font-size:15px;font-weight:600}text.value{font-size:11px}"
    ".axis,.grid{fill:none;stroke-width:1;shape-rendering:crispEdges}.halo{stroke-width:4;stroke-linejoin:round;paint-order:stroke}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.dash{stroke-dasharray:6 5}"
    ".edge{stroke-width:1.2}.dots{stroke-dasharray:3 2}"
    + _theme(LIGHT, "#ffffff", "#1c2128", "#59636e", "#e4e8ec", "#ffffff")
    + "@media (prefers-color-scheme:dark){"
    + _theme(DARK, "#161b22", "#e6edf3", "#9aa5b1", "#2d343d", "#11151a") + "}"
)

# Each ladder: units of one kind, from small to large, and the factor between neighbours.
LADDERS = [
    (["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024),
    (["kB", "MB", "GB", "TB", "PB"], 1000),
    (["ns", "µs", "ms", "s"], 1000),
]
ALIASES = {"bytes": "B", "us": "µs", "μs": "µs", "bytes/s": "B/s", "KB": "kB", "KB/s": "kB/s"}


def escape(text):
    """Text for XML: markup escaped, and what XML cannot hold at all replaced."""
    text = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def width_of(text, size=FONT):
    """About how wide a text is, in pixels."""
    def em(c):
        if c in "iljI.,:;|'!()[] ":
            return 0.37
        if c in "mwMW@%—…":
            return 0.95
        if ord(c) >= 0x2E80:
            return 1.0
        return 0.72 if c.isupper() else 0.61
    return sum(map(em, text)) * size


def shorten(text, limit, size=FONT):
    if width_of(text, size) <= limit:
        return text
    while text and width_of(text + "…", size) > limit:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text, limit, size):
    """Words in lines no wider than `limit`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, size) <= limit or not lines[-1]:
            lines[-1] = shorten(longer, limit, size)
        else:
            lines.append(shorten(word, limit, size))
    return lines


def short(value):
    """A number in few characters: three digits that matter, and k, M, G."""
    if value is None:
        return "–"
    if value < 0:
        return "−" + short(-value)
    size = value
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e15:
        mantissa, exponent = f"{value:.2e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    if size >= 9999.5:
        for factor, suffix in [(1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")]:
            if size < factor * 999.5 or suffix == "T":
                return f"{value / factor:.3g}{suffix}"
    if size >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def unit_for(unit, peak):
    """The unit to show values up to `peak` of `unit` in, the factor to get there, and whether it counts by 1024."""
    unit = ALIASES.get(unit, unit)
    stem, rate = (unit[:-2], "/s") if unit.endswith("/s") else (unit, "")
    for units, factor in LADDERS:
        if stem in units and not (rate and "ns" in units):
            at = units.index(stem)
            up = at
            while up + 1 < len(units) and peak * factor ** (at - up) >= factor:
                up += 1
            while up > 0 and 0 < peak * factor ** (at - up) < 1:
                up -= 1
            return units[up] + rate, float(factor) ** (at - up), factor == 1024
    return unit, 1.0, False


def has_ladder(unit):
    stem = ALIASES.get(unit, unit).removesuffix("/s")
    return any(stem in units for units, _ in LADDERS)


def human(value, unit):
    """A value with its unit, such as "64 KiB"."""
    if value is None:
        return "–"
    shown, factor, _ = unit_for(unit, abs(value))
    space = "" if shown in ("%", "×") else " "
    return f"{short(value * factor)}{space}{shown}" if shown else short(value)


class Axis:
    """A numeric axis: its range, its ticks, and the text of each."""

    def __init__(self, spec, values, zero=False, room=0.0, tight=False):
        """`zero`: the range includes 0 (bars); `room`: share of the axis to leave free at its ends; `tight`: it ends
        with the values, and not with a tick."""
        self.name, self.own, self.log = spec["label"], spec["unit"], spec.get("scale") == "log"
        lo, hi = (min(values), max(values)) if values else (1.0, 2.0) if self.log else (0.0, 1.0)
        self.unit, self.factor, self.binary = unit_for(spec["unit"], max(abs(lo), abs(hi)))
        shown = [float(v * self.factor) for v in values]
        lo, hi = lo * self.factor, hi * self.factor
        if self.log:
            doubling = self.binary or bool(shown) and all(math.frexp(v)[0] == 0.5 for v in shown)
            self._log_range(lo, hi, room, zero, tight, 2 if doubling else 10)
        else:
            self._linear_range(lo, hi, zero, room, tight, all(v.is_integer() for v in shown))

    def _linear_range(self, lo, hi, zero, room, tight, whole):
        if zero or (lo >= 0 and lo < 0.6 * hi):
            lo, hi = min(lo, 0.0), max(hi, 0.0)
        if lo == hi:
            lo, hi = (lo - abs(lo) / 2, hi + abs(lo) / 2) if lo else (0.0, 1.0)
        if room and hi > 0:
            hi += (hi - lo) * room / (1 - room)
        if room and lo < 0:
            lo -= (hi - lo) * room / (1 - room)
        raw = (hi - lo) / 6
        if self.binary and raw >= 0.5:
            step = 2.0 ** math.ceil(math.log2(raw) - 1e-9)
        else:
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(m * power for m in (1, 2, 2.5, 5, 10) if raw <= m * power * (1 + 1e-9))
        if whole:
            step = max(1.0, round(step))
        if not room and not tight:
            hi = math.ceil(hi / step - 1e-9) * step
            lo = math.floor(lo / step + 1e-9) * step
        self.lo, self.hi = lo, hi
        first = math.ceil(lo / step - 1e-9)
        self.at = [i * step for i in range(first, math.floor(hi / step + 1e-9) + 1)]
        self.texts = self._linear_texts(step)

    def _linear_texts(self, step):
        peak = max((abs(t) for t in self.at), default=0)
        scale, suffix = 1.0, ""
        if peak >= 10000:
            scale, suffix = next((f, s) for f, s in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] if peak >= f)
        if 0 < peak < 1e-3 or peak >= 1e15:
            return [short(t) for t in self.at]
        digits = f"{step / scale:.6g}"
        decimals = len(digits.split(".")[1]) if "." in digits and "e" not in digits else 0
        # Values that differ in a far digit only would make labels wider than the plot.
        return [shorten(f"{t / scale:,.{decimals}f}{suffix if t else ''}".replace("-", "−"), 120)
                for t in self.at]

    def _log_range(self, lo, hi, room, zero, tight, base):
        """Ticks at powers of `base`, or at 1, 2 and 5 times powers of 10 if there are too few of those."""
        low, high = math.log(lo, base), math.log(hi, base)
        if high - low < 1e-9:
            low, high = low - 1, high + 1
        powers = range(math.floor(low) - 1, math.ceil(high) + 2)
        steps = sorted(m * float(base) ** p for p in powers for m in ((1, 2, 5) if base == 10 else (1,)))
        if not tight:
            # A bar at the very bottom would have no height.
            under = math.log(base ** low * (0.9 if zero else 1 + 1e-9))
            low = max((math.log(t, base) for t in steps if math.log(t) <= under), default=low)
            high = min((math.log(t, base) for t in steps if t >= base ** high * (1 - 1e-9)), default=high)
        high += (high - low) * room
        self.lo, self.hi = float(base) ** low, float(base) ** high
        inside = [t for t in steps if self.lo * (1 - 1e-9) <= t <= self.hi * (1 + 1e-9)]
        whole = [t for t in inside if abs(math.log(t, base) - round(math.log(t, base))) < 1e-9]
        self.at = whole[::math.ceil(len(whole) / 9)] if len(whole) > 2 else inside
        self.texts = [self._log_text(t) for t in self.at]

    @staticmethod
    def _log_text(value):
        power = round(math.log10(value))
        if abs(power) > 3 and abs(value / 10.0 ** power - 1) < 1e-9:
            return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value:,.15g}" if 1e-3 <= value < 1e6 else short(value)

    def title(self):
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def share(self, value):
        """Where a value of the document's unit is, from 0 at the low to 1 at the high end."""
        return self._share(value * self.factor)

    def ticks(self):
        return [(self._share(at), text) for at, text in zip(self.at, self.texts)]

    def _share(self, shown):
        if self.log:
            return math.log(shown / self.lo) / math.log(self.hi / self.lo)
        return (shown - self.lo) / (self.hi - self.lo)

    def text(self, value):
        """A value in the axis' unit; with a unit of its own if it is tiny in that one."""
        return human(value, self.own) if 0 < abs(value * self.factor) < 0.01 and self.unit else short(value * self.factor)


class Chart:
    """A drawing with a title, a legend, and a plot rectangle."""

    def __init__(self, figure, slug):
        self.figure, self.slug, self.parts, self.defs = figure, slug, [], []
        self.top = 12.0
        for line in wrap(figure["title"], WIDTH - 32, 15):
            self.top += 18
            self.text(16, self.top, line, "ink title")
        self.top += 8
        self.colours = _colours(figure["series"])

    def text(self, x, y, text, classes, anchor="start", angle=0):
        turn = f' transform="rotate({angle} {x:.1f} {y:.1f})"' if angle else ""
        side = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}"{side}{turn}>{escape(text)}</text>')

    def line(self, x1, y1, x2, y2, classes):
        self.parts.append(f'<path class="{classes}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')

    def rect(self, x, y, w, h, attributes, tip=None):
        body = f'<title>{escape(tip)}</title></rect>' if tip else ""
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}" '
                          f'{attributes}{">" + body if body else "/>"}')

    def fill(self, series):
        """Attributes of a bar of a series: hatched and dashed round if it is the talk's."""
        colour = self.colours[series]
        if not self.figure["series"][series].get("talk"):
            return f'class="f{colour}"'
        name = f"{self.slug}-hatch-{colour}"
        pattern = (f'<pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse" '
                   f'patternTransform="rotate(45)"><rect width="6" height="6" class="bg"/>'
                   f'<path class="l{colour}" stroke-width="3" d="M1.5 0V6"/></pattern>')
        if pattern not in self.defs:
            self.defs.append(pattern)
        return f'fill="url(#{name})" class="edge dots l{colour}"'

    def marker(self, series, x, y, tip=None):
        """A point of a series, each with its shape; hollow if it is the talk's."""
        colour, talk = self.colours[series], self.figure["series"][series].get("talk")
        shape = ["M-4 0A4 4 0 1 1 4 0A4 4 0 1 1 -4 0Z", "M-3.6-3.6H3.6V3.6H-3.6Z", "M0-4.8L4.6 3.6H-4.6Z",
                 "M0-5L5 0L0 5L-5 0Z"][colour % 4]
        classes = f"bg edge l{colour}" if talk else f"f{colour}"
        title = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(f'<path class="{classes}" transform="translate({x:.1f} {y:.1f})" d="{shape}">{title}</path>')

    def legend(self, swatch):
        series = self.figure["series"]
        if len(series) < 2 and not any(s.get("talk") for s in series):
            return
        x, rows = 16.0, 0
        for i, one in enumerate(series):
            name = shorten(legend_name(one), WIDTH - 80)
            step = 26 + width_of(name) + 18
            if x > 16 and x + step > WIDTH - 12:
                x, rows = 16.0, rows + 1
            y = self.top + 12 + rows * 19
            swatch(i, x, y - 4)
            self.text(x + 26, y, name, "ink")
            x += step
        self.top += 22 + rows * 19

    def place(self, y_texts, bottom, right=18.0):
        """Sets the plot rectangle, with room for the y axis' texts and `bottom` pixels below it."""
        self.left = 16 + 20 + max((width_of(t) for t in y_texts), default=0)
        self.right = WIDTH - right
        self.y0 = self.top + 14
        self.y1 = self.y0 + PLOT_HEIGHT
        self.height = self.y1 + bottom

    def y_axis(self, axis, labels=True):
        for share, text in axis.ticks():
            y = self.y(share)
            self.line(self.left, y, self.right, y, "grid")
            self.text(self.left - 7, y + 4, text, "soft", "end")
        if labels:
            self.y_title(axis.title())

    def y_title(self, text):
        text = shorten(text, PLOT_HEIGHT + 20)
        self.text(22, (self.y0 + self.y1) / 2, text, "ink", "middle", -90)

    def x_title(self, text):
        text = shorten(text, self.right - self.left)
        self.text((self.left + self.right) / 2, self.height - 12, text, "ink", "middle")

    def x(self, share):
        return self.left + share * (self.right - self.left)

    def y(self, share):
        return self.y1 - share * (self.y1 - self.y0)

    def svg(self, standalone):
        """The drawing; with its own style if it is to be a file of its own."""
        size = f'viewBox="0 0 {WIDTH} {self.height:.0f}"'
        style = f"<style>{STYLE}</style>" if standalone else ""
        space = f' xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height:.0f}"' if standalone else ""
        name = escape(self.figure["title"])
        defs = f'<defs>{"".join(self.defs)}</defs>' if self.defs else ""
        return (f'<svg{space} {size} role="img" aria-label="{name}">{style}{defs}'
                f'<rect width="{WIDTH}" height="{self.height:.0f}" rx="8" class="bg"/>{"".join(self.parts)}</svg>')


def legend_name(series):
    name = series["name"]
    return name if not series.get("talk") or "talk" in name.lower() else f"{name} (talk)"


def _colours(series):
    """A colour for each series. The talk's has that of ours of the same name, so that the eye pairs them."""
    def plain(name):
        return re.sub(r"[\s,(\[]*\btalk\b[)\]]*", "", name, flags=re.I).strip().lower()
    ours, found = {}, []
    for one in series:
        if not one.get("talk"):
            ours.setdefault(plain(one["name"]), len(ours))
    taken = len(ours)
    for one in series:
        key = plain(one["name"])
        if key not in ours:
            ours[key], taken = taken, taken + 1
        found.append(ours[key] % COLOURS)
    return found


def _category_text(value, unit):
    if isinstance(value, str):
        return value
    if has_ladder(unit):
        return human(value, unit)
    return f"{value:,}" if isinstance(value, int) else short(value)


def _categories(figure):
    """All x of all series, each once: numbers sorted, words in the order in which they come."""
    found = list(dict.fromkeys(x for series in figure["series"] for x in series["x"]))
    return found if any(isinstance(x, str) for x in found) else sorted(found)


def _stride(wanted):
    """Every how many labels to show one: a step that reads well."""
    return next(m * 10 ** e for e in range(20) for m in (1, 2, 4, 5, 8) if m * 10 ** e >= wanted)


class _Labels:
    """Texts below slots of equal width. Where there is no room, numbers are thinned, and words broken or turned."""

    def __init__(self, texts, numbers, slot):
        widest = max((width_of(t) for t in texts), default=0)
        self.stride, self.turned, self.lines = 1, False, [[t] for t in texts]
        if widest + 8 > slot and numbers:
            self.stride = _stride((widest + 10) / slot)
        elif widest + 8 > slot:
            self.lines = [wrap(t, slot - 8, FONT) for t in texts]
            self.turned = any("…" in line for lines in self.lines for line in lines)
            self.lines = [lines if len(lines) <= 4 else [*lines[:3], lines[3] + " …"] for lines in self.lines]
        if self.turned:
            self.lines = [[shorten(t, 170)] for t in texts]
            self.stride = max(1, math.ceil(15 / slot))
        lowest = max((width_of(lines[0]) for lines in self.lines), default=0) * math.sin(math.radians(35)) + 14
        self.height = lowest if self.turned else 3 + 15 * max(map(len, self.lines), default=1)

    def draw(self, chart, places):
        for x, lines in list(zip(places, self.lines))[::self.stride]:
            if self.turned:
                text = shorten(lines[0], (x - 8) / math.cos(math.radians(35)))
                chart.text(x + 4, chart.y1 + 14, text, "soft", "end", -35)
            else:
                for n, line in enumerate(lines):
                    chart.text(x, chart.y1 + 17 + 15 * n, line, "soft", "middle")


def _x_title(spec, shown_on_labels):
    unit = ALIASES.get(spec["unit"], spec["unit"])
    return spec["label"] if shown_on_labels or not unit else f"{spec['label']} ({unit})"


def bars(figure, slug, stacked):
    chart = Chart(figure, slug)
    chart.legend(lambda i, x, y: chart.rect(x, y - 6, 18, 12, chart.fill(i)))
    categories = _categories(figure)
    series = figure["series"]
    # Stacked: ours in one stack, the talk's in another. Grouped: a bar for each series.
    stacks = [s for s in ([i for i, o in enumerate(series) if not o.get("talk")],
                          [i for i, o in enumerate(series) if o.get("talk")]) if s] if stacked else [
        [i] for i in range(len(series))]
    value = [dict(zip(one["x"], one["y"])) for one in series]
    tops = [sum(value[i].get(c) or 0 for i in stack) for stack in stacks for c in categories]
    known = [v for one in series for v in one["y"] if v is not None]
    known = tops if stacked and known else known

    estimate = Axis(figure["y"], known, zero=True)
    chart.place(estimate.texts, 0)
    slot = (chart.right - chart.left) / max(len(categories), 1)
    wide = min(slot * 0.8 / max(len(stacks), 1), 64)
    texts = max((width_of(estimate.text(v), 11) for v in known), default=0)
    fits = texts <= (wide if len(stacks) > 1 else slot * 0.95)
    turned = not fits and wide >= 10.5
    room = ((18 if fits else texts + 12) / PLOT_HEIGHT) if fits or turned else 0.03
    axis = Axis(figure["y"], known, zero=True, room=room)

    words = [_category_text(c, figure["x"]["unit"]) for c in categories]
    numbers = not any(isinstance(c, str) for c in categories)
    labels = _Labels(words, numbers, slot)
    chart.place(axis.texts, labels.height + 30)
    chart.y_axis(axis)
    base = chart.y(axis.share(0) if not axis.log else 0)
    for at, category in enumerate(categories):
        # A missing value of ours leaves a gap; where the talk has no number there is nothing to leave a gap for.
        shown = [s for s in stacks if any(not series[i].get("talk") or value[i].get(category) is not None for i in s)]
        start = chart.left + (at + 0.5) * slot - wide * len(shown) / 2
        for n, stack in enumerate(shown):
            x, total, present = start + n * wide, 0.0, [i for i in stack if value[i].get(category) is not None]
            for i in present:
                v = value[i][category]
                low = base if not stacked else chart.y(axis.share(total))
                total = v + (total if stacked else 0)
                high = chart.y(axis.share(total))
                tip = f"{legend_name(series[i])}, {words[at]}: {human(v, figure['y']['unit'])}"
                up, down = min(low, high), max(low, high)
                chart.rect(x + 0.5, up, max(wide - 1.5, 0.8), max(down - up, 0.8), chart.fill(i), tip)
                text = axis.text(v)
                if stacked and len(stack) > 1 and down - up >= 15 and width_of(text, 11) <= wide - 6:
                    classes = "halo value" if series[i].get("talk") else "in value"
                    chart.text(x + wide / 2, (up + down) / 2 + 4, text, classes, "middle")
            if present and (fits or turned):
                _value(chart, axis, x + wide / 2, total, turned)
    chart.line(chart.left, base, chart.right, base, "axis")
    labels.draw(chart, [chart.left + (at + 0.5) * slot for at in range(len(categories))])
    chart.x_title(_x_title(figure["x"], numbers and has_ladder(figure["x"]["unit"])))
    return _unless_empty(chart, known)


def _value(chart, axis, x, value, turned):
    """The number at the end of a bar: above it, or below a negative one."""
    y, text, down = chart.y(axis.share(value)), axis.text(value), value < 0
    if turned:
        chart.text(x + 4, y + (5 if down else -5), text, "soft value", "end" if down else "start", -90)
    else:
        chart.text(x, y + (13 if down else -5), text, "soft value", "middle")


def xy(figure, slug, lines):
    chart = Chart(figure, slug)

    def swatch(i, x, y):
        if lines:
            dash = " dash" if figure["series"][i].get("talk") else ""
            chart.line(x, y, x + 20, y, f"line l{chart.colours[i]}{dash}")
        chart.marker(i, x + 10, y)
    chart.legend(swatch)
    series = figure["series"]
    points = [[(x, y) for x, y in zip(one["x"], one["y"])] for one in series]
    known = [y for one in points for _, y in one if y is not None]
    axis = Axis(figure["y"], known)
    words = any(isinstance(x, str) for one in series for x in one["x"])
    if words:
        categories = _categories(figure)
        chart.place(axis.texts, 0)
        slot = (chart.right - chart.left) / len(categories)
        labels = _Labels(categories, False, slot)
        chart.place(axis.texts, labels.height + 30)
        slot = (chart.right - chart.left) / len(categories)
        where = {c: (i + 0.5) / len(categories) for i, c in enumerate(categories)}
        labels.draw(chart, [chart.x(where[c]) for c in categories])
        share, title = where.get, _x_title(figure["x"], False)
    else:
        across = Axis(figure["x"], [x for one in series for x in one["x"]], tight=True)
        shown = across.ticks()
        widest = max((width_of(text) for _, text in shown), default=0)
        chart.place(axis.texts, 48, right=max(24, widest / 2 + 6))
        stride = max(1, math.ceil((widest + 8) * len(shown) / (chart.right - chart.left)))
        for at, text in shown[::stride]:
            chart.line(chart.x(at), chart.y1, chart.x(at), chart.y1 + 4, "axis")
            chart.text(chart.x(at), chart.y1 + 17, text, "soft", "middle")
        share, title = across.share, across.title()
    chart.y_axis(axis)
    chart.line(chart.left, chart.y1, chart.right, chart.y1, "axis")
    chart.x_title(title)
    # The talk's go first, so that they do not cover ours.
    for i in sorted(range(len(series)), key=lambda i: not series[i].get("talk")):
        placed = [(chart.x(share(x)), chart.y(axis.share(y)), x, y) if y is not None else None for x, y in points[i]]
        if lines:
            _path(chart, i, placed)
        if not lines or len(placed) <= 40:
            for x, y, at, value in filter(None, placed):
                left = at if isinstance(at, str) else human(at, figure["x"]["unit"])
                tip = f"{legend_name(series[i])}, {left}: {human(value, figure['y']['unit'])}"
                chart.marker(i, x, y, tip)
    return _unless_empty(chart, known)


def _path(chart, series, placed):
    """A line through the points, interrupted where a value is missing."""
    path, draw = [], False
    for point in placed:
        if point:
            path.append(f"{'L' if draw else 'M'}{point[0]:.1f} {point[1]:.1f}")
        draw = point is not None
    dash = " dash" if chart.figure["series"][series].get("talk") else ""
    chart.parts.append(f'<path class="line l{chart.colours[series]}{dash}" d="{"".join(path)}"/>')


def _heat(share):
    """The colour at a share of the scale, and whether text on it must be light."""
    place = min(max(share, 0.0), 1.0) * (len(HEAT) - 1)
    at = min(int(place), len(HEAT) - 2)
    ends = [[int(HEAT[i][k:k + 2], 16) for k in (1, 3, 5)] for i in (at, at + 1)]
    rgb = [round(a + (b - a) * (place - at)) for a, b in zip(*ends)]
    light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 128
    return "#%02x%02x%02x" % tuple(rgb), light


def heatmap(figure, slug):
    chart = Chart(figure, slug)
    series = figure["series"][0]
    columns = [_category_text(x, figure["x"]["unit"]) for x in series["x"]]
    rows = [shorten(_category_text(y, figure["y"]["unit"]), 160) for y in series["y"]]
    known = [z for row in series["z"] for z in row if z is not None]
    spec = figure.get("z") or {"label": series["name"], "unit": ""}
    axis = Axis(spec, known)
    if not axis.log and known and min(known) < max(known):
        axis.lo, axis.hi = min(known) * axis.factor, max(known) * axis.factor
        inside = [(at, text) for at, text in zip(axis.at, axis.texts) if axis.lo <= at <= axis.hi]
        axis.at, axis.texts = [at for at, _ in inside], [text for _, text in inside]

    scale_room = 66 + max((width_of(text) for text in axis.texts), default=0)
    chart.place(rows, 0, right=scale_room)
    slot = (chart.right - chart.left) / max(len(columns), 1)
    labels = _Labels(columns, not any(isinstance(x, str) for x in series["x"]), slot)
    chart.place(rows, labels.height + 30, right=scale_room)
    tall = (chart.y1 - chart.y0) / max(len(rows), 1)
    texts = max((width_of(axis.text(z), 11) for z in known), default=0)
    written = texts + 6 <= slot and tall >= 15
    for r, row in enumerate(series["z"]):
        for c, z in enumerate(row):
            x, y = chart.left + c * slot, chart.y0 + r * tall
            colour, light = _heat(axis.share(z)) if z is not None else (None, False)
            tip = f"{columns[c]}, {rows[r]}: {human(z, spec['unit'])}"
            # A hair too large, so that no seams show between cells.
            chart.rect(x, y, slot + 0.3, tall + 0.3, f'fill="{colour}"' if colour else 'class="none"', tip)
            if written and z is not None:
                ink = "#ffffff" if light else "#101418"
                chart.parts.append(f'<text class="value" fill="{ink}" x="{x + slot / 2:.1f}" y="{y + tall / 2 + 4:.1f}" '
                                   f'text-anchor="middle">{escape(axis.text(z))}</text>')
    stride = _stride(15 / tall)
    for r, text in enumerate(rows):
        if r % stride == 0:
            chart.text(chart.left - 7, chart.y0 + (r + 0.5) * tall + 4, text, "soft", "end")
    labels.draw(chart, [chart.left + (c + 0.5) * slot for c in range(len(columns))])
    by_number = [not any(isinstance(v, str) for v in series[k]) and has_ladder(figure[k]["unit"]) for k in "xy"]
    chart.x_title(_x_title(figure["x"], by_number[0]))
    chart.y_title(_x_title(figure["y"], by_number[1]))
    x = chart.right + 14
    stops = "".join(f'<stop offset="{i / (len(HEAT) - 1):.3f}" stop-color="{c}"/>' for i, c in enumerate(HEAT))
    chart.defs.append(f'<linearGradient id="{chart.slug}-scale" x1="0" y1="1" x2="0" y2="0">{stops}</linearGradient>')
    chart.rect(x, chart.y0, 14, chart.y1 - chart.y0, f'fill="url(#{chart.slug}-scale)"')
    for share, text in axis.ticks():
        chart.text(x + 19, chart.y(share) + 4, text, "soft")
    chart.text(WIDTH - 14, (chart.y0 + chart.y1) / 2, shorten(axis.title(), PLOT_HEIGHT), "ink", "middle", -90)
    return _unless_empty(chart, known)


def _unless_empty(chart, values):
    if not values:
        chart.text((chart.left + chart.right) / 2, (chart.y0 + chart.y1) / 2, "no data", "soft", "middle")
    return chart


def draw(figure, slug):
    """The chart of a checked figure; `slug` makes its names unique in a page."""
    kind = figure["kind"]
    if kind == "heatmap":
        return heatmap(figure, slug)
    if kind in ("line", "scatter"):
        return xy(figure, slug, kind == "line")
    return bars(figure, slug, kind != "bar")
