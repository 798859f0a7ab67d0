"""Augmentation of waveforms and features, in training only.

An augmentation takes `(x, lengths, seeds)` and returns `(x, lengths)`; its `domain` says what x is: "waveform"
(B, N) or "features" (B, T, D). The seeds (B,) int64 are a function of (seed, epoch, utterance), so the same utterance
is altered in the same way whatever batch, rank or resumed run it is met in; another view and a second augmentation of
one kind get others (`other_seeds`). Two attributes are looked for besides: `max_speed`, what the lengths may be divided
by, and `start_step`, the optimizer steps in which it rests at first.
"""

from asr.augment.codec import Codec
from asr.augment.noise import Noise
from asr.augment.reverb import Reverb
from asr.augment.specaugment import SpecAugment
from asr.augment.speed import SpeedPerturbation
from asr.augment.telephone import Telephone
from asr.augment.tempo import Tempo
from asr.augment.volume import Volume
from asr.augment.vtlp import Vtlp

__all__ = [
    "Codec", "Noise", "Reverb", "SpecAugment", "SpeedPerturbation", "Telephone", "Tempo", "Volume", "Vtlp",
]  # fmt: skip
