"""Mean and standard deviation of the features over the training set."""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from asr.data.module import SpeechData
from asr.data.sampler import batches_by_length
from asr.errors import DataError
from asr.featurizers.normalization import frame_mask
from asr.model import AcousticModel


@torch.no_grad()
def set_feature_statistics(
    model: AcousticModel, data: SpeechData, seed: int, console: Console, max_hours: float = 2.0
) -> None:
    """Measure the features of the training set, or of so many hours of it drawn by `seed`, for the normalisation."""
    order = np.random.default_rng(seed).permutation(len(data.train_indices))
    order = order[: 1 + int(np.searchsorted(np.cumsum(data.train_seconds[order]), max_hours * 3600))]
    batches = batches_by_length(data.train_indices[order], data.train_seconds[order], data.batch_seconds)
    loader = data.loader(data.train, [[(k, 0) for k in batch] for batch in batches], persistent=False)
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in track(loader, "statistics ", total=len(batches), console=console, transient=True):
        if not len(batch):  # none of its files could be read
            continue
        waveforms = batch.waveforms.masked_fill(~frame_mask(batch.lengths, batch.waveforms.shape[1]), 0)
        features, lengths = model.featurizer(waveforms, batch.lengths)
        frames = features[frame_mask(lengths, features.shape[1])].double()
        count, total, squares = count + len(frames), total + frames.sum(0), squares + frames.square().sum(0)
    if not count:
        raise DataError("None of the audio that the features' statistics are measured on could be read.")
    mean = total / count
    model.normalization.set_statistics(  # type: ignore[operator]
        mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()
    )
