"""``xattn transcribe``: recordings to text, subtitles, or JSON."""

import json as jsonlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn.cli.console import Progress, print_error, print_json, print_line
from xattn.cli.failures import code_of
from xattn.cli.jsonl import Record
from xattn.cli.loading import load_model, numbers_of
from xattn.cli.options import (
    ADAPTED,
    SAMPLING,
    SEARCH,
    STORE,
    Cache,
    Json,
    JsonLines,
    ModelName,
    Option,
    Output,
    numbers,
    takes,
    was_typed,
    whole_numbers,
)
from xattn.cli.stores import lossy, use_store
from xattn.cli.texts import require_one_input, run_jsonl
from xattn.errors import UsageError, XattnError

if TYPE_CHECKING:
    from xattn.decoding.transcript import Transcript
    from xattn.model import Model


def _vad_parameters(name: str, value: str) -> dict[str, float]:
    """``threshold_db=-40,speech_pad_ms=200`` as the settings of the silence gate."""
    from xattn.decoding.voice import VoiceSettings

    known = [field.name for field in fields(VoiceSettings)]
    parameters: dict[str, float] = {}
    for part in value.split(","):
        key, _, text = part.strip().partition("=")
        if key not in known:
            raise UsageError(f"`--vad-parameters` knows {', '.join(known)}, but not {key!r}.")
        found = numbers(name, text)
        if len(found) != 1:
            raise UsageError(f"`--vad-parameters` must be name=number, but has {part!r}.")
        parameters[key] = int(found[0]) if found[0].is_integer() else found[0]
    return parameters


SPEECH, GATES, WORDS, FILES = "Speech", "Fallback and silence", "Words", "Files"
FORMATS = ("txt", "srt", "vtt", "tsv", "json")

TRANSCRIPTION: dict[str, Option] = {
    "language": Option(str, SPEECH, "Code of the spoken language, such as en; unset: detected."),
    "task": Option(
        Literal["transcribe", "translate"], SPEECH, "In its own language, or into English."
    ),
    "initial_prompt": Option(str, SPEECH, "Text that the first window takes for earlier speech."),
    "hotwords": Option(str, SPEECH, "Words to expect."),
    "prefix": Option(str, SPEECH, "Text that the first window's transcript begins with."),
    "multilingual": Option(bool, SPEECH, "Detect the language of every window anew."),
    "language_detection_threshold": Option(
        float, SPEECH, "A language this probable is settled on."
    ),
    "language_detection_segments": Option(int, SPEECH, "Windows to look at for the language."),
    "clip_timestamps": Option(str, SPEECH, "Only from,to,from,to … in seconds."),
    "beam_size": Option(int, SEARCH, "Beams at temperature 0; 1 is greedy."),
    "best_of": Option(int, SEARCH, "Samples drawn at a temperature above 0."),
    "patience": Option(float, SEARCH, "Search ends at beam-size times this many results."),
    "length_penalty": Option(float, SEARCH, "Rank by log-probability over length to this power."),
    "repetition_penalty": Option(float, SEARCH, "Above 1 makes repeated tokens less likely."),
    "no_repeat_ngram_size": Option(int, SEARCH, "No n-gram of this size occurs twice."),
    "max_new_tokens": Option(int, SEARCH, "Tokens of one window at most."),
    "suppress_blank": Option(bool, SEARCH, "No window begins with a space, or is empty."),
    "suppress_tokens": Option(
        str, SEARCH, "Token ids that never occur; -1 is symbols nobody pronounces.", whole_numbers
    ),
    "seed": Option(int, SAMPLING, "Same seed, same samples."),
    "temperature": Option(str, GATES, "Tried in turn, such as 0,0.2,0.4.", numbers),
    "compression_ratio_threshold": Option(float, GATES, "A text more regular than this is a loop."),
    "log_prob_threshold": Option(float, GATES, "A text less likely than this is a guess."),
    "no_speech_threshold": Option(float, GATES, "A window this probably silent is silent."),
    "condition_on_previous_text": Option(bool, GATES, "Show a window the text before it."),
    "prompt_reset_on_temperature": Option(float, GATES, "Not after a temperature above this."),
    "hallucination_silence_threshold": Option(float, GATES, "Skip silence of these seconds."),
    "vad_filter": Option(bool, GATES, "Leave out stretches without sound."),
    "vad_parameters": Option(
        str, GATES, "Its settings, as name=number,name=number.", _vad_parameters
    ),
    "word_timestamps": Option(bool, WORDS, "Find out when each word was spoken."),
    "prepend_punctuations": Option(str, WORDS, "Marks that belong to the word after them."),
    "append_punctuations": Option(str, WORDS, "Marks that belong to the word before them."),
    "without_timestamps": Option(bool, WORDS, "One segment per window, without times."),
    "max_initial_timestamp": Option(float, WORDS, "Latest start of a window's first segment."),
}
"""Keywords of ``transcribe``, under faster-whisper's names."""

