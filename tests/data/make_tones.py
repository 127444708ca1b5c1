"""Small spoken tones: ``python -m tests.data.make_tones FOLDER [ROWS] [SEED]``.

Each row is a WAV of 0.2 s, 8,000 samples per second: a voice that says one of four vowels. What tells them apart is
which pitches resonate; the pitch of the voice itself (90 to 260 Hz), its loudness (5 to 60 % of the scale), where in
the sound it begins and how long it lasts, and a little noise tell nothing. Each speaker has a pitch, a loudness and a
length of the throat of its own.

Columns: ``sample``, ``sound`` (path), ``vowel``, ``speaker``.
"""

import sys
from pathlib import Path

import numpy as np
import soundfile

from tests.tables import write_rows

RATE = 8000
SPEAKERS = 8
RESONANCES = {"a": (750, 1250), "e": (500, 1900), "i": (300, 2500), "o": (450, 850)}
"""Vowel → its first two formants, in Hz."""


def make_tones(folder: str | Path, rows: int = 320, seed: int = 0) -> Path:
    """Writes ``manifest.csv`` and its sounds, and returns its path; equal seeds write equal files."""
    folder = Path(folder)
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pitches = random.permutation(np.geomspace(90, 260, SPEAKERS))
    loudness = random.permutation(np.geomspace(0.05, 0.6, SPEAKERS))
    throats = random.uniform(0.94, 1.06, SPEAKERS)
    table = []
    for row in range(rows):
        speaker = row % SPEAKERS
        vowel = random.choice(list(RESONANCES))
        sound = _voice(pitches[speaker], vowel, throats[speaker], random)
        name = f"sounds/{row:04}.wav"
        soundfile.write(folder / name, loudness[speaker] * sound, RATE, subtype="PCM_16")
        table.append({"sample": f"s{row:04}", "sound": name, "vowel": vowel, "speaker": f"speaker{speaker}"})
    path = folder / "manifest.csv"
    write_rows(path, table)
    return path


def _voice(pitch: float, vowel: str, throat: float, random: np.random.Generator) -> np.ndarray:
    """A vowel with its loudest sample at 1, silence around it, and noise of 0.2 %."""
    seconds = random.uniform(0.1, 0.19)
    steps = np.arange(round(seconds * RATE)) / RATE
    glide = 1 + random.uniform(-0.5, 0.5) * steps
    phase = 2 * np.pi * np.cumsum(pitch * random.uniform(0.9, 1.1) * glide) / RATE
    voice = np.zeros(len(steps))
    for harmonic in range(1, int(3800 / (1.3 * pitch))):
        frequency = harmonic * pitch
        strength = sum(1 / (1 + ((frequency - throat * peak) / 120) ** 2) for peak in RESONANCES[vowel])
        voice += strength / harmonic**0.5 * np.sin(harmonic * phase + random.uniform(0, 2 * np.pi))
    voice *= np.hanning(len(steps)) ** 0.5
    sound = 0.002 * random.standard_normal(round(0.2 * RATE))
    start = random.integers(len(sound) - len(steps) + 1)
    sound[start : start + len(steps)] += voice / np.abs(voice).max()
    return sound / np.abs(sound).max()


if __name__ == "__main__":
    print(make_tones(sys.argv[1], *map(int, sys.argv[2:])))
