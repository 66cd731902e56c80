"""A roofline plot (Williams et al., CACM 2009) of a run's records, as SVG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.suite.case import GROUPS

Record = dict[str, Any]
WIDTH, HEIGHT, MARGIN = 900, 560, 60
COLOURS = ("#4477aa", "#66ccee", "#aa3377", "#228833", "#ccbb44", "#ee6677", "#bbbbbb", "#000000",
           "#997700", "#6699cc", "#994455", "#004488", "#ee99aa")  # fmt: skip


def roofline(records: Sequence[Record]) -> str:
    """Operations per byte against operations per second, both on logarithmic scales. The roofs are
    the medians of the peaks and of the copies larger than the cache, of the most threads."""
    threads = max(r["threads"] for r in records)
    mine = [r for r in records if r["threads"] == threads and r["operations"]]
    points = [(r["operations"] / r["bytes"], r["operations"] / r["ours_s"], r) for r in mine]
    peaks = [r["peak_flops"] for r in mine if r["peak_flops"]]
    copies = [r["copy_bytes_per_s"] for r in mine if r["cold"]]
    xs, ys = [p[0] for p in points], [p[1] for p in points] + peaks
    view = _View(_decades(xs), _decades(ys))
    body = [*view.axes(), *view.roofs(peaks, copies)]
    for x, y, r in points:
        colour = COLOURS[GROUPS.index(r["group"]) % len(COLOURS)]
        title = f"{r['case']}: {y / 1e9:.3g} G/s, {r['limit_fraction']:.0%} of {r['limit']}"
        body.append(f'<circle cx="{view.x(x):.1f}" cy="{view.y(y):.1f}" r="4" fill="{colour}" '
                    f'fill-opacity="0.8"><title>{title}</title></circle>')  # fmt: skip
    shown = [g for g in GROUPS if any(r["group"] == g for r in mine)]
    for k, g in enumerate(shown):
        y = HEIGHT - MARGIN - 14 * (len(shown) - k)
        colour = COLOURS[GROUPS.index(g) % len(COLOURS)]
        body.append(f'<circle cx="{WIDTH - 150}" cy="{y - 4}" r="4" fill="{colour}"/>'
                    f'<text x="{WIDTH - 140}" y="{y}">{g}</text>')  # fmt: skip
    cpu = records[0]["machine"]["cpu"]
    body.append(f'<text x="{MARGIN}" y="20" font-weight="bold">{cpu}, {threads} threads</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))


class _View:
    """Where a pair of values is on the page."""

    def __init__(self, across: tuple[int, int], up: tuple[int, int]) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> float:
        low, high = self.across
        return MARGIN + (math.log10(value) - low) / max(1, high - low) * (WIDTH - 2 * MARGIN)

    def y(self, value: float) -> float:
        low, high = self.up
        share = (math.log10(value) - low) / max(1, high - low)
        return HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    def axes(self) -> Iterator[str]:
        left, bottom = MARGIN, HEIGHT - MARGIN
        for d in range(self.across[0], self.across[1] + 1):
            x = self.x(10.0**d)
            yield f'<path d="M{x:.1f} {MARGIN} V{bottom}" stroke="#ddd"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**d:g}</text>'
        for d in range(self.up[0], self.up[1] + 1):
            y = self.y(10.0**d)
            label = f"{10.0 ** (d - 9):g}"
            yield f'<path d="M{left} {y:.1f} H{WIDTH - MARGIN}" stroke="#ddd"/>'
            yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        middle = f'text-anchor="middle" y="{HEIGHT - 14}"'
        yield f'<text x="{WIDTH / 2}" {middle}>operations per byte that must move</text>'
        turned = f'y="{HEIGHT / 2}" transform="rotate(-90 16 {HEIGHT / 2})"'
        yield f'<text x="16" {turned} text-anchor="middle">G operations per second</text>'

    def roofs(self, peaks: Sequence[float], copies: Sequence[float]) -> Iterator[str]:
        style = 'fill="none" stroke="#333" stroke-width="2"'
        low, high = (10.0**d for d in self.across)
        floor, top = (10.0**d for d in self.up)
        peak = statistics.median(peaks) if peaks else top
        if peaks:
            start = peak / statistics.median(copies) if copies else low
            x, end, y = self.x(max(low, start)), self.x(high), self.y(peak)
            yield f'<path d="M{x:.1f} {y:.1f} H{end:.1f}" {style}/>'
            label = f"multiply-adds: {peak / 1e9:.0f} GFLOP/s"
            yield f'<text x="{end - 4:.1f}" y="{y - 6:.1f}" text-anchor="end">{label}</text>'
        if copies:
            rate = statistics.median(copies)
            first, last = max(low, floor / rate), min(high, peak / rate)
            yield (f'<path d="M{self.x(first):.1f} {self.y(first * rate):.1f} '
                   f'L{self.x(last):.1f} {self.y(last * rate):.1f}" {style}/>'
                   f'<text x="{self.x(first) + 8:.1f}" y="{self.y(first * rate) - 12:.1f}">'
                   f"copy: {rate / 1e9:.0f} GB/s</text>")  # fmt: skip
