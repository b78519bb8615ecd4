"""Converts a terminal screen, as printed by `tmux capture-pane -e -p`, to an SVG."""

import re
import sys
from html import escape

WIDTH, HEIGHT, MARGIN, BAR = 8.4, 18, 14, 30
FOREGROUND, BACKGROUND = "#d0d7de", "#0d1117"
COLOURS = ["#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4"]
BRIGHT = ["#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#f0f6fc"]


def style_after(style, codes):
    """Returns the style after an escape sequence with these codes."""
    style = dict(style)
    for code in [int(code or 0) for code in codes.split(";")]:
        if code == 0:
            style = {}
        elif code == 1:
            style["bold"] = True
        elif code == 2:
            style["dim"] = True
        elif code == 7:
            style["reverse"] = True
        elif code in (22, 27):
            for name in ("bold", "dim") if code == 22 else ("reverse",):
                style.pop(name, None)
        elif 30 <= code <= 37:
            style["colour"] = COLOURS[code - 30]
        elif 90 <= code <= 97:
            style["colour"] = BRIGHT[code - 90]
        elif code == 39:
            style.pop("colour", None)
    return style


def runs(line, style):
    """Returns the parts of a line with their styles, and the style after the line."""
    parts = []
    for index, part in enumerate(re.split("\x1b\\[([0-9;]*)m", line)):
        if index % 2:
            style = style_after(style, part)
        elif part:
            parts.append((part, style))
    return parts, style


def main():
    title = sys.argv[1]
    lines = sys.stdin.read().rstrip("\n").split("\n")
    style, rows, columns = {}, [], 0
    for line in lines:
        parts, style = runs(line.replace("\x0e", "").replace("\x0f", ""), style)
        rows.append(parts)
        columns = max(columns, sum(len(text) for text, _ in parts))
    width, height = columns * WIDTH + 2 * MARGIN, len(rows) * HEIGHT + BAR + MARGIN
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
          f'viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace, \'DejaVu Sans Mono\', Menlo, Consolas, monospace" '
          f'font-size="14" fill="{FOREGROUND}">')
    print(f"<title>{escape(title)}</title>")
    print(f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>')
    for index, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        print(f'<circle cx="{MARGIN + 8 + index * 18}" cy="17" r="5.5" fill="{colour}"/>')
    print(f'<text x="{width / 2:.0f}" y="21" text-anchor="middle" fill="#8b949e">{escape(title)}</text>')
    for row, parts in enumerate(rows):
        y, column = BAR + row * HEIGHT, 0
        for text, style in parts:
            x, columns_wide = MARGIN + column * WIDTH, len(text)
            colour = style.get("colour", FOREGROUND)
            if style.get("reverse"):
                print(f'<rect x="{x:.1f}" y="{y}" width="{columns_wide * WIDTH:.1f}" height="{HEIGHT}" fill="{colour}"/>')
                colour = BACKGROUND
            if text.strip():
                extra = ' font-weight="bold"' if style.get("bold") else ""
                extra += ' opacity="0.6"' if style.get("dim") else ""
                print(f'<text x="{x:.1f}" y="{y + 14}" fill="{colour}" xml:space="preserve" '
                      f'textLength="{columns_wide * WIDTH:.1f}"{extra}>{escape(text)}</text>')
            column += columns_wide
    print("</svg>")


main()
