"""A profile as one HTML page, with nothing outside of it."""

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from xattn.ledger.account import HEADER
from xattn.profiling.run import Profile
from xattn.readable import counted, readable_bytes

_STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --faint: #666; --line: #ddd; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
tr:hover td { background: #f6f6f6; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td + td, th + th { text-align: right; }
td + td { white-space: nowrap; }
td.text, th.text { text-align: left; }
.pictures { display: grid; gap: 1.5rem;
            grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; max-width: 40rem; height: auto; }
figcaption { color: var(--faint); font-size: .9rem; }
@media (max-width: 30rem) {
  .pictures { grid-template-columns: 1fr; }
  body { padding: .6rem; }
  /* A row is a card: its first cell above, the others below each other with their names. */
  table, tbody, tr, td { display: block; }
  tr:first-child { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .45rem 0; }
  td, td + td { border: 0; padding: .08rem 0; white-space: normal; text-align: left; }
  td:first-child { font-weight: 600; overflow-wrap: anywhere; }
  td + td { display: flex; justify-content: space-between; gap: 1rem; text-align: right; }
  td + td::before { content: attr(data-name); color: var(--faint); text-align: left;
                    white-space: nowrap; flex-shrink: 0; }
  td:empty { display: none; }
}
"""
PHASES = {
    "load": "reading the weights, once",
    "canonicalise": "making the sources model inputs, and naming them",
    "encode": "the encoder's pass over all sources",
    "project": "keys and values of every layer, made of the states",
    "prefill": "the decoder's first pass, over the prompt",
    "step": "one token of each beam, in any of the passes after the first",
    "step: self-attention": "of the tokens so far",
    "step: cross-attention": "reading the memories",
    "step: feed-forward": "of all layers",
    "step: vocabulary": "embeddings, and logits of the new token",
    "step: between": "of a pass, what is no part above: masks, positions, calls",
    "step: search": "outside of the pass: choosing tokens, moving beams, ending",
    "search": "all of decoding but the passes: choosing tokens, moving beams, ending",
    "elsewhere": "in no phase",
}
"""What each phase is."""
CAPTIONS = {
    "phases": "Time by phase: medians. What comes before the first token, and the parts of a step.",
    "bytes": "Bytes against length, predicted by the ledger, everything else as it was measured.",
    "latency": "A step of the decoder against the length of the memory that it reads.",
    "store": "Encoding the same inputs again, against finding them in a store on disk.",
}


def write_page(profile: Profile, pictures: Mapping[str, Path], path: Path) -> Path:
    """Write the page; ``pictures`` are stems of SVG files by name, which it takes in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_page(profile, pictures)) + "\n", encoding="utf-8")
    return path


def _page(profile: Profile, pictures: Mapping[str, Path]) -> Iterator[str]:
    title = f"Profile of {html.escape(profile.model)}"
    yield "<!doctype html><html lang=en><meta charset=utf-8>"
    yield '<meta name=viewport content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{_STYLE}</style>"
    yield f"<h1>{title}</h1>"
    yield f"<p class=faint>{html.escape(_about(profile))}</p>"
    yield "<h2>Bytes, foretold and found</h2>"
    yield from _table(("what", "foretold", "found", "difference"), size_rows(profile))
    yield "<h2>Tensors by phase</h2>"
    yield f"<p>{html.escape(tensor_sentence(profile))}</p>"
    yield from _table(TENSOR_HEADER, tensor_rows(profile))
    yield "<h2>Who holds most at the peak</h2>"
    yield from _table(HOLDER_HEADER, holder_rows(profile), text="asked for by")
    yield "<h2>Time by phase</h2>"
    explained = [(*row, PHASES[row[0]]) for row in phase_rows(profile)]
    yield from _table(("phase", "time", "what it is"), explained, text="what it is")
    if profile.store is not None:
        yield "<h2>When a store pays</h2>"
        yield f"<p>{html.escape(store_sentence(profile))}</p>"
    yield "<h2>Pictures</h2><div class=pictures>"
    for name, stem in pictures.items():
        picture = base64.b64encode(stem.with_suffix(".svg").read_bytes()).decode()
        caption = CAPTIONS[name]
        source = f"data:image/svg+xml;base64,{picture}"
        yield f'<figure><img alt="{caption}" src="{source}">'
        yield f"<figcaption>{caption}</figcaption></figure>"
    yield "</div>"
    if profile.lengths:
        yield "<h2>Steps over other lengths</h2>"
        yield from _table(
            ("input", "positions", "a step", "memory as it is read"), _lengths(profile)
        )
    yield "<h2>The whole ledger</h2>"
    yield from _table(HEADER, profile.ledger.cells())
    yield "</html>"


