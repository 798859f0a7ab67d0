"""Utterances of noise: something to measure speed on where there is no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asr.data.manifest import write_manifest
from asr.types import Utterance


def write_noise(folder: Path, utterances: int, seed: int = 0, sample_rate: int = 16000) -> Path:
    """Write utterances as long as AN4's (0.5 to 7 s, mean 2.7 s), with random words for transcripts.

    Returns:
        their manifest.
    """
    import soundfile

    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    written = []
    for k in range(utterances):
        seconds = min(0.5 + random.gamma(2.6, 0.85), 7.0)
        samples = 0.1 * random.standard_normal(int(seconds * sample_rate), np.float32)
        path = folder / f"{k:06d}.wav"
        soundfile.write(path, samples, sample_rate, subtype="PCM_16")
        # AN4 has 7 characters a second
        letters = random.choice(list("abcdefghijklmnopqrstuvwxyz     "), max(2, round(7 * seconds)))
        text = " ".join("".join(letters).split()) or "a"
        written.append(Utterance(str(path), text, len(samples) / sample_rate, id=path.stem))
    manifest = folder / "noise.jsonl"
    write_manifest(manifest, written)
    return manifest
