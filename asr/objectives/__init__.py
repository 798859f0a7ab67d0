"""What training makes small: one loss for each utterance of a batch.

An objective is made for a `model` and called with `(model, view, batch)`; it returns losses (B,) and a dict of their
parts (B,), by name, for the log. `view(k)` gives normalised features (B, T, D) and lengths (B,) as the feature
augmentations alter them for the k-th time: another k has other draws, but the same ones of augmentations that change
lengths (those with a `max_speed`). A loss depends on its own utterance alone, so that it makes no difference how they
are spread over batches and ranks. What an objective has to learn, it holds as a `torch.nn.Module`; the recognizer never
has it. One with a method `prepare(pipeline, texts, frames)` is given the stages, all transcripts to train on, and how
many frames of emissions each has at the highest speed, before the optimizer is made; it may return a line for the
overview. One that costs much may begin later: with a `start_step`, its attribute `before` is the objective of the
optimizer steps before that one.
"""

from asr.objectives.consistency import CrCtc
from asr.objectives.ctc import Ctc

__all__ = ["CrCtc", "Ctc"]