def _about(profile: Profile) -> str:
    wishes = profile.wishes
    inputs = ", ".join(f"{kind} of {count:,} positions" for kind, _, count in profile.inputs)
    run = "compiled kernels" if profile.kernels else "torch alone"
    return (
        f"{inputs or 'no inputs'}; {counted(wishes.beams, 'beam')}, "
        f"{counted(profile.tokens, 'token')}, {wishes.form}, weights in "
        f"{profile.parameters_dtype}; {counted(profile.threads, 'thread')}, {run}; medians of "
        f"{counted(wishes.rounds, 'round')}."
    )


def size_rows(profile: Profile) -> list[tuple[str, str, str, str]]:
    """Each row of the ledger that can be measured, and the peak of the process."""
    rows = [
        (
            f"{one.input}: {one.what}",
            readable_bytes(one.predicted),
            readable_bytes(one.measured),
            f"{one.difference:+.2%}",
        )
        for one in profile.sizes
    ]
    predicted, found = profile.predicted_peak_bytes, profile.peak_bytes
    if predicted is not None:
        share = f"{predicted / found - 1:+.2%}"
        rows.append(
            ("process: peak in RAM", readable_bytes(predicted), readable_bytes(found), share)
        )
    tensors = profile.tensors
    rows.append(
        (
            "model: workspace, at most",
            readable_bytes(tensors.predicted_workspace_bytes),
            readable_bytes(tensors.workspace_bytes),
            "a bound",
        )
    )
    return rows


TENSOR_HEADER = ("phase", "at most", "left at its end")
HOLDER_HEADER = ("phase", "asked for by", "tensors", "bytes")


def tensor_rows(profile: Profile) -> list[tuple[str, str, str]]:
    """What each phase allocated, at most and in the end."""
    return [
        (one.tag, readable_bytes(one.peak), readable_bytes(one.resident))
        for one in profile.tensors.tags
    ]


def holder_rows(profile: Profile) -> list[tuple[str, str, str, str]]:
    """The largest that were there when all tensors together took most."""
    return [
        (one.tag, one.owner, f"{one.count:,}", readable_bytes(one.bytes))
        for one in profile.tensors.at_peak
    ]


def tensor_sentence(profile: Profile) -> str:
    """What the tables of tensors count."""
    return (
        f"Once it was loaded, tensors took {readable_bytes(profile.tensors.peak_bytes)} at most, "
        "counted in a pass of its own."
    )


def phase_rows(profile: Profile) -> list[tuple[str, str]]:
    """Phases and their medians."""
    return [(name, f"{1e3 * value:,.2f} ms") for name, value in profile.phases.items()]


def store_sentence(profile: Profile) -> str:
    """From which request on a store is quicker, foretold and found."""
    times = profile.store
    assert times is not None
    costs = (
        f"Preparing and encoding takes {1e3 * times.encode_seconds:,.1f} ms, preparing and reading "
        f"{1e3 * times.get_seconds:,.1f} ms, writing {1e3 * times.put_seconds:,.1f} ms. "
    )
    if times.predicted_requests == float("inf"):
        return costs + "Reading is no quicker than encoding: a store never pays here."
    found = times.measured_requests
    seen = "no number that was tried" if found is None else f"{found:.2f}"
    return costs + (
        f"So a store should be quicker from {times.predicted_requests:.2f} requests on; in the "
        f"sweep over {', '.join(str(count) for count, _, _ in times.measured)} it was from {seen}. "
        f"Memories were asked for {counted(times.hits + times.misses, 'time')} there: "
        f"{counted(times.hits, 'hit')}, {times.misses} not in the store."
    )


def _lengths(profile: Profile) -> list[tuple[str, ...]]:
    return [
        (one.kind, f"{one.positions:,}", f"{1e3 * one.seconds:.2f} ms", readable_bytes(one.bytes))
        for one in profile.lengths
    ]


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, text: str = ""
) -> Iterator[str]:
    """A table of numbers, but for the first column and the one called ``text``."""

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{kind} data-name="{html.escape(name)}"{" class=text" if name == text else ""}>'
            f"{html.escape(cell)}"
            for name, cell in zip(header, row, strict=True)
        )

    yield "<div class=wide><table>"
    yield "<tr>" + cells("th", header)
    for row in rows:
        yield "<tr>" + cells("td", row)
    yield "</table></div>"
