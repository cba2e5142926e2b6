"""Result documents made of the tables of bit errors that `ublk-zns rber --csv` prints: what scripts/figures draws of them.

Which table a CSV file is, its columns say. Figures: T1, planar flash, the rate of each page, a line for each block and kind
of page; T2, stacked flash, block by layer; T3, the rate of each value written, and which way its bits turned; and the rate
over cycles, retention time and reads, with a table that sets the model's formula beside it.
"""

import csv
import math
import os

NUMBERS = {
    "pages": ("block", "page", "layer", "pe", "retention_hours", "reads", "bits_read", "bit_errors"),
    "patterns": ("ones_fraction", "pe", "retention_hours", "reads", "bits_read", "bit_errors", "zero_to_one",
                 "one_to_zero"),
    "conditions": ("pe", "retention_hours", "reads", "bits_read", "bit_errors", "model_rber"),
}
WORDS = {"pages": ("page_type",), "patterns": ("pattern", "value"), "conditions": ()}
TITLES = {"pages": "Raw bit-error rate by page", "patterns": "Raw bit-error rate by value written",
          "conditions": "Raw bit-error rate by cycles, retention time and reads"}
LINES = 8  # As many colours as a chart has.
BLOCKS = 64


class Bad(Exception):
    """A table that does not fit: the message names the file, the line and the column."""


