"""The demo's corpus: spoken digit strings and short commands, by speech synthesis."""

from __future__ import annotations

import os
import queue
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asr.corpora.base import Corpus, Splits
from asr.corpora.check import Dropped
from asr.errors import ConfigError
from asr.espeak import Espeak
from asr.types import Utterance

ACCENTS = (
    "en", "en-us", "en-us-nyc", "en-029", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd",
)  # fmt: skip
ODD_VARIANTS = ("whisper", "demonic", "unirobot", "anikarobot", "robosoft", "croak", "klatt")
"""Prefixes of the names of whispering and robot voices, and of another kind of synthesis."""

SENTENCES = (
    "{d} {d} {d}", "{d} {d} {d} {d}", "{d} {d} {d} {d} {d}", "{d} {d} {d} {d} {d} {d}",
    "call {d} {d} {d}", "call {d} {d} {d} {d} please",
    "turn the {device} {on or off}", "turn {on or off} the {device} please",
    "turn {on or off} the {device} in the {room}", "turn {up or down} the volume",
    "set the {clock} for {d} {unit}", "stop the {clock} in the {room}", "start the {clock} again please",
    "play the {which} song", "play the {which} song again", "play music in the {room}",
    "{open or close} the {opening}", "{open or close} the {opening} in the {room}",
    "go {way} {d} steps", "go {way} and then go {way}", "yes please", "no please stop",
)  # fmt: skip
SLOTS = {
    "d": "zero one two three four five six seven eight nine",
    "device": "light lamp radio heater fan",
    "on or off": "on off",
    "up or down": "up down",
    "room": "kitchen bedroom garage garden",
    "clock": "alarm timer",
    "unit": "minutes hours",
    "which": "next last",
    "open or close": "open close",
    "opening": "door window",
    "way": "left right up down",
}

SYNTHESIS_FAILED = "synthesis failed"
WANTED = "corpus=synthetic", "take another corpus"
"""What asks for espeak-ng, and what to do without it."""


@dataclass(kw_only=True)
class Synthetic(Corpus):
    """Utterances of a small grammar by espeak-ng, in many voices, at 16 kHz with a little noise.

    A speaker is an accent and a voice variant, `en-us+f2`. No variant, nor a relative of it (`iven`, `iven2`),
    is heard in two splits, in whatever accent. Texts, voices and noise depend on the seed only; the samples
    are espeak-ng's, which are not the same to the bit from run to run. Formant synthesis is easy to recognize:
    a score on it says that the pipeline works, nothing about real speech. In the manifests, `word_times` holds start
    and end of each word in seconds, null where espeak-ng speaks two words as one.
    """

    splits: Mapping[str, int] = field(default_factory=lambda: {"train": 1200, "validation": 150, "test": 200})
    """Number of utterances of each split."""
    held_out: float = 0.15
    """Share of the voices that goes to each split but the first."""
    accents: Sequence[str] = ACCENTS
    """espeak-ng's names of languages."""
    rate: Sequence[int] = (140, 200)
    """Words per minute, from and to."""
    pitch: Sequence[int] = (35, 65)
    """From and to, of 0 to 99; 50 is the voice's own."""
    snr: Sequence[float] = (15.0, 40.0)
    """dB, from and to."""
    seed: int = 0

    def utterances(self, out: Path) -> Splits:
        if not self.splits or min(self.splits.values()) < 1:
            raise ConfigError(f"corpus.splits: {dict(self.splits)}: each split needs one utterance or more.")
        with Espeak(*WANTED) as espeak:
            voices = self.divide(espeak.variants)
        return {split: _Spoken(self.plan(split, voices[split], out)) for split in self.splits}

    def divide(self, variants: Sequence[str]) -> dict[str, list[str]]:
        """Share out the voice variants among the splits, relatives together."""
        families: dict[str, list[str]] = {}
        for variant in sorted(variants):
            if not variant.lower().startswith(ODD_VARIANTS):
                stem = variant.rstrip("0123456789").lower()
                families.setdefault(stem if len(stem) > 1 else variant, []).append(variant)  # f1 … m8 are unrelated
        names = list(families)
        random.Random(f"{self.seed} voices").shuffle(names)
        first, *others = self.splits
        share = max(1, round(self.held_out * len(names)))
        if len(names) <= share * len(others):
            raise ConfigError(f"corpus.held_out={self.held_out}: leaves no voice for '{first}'. Take less.")
        parts = {split: names[i * share : (i + 1) * share] for i, split in enumerate(others)}
        parts = {first: names[len(others) * share :], **parts}
        return {split: [variant for name in part for variant in families[name]] for split, part in parts.items()}

    def plan(self, split: str, variants: Sequence[str], out: Path) -> list[tuple[Utterance, dict[str, Any]]]:
        """The utterances of a split, and how each is to be spoken and recorded."""
        draw = random.Random(f"{self.seed} {split}")
        planned = []
        for number in range(self.splits[split]):
            accent, name = draw.choice(self.accents), f"{split}-{number:05d}"
            voice, text = f"{accent}+{draw.choice(variants)}", sentence(draw)
            utterance = Utterance(
                str(out / "audio" / split / f"{name}.flac"),
                text, id=name, speaker=voice, lang="en", extra={"accent": accent},
            )  # fmt: skip
            speech = {
                "text": text,
                "voice": voice,
                "rate": draw.randint(*self.rate),
                "pitch": draw.randint(*self.pitch),
                "pitch_range": draw.randint(30, 70),
            }
            recording = {
                "level": draw.uniform(-30, -18),
                "snr": draw.uniform(*self.snr),
                "tilt": draw.uniform(0, 2),
                "margins": (draw.uniform(0.1, 0.3), draw.uniform(0.1, 0.3)),
                "seed": draw.getrandbits(32),
            }
            planned.append((utterance, {"speech": speech, "recording": recording}))
        return planned


def sentence(draw: random.Random) -> str:
    """A random sentence of the grammar."""
    return re.sub(r"{([\w ]+)}", lambda slot: draw.choice(SLOTS[slot[1]].split()), draw.choice(SENTENCES))


class _Spoken:
    """Planned utterances that are spoken while they are read, by a worker process for each core."""

    def __init__(self, planned: list[tuple[Utterance, dict[str, Any]]]) -> None:
        self.planned = planned

    def __len__(self) -> int:
        return len(self.planned)

    def __iter__(self) -> Iterator[Utterance | Dropped]:
        for folder in {Path(utterance.audio_filepath).parent for utterance, _ in self.planned}:
            folder.mkdir(parents=True, exist_ok=True)
        free: queue.SimpleQueue[Espeak] = queue.SimpleQueue()

        def speak(item: tuple[Utterance, dict[str, Any]]) -> Utterance | Dropped:
            utterance, request = item
            espeak = free.get()
            try:
                answer = espeak.ask({"path": utterance.audio_filepath, **request})
            finally:
                free.put(espeak)
            if "error" in answer:
                return Dropped(utterance.id, utterance.audio_filepath, SYNTHESIS_FAILED, answer["error"])
            return replace(utterance, extra={**utterance.extra, "word_times": answer["word_times"]})

        with ExitStack() as stack:
            count = min(8, os.cpu_count() or 1, len(self))
            for _ in range(count):
                free.put(stack.enter_context(Espeak(*WANTED)))
            yield from stack.enter_context(ThreadPoolExecutor(count)).map(speak, self.planned)