LAYOUT: dict[str, Option] = {
    "max_line_width": Option(int, FILES, "Characters in a line of subtitles."),
    "max_line_count": Option(int, FILES, "Lines in a subtitle."),
    "max_words_per_line": Option(int, FILES, "Words in a subtitle."),
    "highlight_words": Option(bool, FILES, "Underline each word as it is spoken."),
}
"""How words are set into subtitles, under openai-whisper's names."""

Sources = Annotated[
    list[str] | None, typer.Argument(metavar="AUDIO", help="Recordings; - reads one from stdin.")
]
OutputFormat = Annotated[
    Literal["txt", "srt", "vtt", "tsv", "json", "all"],
    typer.Option("--output-format", "-f", rich_help_panel=FILES, help="Form of the transcript."),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        rich_help_panel=FILES,
        help="Write one file per recording and format here, instead of stdout.",
    ),
]


@takes(settings=TRANSCRIPTION | LAYOUT, store=STORE, loading=ADAPTED)
def transcribe(
    context: typer.Context,
    sources: Sources = None,
    *,
    model: ModelName = "whisper-tiny.en",
    cache: Cache = True,
    output_format: OutputFormat = "txt",
    output_dir: OutputDir = None,
    json: Json = False,
    jsonl: JsonLines = None,
    output: Output = "-",
    settings: dict[str, Any],
    store: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Transcribe recordings with a Whisper model.

    Records of --jsonl have an "audio", the path of a recording; the output adds its transcript.
    """
    require_one_input(sources, jsonl, output, what="AUDIO")
    sources = sources or []
    if jsonl is not None:
        for flag in ("output_format", "output_dir"):
            if was_typed(context, flag):
                name = flag.replace("_", "-")
                raise UsageError(f"--{name} is for files; --jsonl writes records to --output.")
    if output_dir is not None:
        _require_distinct_names(sources)
    elif not json:
        _require_one_document(sources, output_format)
    layout = {name: settings.pop(name) for name in list(settings) if name in LAYOUT}
    _check(settings, layout)
    if output_dir is not None:
        _make(output_dir)
    loaded = load_model(model, **loading)
    if cache:
        use_store(loaded, store)
    if jsonl is not None:

        def work(records: Sequence[Record]) -> list[Record]:
            return [_document(loaded.transcribe(_path(r), **settings)) for r in records]

        options = settings | {"transcribe": model, **numbers_of(loading)} | lossy(store, cache)
        run_jsonl(jsonl, output, work, fields=["audio"], options=options)
        return
    _transcribe_all(loaded, sources, settings, layout, output_format, output_dir, json)


def _transcribe_all(
    model: "Model",
    sources: Sequence[str],
    settings: dict[str, Any],
    layout: dict[str, Any],
    output_format: str,
    output_dir: Path | None,
    json: bool,
) -> None:
    """Each recording in turn; one that fails is named, and the others are still transcribed."""
    documents, worst = [], 0
    prints = output_dir is None and not json
    for number, source in enumerate(sources):
        try:
            if prints and len(sources) > 1:
                print_line(f"{'' if number == 0 else chr(10)}==> {source} <==")
            transcript = _transcribe_one(
                model, source, settings, print_lines=prints and output_format == "txt"
            )
            if output_dir is not None:
                _write(transcript, source, output_format, output_dir, layout)
            if json:
                documents.append({"source": source} | _document(transcript))
            elif prints and output_format != "txt":
                print_line(_render(transcript, output_format, layout))
        except XattnError as error:
            worst = max(worst, code_of(error))
            print_error(error)
    if json and documents:
        print_json(documents if len(sources) > 1 else documents[0])
    if worst:
        raise typer.Exit(worst)


def _transcribe_one(
    model: "Model", source: str, settings: dict[str, Any], *, print_lines: bool
) -> "Transcript":
    """One recording, with its seconds as progress, or its text line by line as it is found."""
    with Progress(source, unit="s", results_on_stdout=print_lines) as progress:
        running = model.transcribe_segments(_audio(source), progress=progress.update, **settings)
        for segment in running:
            if print_lines:
                print_line(segment.text.strip())
        return running.finish()


def _require_one_document(sources: Sequence[str], output_format: str) -> None:
    """Raises :class:`UsageError` where several files' contents would run into one stdout."""
    if output_format == "all":
        raise UsageError("`--output-format all` writes files; say where with --output-dir.")
    if len(sources) > 1 and output_format != "txt":
        raise UsageError(
            f"several recordings as {output_format} do not fit on one stdout; "
            "say where to write with --output-dir, or use --json."
        )


def _make(output_dir: Path) -> None:
    """Make the folder before there is work that could be lost."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--output-dir must be a folder that can be written, but {str(output_dir)!r} cannot be "
            f"made: {error.strerror}."
        ) from error


def _require_distinct_names(sources: Sequence[str]) -> None:
    """No transcript overwrites another; raises :class:`UsageError`."""
    repeated = [stem for stem, count in Counter(map(_stem, sources)).items() if count > 1]
    if repeated:
        raise UsageError(
            f"several recordings would be written to the same file, {repeated[0]!r}; "
            "rename them, or call xattn once for each with its own --output-dir."
        )


def _check(settings: dict[str, Any], layout: dict[str, Any]) -> None:
    """Say what is wrong with the options before a model is loaded, or even downloaded."""
    from xattn.decoding.subtitles import SubtitleLayout
    from xattn.decoding.transcription_settings import TranscriptionSettings

    TranscriptionSettings.resolve(**settings)
    words = settings.get("word_timestamps", False)
    if SubtitleLayout(**layout) != SubtitleLayout() and not words:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in layout)
        raise UsageError(f"{flags} lays out words; add --word-timestamps.")


def _stem(source: str) -> str:
    return "stdin" if source == "-" else Path(source).stem


def _audio(source: str) -> str | bytes:
    return sys.stdin.buffer.read() if source == "-" else source


def _path(record: Record) -> str:
    if not isinstance(record["audio"], str):
        raise UsageError(f"'audio' must be the path of a recording, but is {record['audio']!r}.")
    return record["audio"]


def _document(transcript: "Transcript") -> dict[str, Any]:
    """openai-whisper's fields, and what xattn knows beyond them."""
    content: dict[str, Any] = jsonlib.loads(transcript.to_json())
    return content | {
        "language_probability": transcript.language_probability,
        "duration_seconds": transcript.duration_seconds,
        "encoder_passes": transcript.encoder_passes,
    }


def _render(transcript: "Transcript", output_format: str, layout: dict[str, Any]) -> str:
    from xattn.decoding.subtitles import SubtitleLayout

    match output_format:
        case "srt":
            return transcript.to_srt(SubtitleLayout(**layout))
        case "vtt":
            return transcript.to_vtt(SubtitleLayout(**layout))
        case "tsv":
            return transcript.to_tsv()
        case "json":
            return transcript.to_json()
        case _:
            return transcript.to_txt()


def _write(
    transcript: "Transcript",
    source: str,
    output_format: str,
    output_dir: Path,
    layout: dict[str, Any],
) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    for suffix in FORMATS if output_format == "all" else (output_format,):
        path = output_dir / f"{_stem(source)}.{suffix}"
        path.write_text(_render(transcript, suffix, layout), encoding="utf-8")
