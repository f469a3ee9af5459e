"""An answer as one HTML page: what a word of it read lights up in the passages."""

import html
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from xattn.library.answer import Answer, Citation
from xattn.library.passage import Passage

_STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --faint: #666; --line: #ddd; --lit: 255, 176, 0; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: var(--ink);
       font: 16px/1.6 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: .5rem 0; }
h2 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
.faint, figcaption { color: var(--faint); font-size: .9rem; }
.answer { font-size: 1.15rem; }
.answer span { cursor: pointer; border-radius: .2rem; }
.answer span:hover, .answer span:focus, .answer span.held {
  background: rgba(var(--lit), .55); outline: none; }
.unsupported { text-decoration: underline dotted #b00; text-underline-offset: .2em; }
blockquote { margin: .2rem 0; padding-left: .8rem; border-left: .2rem solid var(--line); }
ol { padding-left: 1.6rem; }
article { border-top: 1px solid var(--line); padding: .6rem 0; }
article p { white-space: pre-wrap; margin: .3rem 0; }
article i { font-style: normal; border-radius: .2rem; }
@media (max-width: 30rem) { body { padding: .6rem; } }
"""

_SCRIPT = """
const looks = JSON.parse(document.getElementById('looks').textContent);
const most = Math.max(1e-9, ...looks.flat().map(look => look[1]));
let held = null;
function light(token) {
  document.querySelectorAll('article i').forEach(place => place.style.background = '');
  if (token === null) return;
  for (const [place, share] of looks[token])
    document.getElementById(place).style.background =
      `rgba(var(--lit), ${Math.min(1, .12 + .88 * share / most)})`;
}
document.querySelectorAll('.answer span').forEach(word => {
  const token = Number(word.dataset.token);
  word.addEventListener('mouseenter', () => light(token));
  word.addEventListener('focus', () => light(token));
  word.addEventListener('mouseleave', () => light(held));
  word.addEventListener('click', () => {
    document.querySelectorAll('.held').forEach(other => other.classList.remove('held'));
    held = held === token ? null : token;
    if (held !== null) word.classList.add('held');
    light(held);
  });
});
"""


def write_page(answer: Answer, path: Path) -> Path:
    """Write the page, with nothing outside of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_page(answer)) + "\n", encoding="utf-8")
    return path


def _page(answer: Answer) -> Iterator[str]:
    title = html.escape(answer.question)
    yield "<!doctype html><html lang=en><meta charset=utf-8>"
    yield '<meta name=viewport content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{_STYLE}</style>"
    yield f"<h1>{title}</h1>"
    yield f"<p class=answer>{''.join(_words(answer))}</p>"
    yield "<p class=faint>Point at a word, or tap it: what it was read from lights up below. "
    yield "Dotted underlines are sentences that rest on nothing in the passages.</p>"
    if answer.citations:
        yield "<h2>What it rests on</h2><ol>"
        yield from map(_note, answer.citations)
        yield "</ol>"
    yield "<h2>What was read</h2>"
    places = _places(answer)
    for index, passage in enumerate(answer.passages):
        yield from _article(index, passage, places.get(index, []))
    looks = [
        [
            [_name(g.passage, start), round(g.share, 5)]
            for g in token.glances
            for start, end in places[g.passage]
            if g.start <= start and end <= g.end
        ]
        for token in answer.tokens
    ]
    data = json.dumps(looks).replace("<", "\\u003c")
    yield f"<script type=application/json id=looks>{data}</script><script>{_SCRIPT}</script>"


def _words(answer: Answer) -> Iterator[str]:
    """The answer's tokens, with footnotes behind its sentences."""
    at, sentences = 0, list(answer.sentences)
    for number, token in enumerate(answer.tokens):
        begins = at + len(token.text) - len(token.text.lstrip())
        inside = next((s for s in sentences if s.start <= begins < s.end), None)
        text = html.escape(token.text[: max(0, len(answer.text) - at)])
        at += len(token.text)
        notes = ""
        if inside is not None and at >= inside.end:
            notes = "".join(f"<sup>[{note}]</sup>" for note in inside.citations)
        if text.strip():
            doubtful = inside is not None and not inside.is_supported
            kind = " class=unsupported" if doubtful else ""
            yield f"<span tabindex=0 data-token={number}{kind}>{text}</span>{notes}"
        else:
            yield notes + text


def _note(citation: Citation) -> str:
    changed = "" if citation.standing in ("as it was", "unknown") else f" ({citation.standing})"
    return (
        f"<li><blockquote>{html.escape(citation.quote)}</blockquote>"
        f"<span class=faint>{html.escape(citation.place + changed)}; "
        f"support {citation.support:.2f}</span></li>"
    )


def _places(answer: Answer) -> dict[int, list[tuple[int, int]]]:
    """Of each passage, the places ``[start, end)`` that some token looked at, cut where they meet.

    Those of tokens overlap where a character is several tokens.
    """
    glances: dict[int, set[tuple[int, int]]] = {}
    for token in answer.tokens:
        for glance in token.glances:
            glances.setdefault(glance.passage, set()).add((glance.start, glance.end))
    places = {}
    for passage, spans in glances.items():
        bounds = sorted({bound for span in spans for bound in span})
        pieces = pairwise(bounds)
        places[passage] = [
            (a, b) for a, b in pieces if any(start <= a and b <= end for start, end in spans)
        ]
    return places


def _article(index: int, passage: Passage, places: list[tuple[int, int]]) -> Iterator[str]:
    above = " › ".join(dict.fromkeys(part for part in (passage.title, *passage.heading) if part))
    where = passage.source if passage.page is None else f"{passage.source}, page {passage.page}"
    yield f"<article><div class=faint>{html.escape(above)}<br>{html.escape(where)}</div>"
    yield f"<p>{''.join(_marked(index, passage.text, places))}</p></article>"


def _marked(index: int, text: str, places: list[tuple[int, int]]) -> Iterator[str]:
    """A passage's text, each place that some token looked at in an element of its own."""
    at = 0
    for start, end in places:
        yield html.escape(text[at:start])
        yield f"<i id={_name(index, start)}>{html.escape(text[start:end])}</i>"
        at = end
    yield html.escape(text[at:])


def _name(passage: int, start: int) -> str:
    return f"p{passage}-{start}"
