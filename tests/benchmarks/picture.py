"""The picture of a comparison: bars on a logarithmic scale, as SVG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from tests.benchmarks.scenarios import SCENARIOS, Run

_NAMES = {
    "realtime": "Walcast, one process",
    "redis": "Walcast, replicator + Daphne + Valkey",
    "workers": "Walcast, two workers",
    "notify": "LISTEN/NOTIFY + websockets",
    "channels": "LISTEN/NOTIFY + Channels",
    "channels-redis": "LISTEN/NOTIFY + Channels + Redis",
}
_COLOURS = {"realtime": "#0f766e", "redis": "#14b8a6", "workers": "#5eead4"}
_OTHER = "#94a3b8"
_WIDTH, _LEFT, _RIGHT, _BAR, _GAP = 860, 250, 170, 16, 6


def bars(measured: Mapping[str, Mapping[str, Sequence[Run]]]) -> str:
    """``measured[scenario][form]`` as an SVG: messages a second, each bar with its figure and its p50."""
    rates = [_rate(runs) for of_scenario in measured.values() for runs in of_scenario.values() if runs]
    if not rates:
        return '<svg xmlns="http://www.w3.org/2000/svg"/>'
    low, high = 10 ** math.floor(math.log10(min(rates))), max(rates)
    scale = (_WIDTH - _LEFT - _RIGHT) / math.log10(high / low)
    parts, y = [], 8.0
    for name, of_scenario in measured.items():
        if not any(of_scenario.values()):
            continue
        parts.append(f'<text x="8" y="{y + 16:g}" class="scenario">{escape(f"{name}: {SCENARIOS[name]}")}</text>')
        y += 26
        for form, runs in of_scenario.items():
            if not runs:
                continue
            width = max(2.0, math.log10(_rate(runs) / low) * scale)
            figure = f"{_rate(runs):,.0f}/s, p50 {_shown(statistics.median(run.p50_ms or 0.0 for run in runs))} ms"
            colour = _COLOURS.get(form, _OTHER)
            parts += [
                f'<text x="{_LEFT - 8}" y="{y + 13:g}" class="form">{escape(_NAMES.get(form, form))}</text>',
                f'<rect x="{_LEFT}" y="{y:g}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>',
                f'<text x="{_LEFT + width + 6:.1f}" y="{y + 13:g}">{figure}</text>',
            ]
            y += _BAR + _GAP
        y += 14
    height = y + 18
    note = "Messages received a second by all clients together (logarithmic), and median latency."
    style = (
        "text{font:12px system-ui,sans-serif;fill:#1e293b}.form{text-anchor:end}.scenario{font-weight:600}"
        ".note{fill:#64748b}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{note}">\n'
        f"<style>{style}</style>\n"
        f'<rect width="{_WIDTH}" height="{height:g}" fill="#fff"/>\n'
        + "\n".join(parts)
        + f'\n<text x="8" y="{height - 10:g}" class="note">{note}</text>\n</svg>\n'
    )


def _rate(runs: Sequence[Run]) -> float:
    return statistics.median(run.messages_per_s for run in runs)


def _shown(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"