def _rows(path):
    """The kind of table, and its rows with numbers for numbers."""
    name = os.path.basename(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [(n, line) for n, line in enumerate(csv.reader(file), 1)
                     if line and not line[0].lstrip().startswith("#")]
    except OSError as error:
        raise Bad(f"{name}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise Bad(f"{name}: not CSV: {error}") from error
    if not lines:
        raise Bad(f"{name}: line 1: must name the columns, and the file is empty")
    header = [column.strip() for column in lines[0][1]]
    kind = next((k for k in ("patterns", "pages", "conditions") if {*NUMBERS[k], *WORDS[k]} <= {*header}), None)
    if kind is None:
        wanted = "; or ".join(", ".join((*WORDS[k], *NUMBERS[k])) for k in NUMBERS)
        raise Bad(f"{name}: line {lines[0][0]}: is no table of bit errors: its columns must be {wanted}")
    if len(lines) == 1:
        raise Bad(f"{name}: line {lines[0][0] + 1}: the table has no rows")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise Bad(f"{name}: line {number}: has {len(cells)} cells, and the header {len(header)}")
        row = dict(zip(header, (cell.strip() for cell in cells)))
        for column in NUMBERS[kind]:
            row[column] = _number(row[column], f"{name}: line {number}, column {column}")
        if kind == "patterns" and row["value"]:
            row["value"] = _number(row["value"], f"{name}: line {number}, column value")
        if row["bits_read"] < 1 or row["bit_errors"] > row["bits_read"]:
            raise Bad(f"{name}: line {number}, column bit_errors: must be at most bits_read, and that at least 1")
        rows.append(row)
    return kind, rows


def _number(text, where):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1e18:
        raise Bad(f"{where}: must be a number from 0, and is {text[:40]!r}")
    return int(number) if number.is_integer() else number


def _rate(rows, errors="bit_errors"):
    """Errors over bits of some rows; None where there are none, which a log scale cannot show."""
    total = sum(row[errors] for row in rows)
    return total / sum(row["bits_read"] for row in rows) if total else None


def _split(rows, *columns):
    """Rows by the values of some columns, in the order in which they come."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def _figure(identifier, kind, title, x, series, **more):
    axis = {"label": "raw bit-error rate", "unit": "", "scale": "log"}
    return {"id": identifier, "kind": kind, "title": title, "x": x, "y": axis, "series": series, **more}


def _where(condition):
    cycles, hours, reads = condition
    return f"{cycles:,} cycles, {hours:,} hours, {reads:,} reads"


def _pages(rows):
    figures = []
    stacked = any(row["layer"] for row in rows)
    for n, (condition, some) in enumerate(_split(rows, "pe", "retention_hours", "reads").items()):
        mark = f"-{n + 1}" if n else ""
        if stacked:
            figures += _layers(mark, condition, some)
            continue
        series = []
        for (block, kind), its in list(_split(some, "block", "page_type").items())[:LINES]:
            its.sort(key=lambda row: row["page"])
            series.append({"name": f"block {block}, {kind}", "x": [row["page"] for row in its],
                           "y": [_rate([row]) for row in its]})
        figures.append(_figure(f"T1{mark}", "line", f"Pages of different blocks, 2D flash ({_where(condition)})",
                               {"label": "page", "unit": ""}, series))
    return figures


def _layers(mark, condition, rows):
    cells = _split(rows, "block", "layer")
    blocks = sorted({block for block, _ in cells})[:BLOCKS]
    # The bottom of the stack is at the bottom of the map.
    layers = sorted({layer for _, layer in cells}, reverse=True)
    grid = [[_rate(cells.get((block, layer), [])) if (block, layer) in cells else None for block in blocks]
            for layer in layers]
    rate = {"label": "raw bit-error rate", "unit": "", "scale": "log"}
    heat = _figure(f"T2{mark}", "heatmap", f"Layers of different blocks, 3D flash ({_where(condition)})",
                   {"label": "block", "unit": ""},
                   [{"name": "raw bit-error rate", "x": blocks, "y": layers, "z": grid}], z=rate)
    heat["y"] = {"label": "layer, from the bottom", "unit": ""}
    series = []
    for (kind,), its in list(_split(rows, "page_type").items())[:LINES]:
        by_layer = {layer: some for (layer,), some in _split(its, "layer").items()}
        series.append({"name": kind, "x": sorted(by_layer), "y": [_rate(by_layer[layer]) for layer in sorted(by_layer)]})
    lines = _figure(f"T2-layers{mark}", "line", f"Layers and kinds of pages, mean of {len(blocks)} blocks ({_where(condition)})",
                    {"label": "layer, from the bottom", "unit": ""}, series)
    return [heat, lines]


def _patterns(rows):
    figures = []
    for n, (condition, some) in enumerate(_split(rows, "pe", "retention_hours", "reads").items()):
        mark = f"-{n + 1}" if n else ""
        values = [row for row in some if row["value"] != ""]
        x = [row["value"] for row in values]
        series = [{"name": name, "x": x, "y": [_rate([row], errors) for row in values]} for name, errors in
                  (("all errors", "bit_errors"), ("0 read as 1", "zero_to_one"), ("1 read as 0", "one_to_zero"))]
        figures.append(_figure(f"T3{mark}", "scatter", f"Values written and their errors ({_where(condition)})",
                               {"label": "value of every byte", "unit": ""}, series))
        ones = _split(values, "ones_fraction")
        known = sorted(share for (share,) in ones)
        series = [{"name": name, "x": [round(100 * share, 1) for share in known],
                   "y": [_rate(ones[share,], errors) for share in known]} for name, errors in
                  (("all errors", "bit_errors"), ("0 read as 1", "zero_to_one"), ("1 read as 0", "one_to_zero"))]
        figures.append(_figure(f"T3-ones{mark}", "line", f"Share of ones and errors ({_where(condition)})",
                               {"label": "bits that are 1", "unit": "%"}, series))
    return figures


def _conditions(rows):
    figures = []
    axes = {"pe": ("program/erase cycles", "", "cycles"), "retention_hours": ("retention time", "h", "h"),
            "reads": ("reads since the erase", "", "reads")}
    for column, (label, unit, _) in axes.items():
        others = [other for other in axes if other != column]
        series = []
        for fixed, some in _split(rows, *others).items():
            some.sort(key=lambda row: row[column])
            if len({row[column] for row in some}) > 1 and len(series) < LINES:
                name = ", ".join(f"{value:,} {axes[other][2]}" for other, value in zip(others, fixed))
                series.append({"name": name, "x": [row[column] for row in some], "y": [_rate([row]) for row in some]})
        if series:
            figures.append(_figure(f"by-{column}", "line", f"Raw bit-error rate over {label}",
                                   {"label": label, "unit": unit}, series))
    return figures


def _beside_formula(rows):
    """What was measured beside what the model's formula gives for the same pages."""
    columns = ["cycles", "hours", "reads", "measured", "formula", "measured / formula"]
    lines = []
    for row in rows[:LINES * LINES]:
        found, formula = row["bit_errors"] / row["bits_read"], row["model_rber"]
        lines.append([row["pe"], row["retention_hours"], row["reads"], found, formula, found / formula if formula else None])
    return {"title": "Measured beside the formula", "columns": columns, "rows": lines}


def document(path, started):
    """The document of a table: like a result document of a benchmark, without a machine that would have mattered."""
    kind, rows = _rows(path)
    figures = {"pages": _pages, "patterns": _patterns, "conditions": _conditions}[kind](rows)
    bits = sum(row["bits_read"] for row in rows)
    errors = sum(row["bit_errors"] for row in rows)
    return {
        "schema": "storlab-result-1", "name": f"rber/{kind}", "title": TITLES[kind],
        "about": "A chip of the error model, measured as a test board measures a real one: programmed, aged, read back and "
                 "compared. docs/error-model.md describes the model.",
        "started": started, "parameters": {}, "seed": None, "machine": None,
        "summary": [{"label": "Bits read", "value": bits, "unit": ""},
                    {"label": "Raw bit-error rate", "value": errors / bits, "unit": ""}],
        "tables": [_beside_formula(rows)] if kind == "conditions" else [], "figures": figures, "samples": [],
    }
