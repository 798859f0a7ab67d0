"""What training makes small: one loss for each utterance of a batch.

An objective is called with `(model, view, batch)` and returns losses (B,) and a dict of their parts (B,), by name, for
the log. `view(k)` gives normalised features (B, T, D) and lengths (B,) as the feature augmentations alter them for the
k-th time: the same k gives the same features, another k other draws. How utterances are spread over batches and ranks
must not matter: a loss depends on its own utterance alone. What an objective has to learn, it holds as a
`torch.nn.Module`; the recognizer never has it.
"""

from asr.objectives.consistency import CrCtc
from asr.objectives.ctc import Ctc

__all__ = ["CrCtc", "Ctc"]
