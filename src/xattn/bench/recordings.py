"""Real speech: telephone prompts that Debian ships, joined to windows of 30 s."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOUNDS = Path("/usr/share/asterisk/sounds/en")
PACKAGE = "asterisk-core-sounds-en-wav"
RATE = 16000
WINDOW_SECONDS = 30
PAUSE_SECONDS = 0.4
LEAST_SECONDS = 2.0
"""Shorter prompts are single words, of which Whisper makes little."""


class Windows:
    """Windows of speech with their log-mel, written to a directory when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def files(self, count: int) -> tuple[str, ...]:
        """Where ``count`` windows will be."""
        return tuple(str(self._directory / f"window-{number}.npy") for number in range(count))

    def make(self, count: int) -> None:
        """Write those that are not there yet.

        Raises :class:`FileNotFoundError` where the recordings are not installed.
        """
        from xattn.inputs.audio import window_log_mel

        wanted = [Path(name) for name in self.files(count)]
        if all(file.with_suffix(".mel.npy").is_file() for file in wanted):
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        for file, samples_T in zip(wanted, windows(), strict=False):
            _save(file, samples_T)
            _save(file.with_suffix(".mel.npy"), window_log_mel(samples_T, 80).numpy())


def _save(file: Path, numbers: NDArray[np.float32]) -> None:
    """Under its name when it is whole."""
    part = file.with_suffix(".part.npy")
    np.save(part, numbers)
    part.replace(file)


def windows() -> Iterator[NDArray[np.float32]]:
    """Prompts in the order of their names, with pauses between them, cut where 30 s are full."""
    from xattn.inputs.audio import read_audio

    files = sorted(SOUNDS.glob("*.wav"))
    if not files:
        raise FileNotFoundError(
            f"no recordings in {SOUNDS}; install them with: apt install {PACKAGE}"
        )
    room, pause = WINDOW_SECONDS * RATE, np.zeros(int(PAUSE_SECONDS * RATE), dtype=np.float32)
    held: list[NDArray[np.float32]] = []
    for file in files:
        samples_T = np.asarray(read_audio(file).samples_T, dtype=np.float32)
        if not LEAST_SECONDS * RATE <= len(samples_T) <= room - len(pause):
            continue
        if sum(map(len, held)) + len(samples_T) + len(pause) > room:
            yield np.concatenate(held)
            held = []
        held += [samples_T, pause]
