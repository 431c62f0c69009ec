#!/usr/bin/env python3
"""Draw docs/bench.svg from the ratios that `make bench-chart` measures.

Its argument is the file that FSMOUNT_BENCH_CHART names. A bar is the time of a program divided by the
floor of its case, both medians of the same run: 1 is as fast as the floor, and less is better. The scale is
logarithmic. A bar that leaves the picture has its number all the same.
"""
import json, math, pathlib, sys
from xml.sax.saxutils import escape

LEAST, MOST = 0.25, 32  # of the scale
LEFT, RIGHT, BAR = 250, 660, 13  # pixels
STYLE = """<style>
text { font: 12px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #59636e }
.case { fill: #1f2328; font-weight: 600 } .fsmount { fill: #0969da } .peer { fill: #afb8c1 } .floor { stroke: #59636e }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .case { fill: #f0f6fc } .fsmount { fill: #4493f8 } .peer { fill: #59636e } .floor { stroke: #9198a1 }
}
</style>"""


def at(ratio):
    """Return where ratio is on the scale, in pixels."""
    share = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return LEFT + share * (RIGHT - LEFT)


def draw(data):
    parts, y = [], 20
    for case in data["cases"]:
        parts.append(f'<text class="case" x="0" y="{y + 10}">{escape(case["case"])}</text>')
        parts.append(f'<text x="0" y="{y + 26}">1 = {escape(case["floor"])}: {case["ms"]:.3g} ms</text>')
        for name in sorted(case["times"], key=lambda name: (name != "fsmount", name)):
            ratio, kind = case["times"][name], "fsmount" if name == "fsmount" else "peer"
            end = at(ratio)
            parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR - 2}"/>')
            parts.append(f'<text x="{end + 4:.1f}" y="{y + 10}">{name} {ratio:{".2f" if ratio < 10 else ".0f"}}</text>')
            y += BAR
        y += 16
    line = f'<line class="floor" x1="{at(1):.1f}" x2="{at(1):.1f}" y1="14" y2="{y - 12}" stroke-dasharray="3 3"/>'
    about = f'{data["date"]}, {data["machine"]}; {", ".join(data["versions"])}'
    ours = "; ".join(f'{c["case"]}: {c["times"]["fsmount"]:.3g}' for c in data["cases"])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {y + 14}" width="760" height="{y + 14}" role="img" \
aria-labelledby="title desc">
<title id="title">Time of each program divided by the floor of its case</title>
<desc id="desc">fsmount: {escape(ours)}. {escape(about)}.</desc>
{STYLE}
{line}
{chr(10).join(parts)}
<text x="0" y="{y + 6}">{escape(about)}</text>
</svg>
"""


if len(sys.argv) != 2:
    sys.exit(__doc__)
figures = json.loads(pathlib.Path(sys.argv[1]).read_text())
(pathlib.Path(__file__).resolve().parent / "bench.svg").write_text(draw(figures))
