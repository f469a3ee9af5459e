"""What a sweep found, as a table, a picture, and a page with a recommendation."""

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from xattn.errors import SaveError, UsageError
from xattn.placing import drawn
from xattn.readable import counted, readable_bytes, readable_count
from xattn.tuning.charts import UNITS, draw_sweep
from xattn.tuning.sweep import Summary, Sweep, badness

CSV, PNG, PAGE = "sweep.csv", "sweep.png", "sweep.html"
COLUMNS = (
    *("placement", "layers", "seeds", "quality", "low", "high", "bytes_per_position"),
    *("parameters", "flops_per_token", "seconds_per_token", "on_front"),
)


def report(found: Sweep, directory: Path) -> list[Path]:
    """Write all three into ``directory``; raises :class:`SaveError` where that fails."""
    if not found.placements:
        raise UsageError(f"{directory}: has no trial that is done; run the sweep first.")
    picture = directory / PNG
    draw_sweep(found, picture)
    pages = {CSV: table(found), PAGE: page(found, picture.read_bytes())}
    for name, text in pages.items():
        try:
            (directory / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SaveError(f"{directory / name}: cannot be written: {error.strerror}.") from error
    return [directory / name for name in (CSV, PNG, PAGE)]


def table(found: Sweep) -> str:
    """As CSV, one line for each placement, the best first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in ordered(found):
        low, high = one.interval or ("", "")
        writer.writerow(
            [
                *(one.placement, one.cost.layers, one.seeds, one.quality, low, high),
                *(one.cost.bytes_per_position, one.cost.parameters, one.cost.flops_per_token),
                *(one.cost.seconds_per_token, one.on_front),
            ]
        )
    return out.getvalue()


def ordered(found: Sweep) -> list[Summary]:
    """The best first."""
    return sorted(found.placements, key=lambda one: badness(found.metric, one.quality))


def recommendation(found: Sweep) -> str:
    """In two sentences, with what is not known said."""
    best, chosen, unit = found.best, found.recommended, UNITS.get(found.metric, found.metric)
    if best.interval is None:
        return (
            f"With one seed, {best.placement} is best: {unit} {best.quality:.2f}. One seed cannot "
            "tell luck from a difference: run the best few with three."
        )
    low, high = best.interval
    said = (
        f"{best.placement} is best: {unit} {best.quality:.2f} (95 % of {low:.2f} to {high:.2f}, "
        f"{counted(best.seeds, 'seed')})."
    )
    if chosen.placement == best.placement:
        others = len(found.placements) - len(found.sure)
        unsure = (
            f" {counted(others, 'placement')} had one seed, which tells nothing." if others else ""
        )
        return f"{said} No cheaper placement that had as many comes within its interval.{unsure}"
    saved = 1 - chosen.cost.bytes_per_position / best.cost.bytes_per_position
    return (
        f"{said} {chosen.placement} is within that ({chosen.quality:.2f}), and takes {saved:.0%} "
        "fewer bytes of keys and values: take that."
    )


def page(found: Sweep, picture: bytes) -> str:
    """One HTML file, with its picture in it."""
    rows = "\n".join(_row(one) for one in ordered(found))
    encoded = base64.b64encode(picture).decode()
    unit = html.escape(UNITS.get(found.metric, "validation loss (nats a token)"))
    return _PAGE.format(
        count=counted(len(found.placements), "placement"),
        trials=counted(len(found.trials), "trial"),
        advice=html.escape(recommendation(found)),
        picture=encoded,
        unit=unit,
        rows=rows,
    )


def _row(one: Summary) -> str:
    spread = "" if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"
    cells: Sequence[str] = (
        html.escape(one.placement),
        f"<code>{drawn(one.mask)}</code>",
        f"{one.quality:.3f}",
        spread,
        str(one.seeds),
        readable_bytes(one.cost.bytes_per_position),
        readable_count(one.cost.parameters),
        readable_count(one.cost.flops_per_token),
        f"{1000 * one.cost.seconds_per_token:.2f} ms",
    )
    mark = ' class="front"' if one.on_front else ""
    return f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Placements</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }}
img {{ max-width: 100%; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd;
         white-space: nowrap; }}
.front td:first-child {{ font-weight: 600; }}
.front td:first-child::after {{ content: " ◆"; color: #e45756; }}
p.advice {{ border-left: 4px solid #e45756; padding-left: 1rem; }}
</style>
<h1>{count}, {trials}</h1>
<p class="advice">{advice}</p>
<img alt="Quality against bytes of keys and values" src="data:image/png;base64,{picture}">
<div><table>
<tr><th>placement</th><th>layers</th><th>{unit}</th><th>95 %</th><th>seeds</th>
<th>bytes a position</th><th>parameters</th><th>FLOPs a token</th><th>time a token</th></tr>
{rows}
</table></div>
<p>◆ none is as good for fewer bytes. Times are of a step over a memory of 512 positions.</p>
</html>
"""
