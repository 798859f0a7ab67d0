"""Contract checks that a plugin author runs on a component: each raises an AssertionError that says what is broken.

>>> from asr.encoders import Blstm
>>> from asr.testing import check_encoder
>>> check_encoder(lambda input_dim: Blstm(input_dim, layers=1, width=8), input_dim=40)

A component may rely on lengths that are (B,) int64 on the CPU, every one at least 1. It may not rely on who its
neighbours in the batch are, how far the batch is padded, or what lies in the padding: `AcousticModel` puts zeros there,
but whoever calls a stage alone may not. Only an augmentation is sure of zeros, and leaves them.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asr.encoders import Blstm
from asr.featurizers import LogMel
from asr.invariance import (
    check_gradients,
    check_invariance,
    check_lengths,
    check_stream,
    check_tap,
    check_training_statistics,
    close,
    require,
    require_attributes,
)
from asr.model import AcousticModel
from asr.types import Batch, Emissions, Hypothesis

TEXTS = ("call seven three five", "stop", "a b c d e", "it's good", "see the book all seven")


def check_featurizer(featurizer: Any) -> None:
    """Check a featurizer: its attributes, its lengths, and that nothing but an utterance's own samples matters to it.

    If it has `start`, `step` and `finish`, a stream has to give what the whole gives.

    >>> from asr.featurizers import LogMel
    >>> check_featurizer(LogMel(sample_rate=8000))
    """
    name = type(featurizer).__name__
    require(isinstance(featurizer, nn.Module), f"{name}: must be a torch.nn.Module, to move between devices.")
    require_attributes(featurizer, sample_rate=int, dim=int, frame_shift=float)
    featurizer.eval()
    rate = featurizer.sample_rate
    frames = int(featurizer.output_lengths(torch.tensor([100 * rate])))
    even = abs(frames * featurizer.frame_shift - 100) < 1
    require(even, f"{name}: 100 s become {frames} frames of frame_shift={featurizer.frame_shift} s each.")
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([rate // 5, 2 * rate, rate + 7, 2 * rate - 1])
    waveforms = 0.1 * torch.randn(4, 2 * rate, generator=random)
    check_lengths(featurizer, lambda n: 0.1 * torch.randn(1, n, generator=random), [1, rate // 100, rate // 5, rate])
    check_invariance(featurizer, waveforms, lengths, float("nan"))
    check_stream(featurizer, [0.1 * torch.randn(1, n, generator=random) for n in (7, rate // 3, rate + 7)])


def check_encoder(encoder: Any, input_dim: int) -> None:
    """Check an encoder, or what makes one of `input_dim`: lengths, `tap`, gradients, no effect of padding, neighbours.

    If it has `start`, `step` and `finish`, a stream has to give what the whole gives.

    >>> check_encoder(lambda input_dim: torch.nn.LSTM(input_dim, 8), input_dim=40)
    Traceback (most recent call last):
    AssertionError: LSTM: has no attribute 'dim'.
    """
    encoder = copy.deepcopy(encoder if isinstance(encoder, nn.Module) else encoder(input_dim=input_dim))
    name = type(encoder).__name__
    require_attributes(encoder, dim=int, stride=int)
    frames = int(encoder.output_lengths(torch.tensor([10_000])))
    even = abs(frames * encoder.stride / 10_000 - 1) < 0.01
    require(even, f"{name}: stride={encoder.stride}, but 10,000 frames become {frames}.")
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 120, 61, 119])
    features = torch.randn(4, 120, input_dim, generator=random)
    encoder.eval()
    check_lengths(encoder, lambda t: torch.randn(1, t, input_dim, generator=random), [1, 2, 7, 64, 121])
    check_invariance(encoder, features, lengths, 1000.0)
    check_training_statistics(encoder, features)
    check_gradients(encoder, features, lengths)
    check_tap(encoder.eval(), features, lengths)
    check_stream(encoder, [torch.randn(1, t, input_dim, generator=random) for t in (3, 64, 121)])


def check_model(model: Any) -> None:
    """Check a whole `AcousticModel`: waveforms with NaN in their padding give what each utterance gives alone.

    >>> from asr.encoders import Gru
    >>> from asr.featurizers import Mfcc
    >>> from asr.model import AcousticModel
    >>> featurizer = Mfcc()
    >>> check_model(AcousticModel(featurizer, Gru(featurizer.dim, layers=1, width=8), labels=5))
    """
    model.eval()
    rate = model.sample_rate
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([rate // 5, 2 * rate, rate + 7, 2 * rate - 1])
    waveforms = 0.1 * torch.randn(4, int(lengths.max()), generator=random)
    check_invariance(model, waveforms, lengths, float("nan"))
    log_probs, _ = model(waveforms, lengths)
    require(log_probs.dtype == torch.float32, f"log-probabilities must be float32, found {log_probs.dtype}.")
    require(close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2])), "probabilities do not sum to one.")


def check_augment(augment: nn.Module) -> None:
    """Check an augmentation: its draws depend on an utterance's seed alone, and its lengths are true.

    >>> from asr.augment import SpeedPerturbation
    >>> check_augment(SpeedPerturbation())
    """
    name = type(augment).__name__
    domain = getattr(augment, "domain", None)
    require(domain in ("waveform", "features"), f"{name}: its 'domain' must be 'waveform' or 'features'.")
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1600, 16000] * 16 if domain == "waveform" else [20, 200] * 16)
    x = torch.randn(32, int(lengths.max()), *([] if domain == "waveform" else [40]), generator=random)
    seeds = torch.arange(32) // 2  # both lengths with every seed
    for row in range(32):
        x[row, lengths[row] :] = 0
    before = x.clone()
    y, new = augment(x, lengths, seeds)
    require(torch.equal(x, before), f"{name}: alters its input in place.")
    require(new.dtype == torch.int64 and new.shape == lengths.shape, f"{name}: lengths must be (B,) int64.")
    require(bool((new > 0).all()) and int(new.max()) <= y.shape[1], f"{name}: a length is 0, or beyond the output.")
    speed = getattr(augment, "max_speed", 1.0)
    long_enough = bool((new >= (lengths / speed).floor() - 1).all())
    require(long_enough, f"{name}: shortens utterances by more than its max_speed={speed} says.")
    torch.rand(3), np.random.rand(3)  # whatever has been drawn before, the seed decides
    for row in range(32):
        alone, length = augment(x[row : row + 1, : lengths[row]], lengths[row : row + 1], seeds[row : row + 1])
        same = int(length) == int(new[row]) and close(alone[0, : int(length)], y[row, : int(length)])
        require(same, f"{name}: an utterance alone is altered in another way than in a batch, with the same seed.")
        require(not y[row, int(length) :].any(), f"{name}: the padding must stay zero.")
    again, lengths_again = augment(x, lengths, seeds + 100)
    fixed = torch.equal(new, lengths_again) and close(y, again) and not close(x, y)
    require(not fixed, f"{name}: other seeds make no difference.")


def check_objective(make: Callable[..., Any]) -> None:
    """Check an objective, or what makes one of a `model`: an utterance's loss is finite, and its own in any batch.

    >>> from asr.objectives import CrCtc
    >>> check_objective(CrCtc)
    """
    random = torch.Generator().manual_seed(0)
    frames, counts = torch.tensor([24, 120, 61, 4]), torch.tensor([1, 7, 0, 6])  # the last: more than its frames hold
    features, labels = torch.randn(2, 4, 120, 8, generator=random), torch.randint(1, 6, (4, 7), generator=random)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AcousticModel(LogMel(bands=8), Blstm(8, layers=3, width=8, channels=2, dropout=0.0), labels=6)
        objective = make(model=model)
    name = type(objective).__name__

    def call(rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        lengths, longest = frames[rows], int(frames[rows].max())
        padding = torch.arange(longest)[None, :] >= lengths[:, None]
        given = labels[rows, : max(int(counts[rows].max()), 1)]
        batch = Batch(torch.zeros(len(rows), 1), torch.ones_like(lengths), given, counts[rows], torch.tensor(rows))

        def view(number: int) -> tuple[Tensor, Tensor]:
            return features[number % 2, rows, :longest].masked_fill(padding[..., None], 0), lengths

        return objective(model, view, batch)

    losses, parts = call([0, 1, 2, 3])
    for key, values in {"loss": losses, **parts}.items():
        require(values.shape == (4,), f"{name}: '{key}' must be (B,), found {tuple(values.shape)}.")
        require(bool(values.isfinite().all()), f"{name}: '{key}' must be finite, found {values.tolist()}.")
    for row in range(4):
        alone = call([row])[0][0]
        leak = f"{name}: the loss of an utterance alone is {alone:.6g}, in a batch {losses[row]:.6g}."
        require(torch.allclose(alone, losses[row], rtol=1e-4, atol=1e-4), leak)
    losses.sum().backward()
    for key, parameter in model.named_parameters():
        gradient = torch.zeros(1) if parameter.grad is None else parameter.grad
        require(bool(gradient.any()), f"{name}: no gradient reaches the model's '{key}'.")
        require(bool(gradient.isfinite().all()), f"{name}: the gradient of '{key}' has NaN or infinite values.")


def check_text(text: Callable[[str], str], examples: Iterable[str] = TEXTS) -> None:
    """Check a text normaliser: from `str` to `str`, always the same, and doing it twice changes nothing.

    >>> check_text(str.lower, ["Stop", "GO ON"])
    """
    for example in ("", " ", *examples):
        once = text(example)
        require(isinstance(once, str), f"text: {example!r} becomes {once!r}, which is not a string.")
        require(text(example) == once, f"text: {example!r} becomes now {once!r}, now {text(example)!r}.")
        require(text(once) == once, f"text: not idempotent: {example!r} → {once!r} → {text(once)!r}.")
    require(pickle.loads(pickle.dumps(text))("") == text(""), "text: changes when it is pickled for worker processes.")


def check_tokenizer(tokenizer: Any, texts: Sequence[str] = TEXTS) -> None:
    """Check a tokenizer: fits, spells every text, keeps id 0 for blank, and is the same after saving and loading.

    >>> from asr.tokenizers import Words
    >>> check_tokenizer(Words())
    """
    name = type(tokenizer).__name__
    tokenizer.fit(iter(texts))
    labels, size = tokenizer.labels, len(tokenizer)
    require(len(labels) == size and len(set(labels)) == size, f"{name}: len() and 'labels' differ, or labels repeat.")
    require(len(tokenizer.word_starts) == size, f"{name}: 'word_starts' must have one boolean for each label.")
    require(hasattr(tokenizer, "skip"), f"{name}: needs 'skip', whether unknown units are left out.")
    require(tokenizer.decode([]) == "", f"{name}: no labels must decode to the empty text.")
    for text in texts:
        ids = tokenizer.encode(text)
        require(all(type(i) is int and 0 < i < size for i in ids), f"{name}: {text!r} → {ids}; ids are 1…{size - 1}.")
        require(tokenizer.decode(ids) == text, f"{name}: {text!r} is decoded as {tokenizer.decode(ids)!r}.")
        require(not tokenizer.unknown(text), f"{name}: 'unknown' lists units of a text that it was fitted on.")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        copies = [type(tokenizer).load(Path(folder)), pickle.loads(pickle.dumps(tokenizer))]
    for other in copies:
        require(other.labels == labels, f"{name}: has other labels after loading.")
        require([*map(other.encode, texts)] == [*map(tokenizer.encode, texts)], f"{name}: encodes otherwise, loaded.")


def check_vad(vad: Any) -> None:
    """Check a detector of voice activity: a boolean for each frame, block by block, no state between recordings.

    >>> from asr.vad import Energy
    >>> check_vad(Energy())
    """
    name = type(vad).__name__
    random = np.random.default_rng(0)
    for rate in (8000, 16000, 22050):
        blocks = [0.1 * random.standard_normal(n).astype(np.float32) for n in (rate, 1, rate // 10, rate // 3)]
        taken: list[np.ndarray] = []
        found = []
        for speech in vad((taken.append(block) or block for block in blocks), rate):  # type: ignore[func-returns-value]
            found.append(speech)
            require(len(taken) == len(found), f"{name}: reads block {len(taken)} ahead of its answer {len(found)}.")
            frames = -(-len(taken[-1]) * 1000 // (rate * vad.frame_ms))
            right = speech.dtype == np.bool_ and speech.shape == (frames,)
            require(right, f"{name}: {frames} frames need a boolean each, found {speech.dtype} {speech.shape}.")
        require(len(found) == len(blocks), f"{name}: {len(blocks)} blocks give {len(found)} answers.")
        other = vad((np.zeros(rate, np.float32) for _ in blocks), rate)  # meanwhile, another recording
        again = [speech for speech, _ in zip(pickle.loads(pickle.dumps(vad))(iter(blocks), rate), other, strict=True)]
        require(all(map(np.array_equal, found, again)), f"{name}: another recording, or pickling, changes the answers.")


def check_decoder(decoder: Callable[[Emissions], list[list[Hypothesis]]], tokenizer: Any) -> None:
    """Check a decoder, made with this tokenizer: n-best lists, empty utterances, no frame read past an utterance's end.

    If it has `start`, `step` and `finish`, a stream has to end with what the whole gives, and words stay as they are.

    >>> from asr.decoders import Greedy
    >>> from asr.tokenizers import Characters
    >>> letters = Characters(labels=" abc")
    >>> check_decoder(Greedy(letters), letters)
    """
    name, size = type(decoder).__name__, len(tokenizer)
    random = np.random.default_rng(0)
    lengths = np.array([40, 7, 0, 1])
    logits = 3 * random.standard_normal((4, 40, size)).astype(np.float32)
    logits[:, :, 0] += 2
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def decode(log_probs: np.ndarray, lengths: np.ndarray) -> list[list[Hypothesis]]:
        arrays = [log_probs.copy(), lengths.astype(np.int64)]
        given: list = [torch.from_numpy(a) for a in arrays] if getattr(decoder, "device", False) else arrays
        found = decoder(Emissions(*given, frame_seconds=0.04))  # type: ignore[misc]
        require(np.array_equal(np.asarray(given[0]), log_probs, equal_nan=True), f"{name}: alters the emissions.")
        return found

    found = decode(log_probs, lengths)
    require(len(found) == 4 and all(found), f"{name}: must return a list of one hypothesis or more per utterance.")
    for n_best, length in zip(found, lengths, strict=True):
        scores = [hypothesis.score for hypothesis in n_best]
        require(bool(np.isfinite(scores).all()), f"{name}: scores must be finite, found {scores}.")
        require(scores == sorted(scores, reverse=True), f"{name}: the n-best list must be best first, found {scores}.")
        for h in n_best:
            require(all(0 < k < size for k in h.labels), f"{name}: labels must be 1…{size - 1}, found {h.labels}.")
            require(len(h.labels) <= length, f"{name}: {len(h.labels)} labels in {length} frames.")
            for w in h.words:
                times = 0 <= w.start <= w.end <= 0.04 * length + 1e-3
                require(times and 0 <= w.confidence <= 1, f"{name}: {w} in {0.04 * length:.2f} s of audio.")
    require(found[2][0].text == "", f"{name}: an utterance without frames must give the empty text.")
    garbage = log_probs.copy()
    for row, length in enumerate(lengths):
        garbage[row, length:] = np.nan
    require(_same(decode(garbage, lengths), found), f"{name}: reads frames past an utterance's length.")
    alone = [decode(log_probs[k : k + 1, : max(n, 1)], lengths[k : k + 1])[0] for k, n in enumerate(lengths)]
    require(_same(alone, found), f"{name}: an utterance alone is decoded otherwise than in a batch.")
    first = next(label for label in range(1, size) if tokenizer.decode([label]).strip())
    wanted = (first, first, *(label for label in range(1, size) if label != first))
    path = [0, first, first, 0, *wanted[1:]]
    sure = np.full((1, len(path), size), -30.0, np.float32)
    sure[0, np.arange(len(path)), path] = -1e-6
    best = decode(sure, np.array([len(path)]))[0][0]
    require(tuple(best.labels) == wanted, f"{name}: certain emissions of {wanted} are decoded as {best.labels}.")
    if not hasattr(decoder, "step"):
        return
    for size in (1, 13):
        state, words = decoder.start(), []  # type: ignore[attr-defined]
        for start in range(0, 40, size):
            part = log_probs[:1, start : start + size].copy()
            words += decoder.step(Emissions(part, np.array([part.shape[1]]), 0.04), state).words
        n_best = decoder.finish(state)  # type: ignore[attr-defined]
        require(_same([n_best], found[:1]), f"{name}: a stream ends otherwise than the whole.")
        require(n_best[0].words[: len(words)] == tuple(words), f"{name}: words that were final have changed.")


def _same(one: list[list[Hypothesis]], other: list[list[Hypothesis]]) -> bool:
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return all(a.labels == b.labels and a.text == b.text and abs(a.score - b.score) < 1e-3 for a, b in pairs)
