"""A peer: SpeechBrain's CRDNN with CTC, trained by its own Brain on the speech of one of our runs, for a given time.

Model, features, augmentation, optimizer and annealing are those of its TIMIT recipe (recipes/TIMIT/ASR/CTC): two blocks
of convolutions, four bidirectional Li-GRUs of 512, two dense layers, 9.7 M parameters. The labels are characters
instead of phonemes, and the noise that is added is white, for the recipe's recordings would have to be downloaded.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from asr.benchmarks.report import Measurement, machine
from asr.data.audio import read_audio
from asr.data.index import ManifestIndex
from asr.errors import ConfigError
from asr.evaluation import paired_difference
from asr.evaluation.counts import ErrorCounts
from asr.evaluation.decode import evaluate_manifest
from asr.evaluation.report import UNITS, summarize
from asr.evaluation.result import Result, make_results
from asr.recognizer import load
from asr.types import Utterance

try:
    import speechbrain as sb
    from speechbrain.augment.augmenter import Augmenter
    from speechbrain.augment.time_domain import AddNoise, DropChunk, DropFreq, SpeedPerturb
    from speechbrain.dataio.dataset import DynamicItemDataset
    from speechbrain.decoders.ctc import ctc_greedy_decode
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.CRDNN import CRDNN
    from speechbrain.nnet.linear import Linear
    from speechbrain.nnet.losses import ctc_loss
    from speechbrain.nnet.schedulers import NewBobScheduler, update_learning_rate
    from speechbrain.processing.features import InputNormalization
except ImportError as error:
    raise ConfigError(f"speechbrain is not installed ({error}): pip install 'asr-pipeline[benchmark]'") from None

RATIO = 0.85
"""The most that our error rate may be of theirs."""
RATE, BANDS, BATCH, NEURONS = 16000, 40, 8, 512


def speechbrain(config: Mapping[str, Any], folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Train the peer on what a run was trained on, and score both on the run's held-out speakers.

    The peer anneals its learning rate by the held-out speakers and is scored at its best epoch on them, as its recipe
    would choose it; the time that this validation takes is not counted.

    Args:
        config: with `checkpoint`, a run's folder; `manifest`, the speech from which the run held speakers out;
            `minutes` of training; `group_by`, as in `evaluate`.
        folder: not used.
    """
    for key in ("checkpoint", "manifest"):
        if not config[key]:
            raise ConfigError(f"{key}: has to be given to compare a run with SpeechBrain: {key}=…")
    held_out = Path(config["checkpoint"], "validation.jsonl")
    if not held_out.is_file():
        raise ConfigError(f"checkpoint={config['checkpoint']}: is no run that held speakers out (no {held_out.name}).")
    torch.set_num_threads(config["threads"] or torch.get_num_threads())
    recognizer = load(config["checkpoint"], config["device"])
    ours, _ = evaluate_manifest(recognizer, held_out)
    validation = [_normalised(utterance, recognizer) for utterance in ManifestIndex(held_out)]
    scored = {utterance.id for utterance in validation}
    train = [_normalised(u, recognizer) for u in ManifestIndex(config["manifest"]) if u.id not in scored]
    torch.manual_seed(config["seed"])
    peer = Peer(train, validation, config["minutes"], str(recognizer.device))
    peer.train()
    sizes = [sum(p.numel() for p in modules.parameters()) / 1e6 for modules in (recognizer.model, peer.modules)]
    return _compare(ours, peer.results, config["group_by"]), machine(recognizer.device) | {
        "parameters": f"ours {sizes[0]:.2f} M, SpeechBrain {sizes[1]:.2f} M",
        "trained on": f"{len(train)} utterances",
        "SpeechBrain": f"{peer.minutes:.1f} min, {peer.epochs} epochs, the best {peer.best_epoch}",
    }


def _normalised(utterance: Utterance, recognizer: Any) -> Utterance:
    return replace(utterance, text=recognizer.pipeline.text(utterance.text or ""))


def _compare(ours: Sequence[Result], theirs: Sequence[Result], group_by: Sequence[str]) -> list[Measurement]:
    measured, totals = [], {}
    for name, results in (("ours", ours), ("SpeechBrain", theirs)):
        evaluation = summarize(results, group_by)
        groups = {"": evaluation.total}
        for key, apart in evaluation.groups.items():
            groups |= {f", {key.partition('<')[0]} {value}": scores for value, scores in apart.items()}
        for rate, unit in UNITS.items():
            totals[name, rate] = getattr(evaluation.total, unit).rate
            for group, scores in groups.items():
                counts = getattr(scores, unit)
                what = f"{name}{group}: {rate}"
                measured.append(
                    Measurement(what, what, 100 * counts.rate, "%", note=counts.format(rate).removeprefix(f"{rate} "))
                )
    for rate, unit in UNITS.items():
        ratio = totals["ours", rate] / totals["SpeechBrain", rate]
        note = paired_difference(ours, theirs, unit).format(rate, "SpeechBrain")
        measured.append(Measurement(f"ratio {rate}", f"ours / SpeechBrain: {rate}", ratio, "", RATIO, note))
    return measured


class Peer(sb.Brain):
    """The recipe's Brain, with characters, stopped by the clock.

    Args:
        train: what it learns; shortest first, as in the recipe.
        validation: what it is scored on after each epoch.
        minutes: of training.
        device: "cpu", "cuda", …
    """

    def __init__(self, train: Sequence[Utterance], validation: Sequence[Utterance], minutes: float, device: str):
        self.characters = ["", *sorted({c for utterance in train for c in utterance.text or ""})]  # 0 is blank
        self.data, self.references, self.limit = (train, validation), validation, minutes
        self.minutes, self.epochs = 0.0, 0
        self.best, self.best_epoch = math.inf, 0  # the least character error rate, and the epoch that had it
        self.results: list[Result] = []
        super().__init__(
            modules={
                "normalize": InputNormalization(norm_type="global"),
                "model": CRDNN(
                    input_size=BANDS, activation=torch.nn.LeakyReLU, dropout=0.15, time_pooling=True,
                    cnn_blocks=2, cnn_channels=(128, 256), cnn_kernelsize=(3, 3),
                    rnn_layers=4, rnn_neurons=NEURONS, rnn_bidirectional=True, dnn_blocks=2, dnn_neurons=NEURONS,
                ),
                "output": Linear(input_size=NEURONS, n_neurons=len(self.characters)),
            },
            opt_class=lambda parameters: torch.optim.Adadelta(parameters, rho=0.95, lr=1.0, eps=1e-8),
            hparams={
                "features": Fbank(sample_rate=RATE, n_fft=400, n_mels=BANDS),
                "augment": Augmenter(
                    concat_original=True, min_augmentations=4, max_augmentations=4,
                    augmentations=[
                        AddNoise(snr_low=0, snr_high=15),
                        SpeedPerturb(orig_freq=RATE, speeds=[95, 100, 105]),
                        DropFreq(drop_freq_low=0, drop_freq_high=1, drop_freq_count_low=1, drop_freq_count_high=3),
                        DropChunk(drop_length_low=1000, drop_length_high=2000, drop_count_low=1, drop_count_high=5),
                    ],
                ),
                "annealing": NewBobScheduler(initial_value=1.0, improvement_threshold=0.0025, annealing_factor=0.8),
            },
            run_opts={"device": device, "noprogressbar": True, "jit": True, "jit_module_keys": ["model"]},
        )  # fmt: skip

    def train(self) -> None:
        """Train until the time is over."""
        options = {"batch_size": BATCH, "num_workers": 1}
        train, validation = map(self._dataset, self.data)
        self.fit(itertools.count(1), train, validation, train_loader_kwargs=options, valid_loader_kwargs=options)

    def compute_forward(self, batch: Any, stage: Any) -> tuple[torch.Tensor, torch.Tensor]:
        waveforms, lengths = batch.to(self.device).sig
        if stage == sb.Stage.TRAIN:
            waveforms, lengths = self.hparams.augment(waveforms, lengths)
        features = self.modules.normalize(self.hparams.features(waveforms), lengths, epoch=self.epochs)
        return self.modules.output(self.modules.model(features)).log_softmax(-1), lengths

    def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> torch.Tensor:
        log_probs, lengths = predictions
        labels, label_lengths = batch.labels
        if stage == sb.Stage.TRAIN:
            labels, label_lengths = map(self.hparams.augment.replicate_labels, (labels, label_lengths))
        else:
            found = ctc_greedy_decode(log_probs, lengths, blank_id=0)
            self.texts |= dict(zip(batch.id, ("".join(self.characters[k] for k in row) for row in found), strict=True))
        return ctc_loss(log_probs, labels, lengths, label_lengths, blank_index=0)

    def on_stage_start(self, stage: Any, epoch: int | None = None) -> None:
        self.texts: dict[str, str] = {}
        self.began = time.monotonic()

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
        if self.minutes + (time.monotonic() - self.began) / 60 >= self.limit:
            self.optimizer_step_limit = self.optimizer_step  # ends the epoch and, after its validation, the training

    def on_stage_end(self, stage: Any, stage_loss: float, epoch: int | None = None) -> None:
        if stage == sb.Stage.TRAIN:
            self.minutes += (time.monotonic() - self.began) / 60
            self.epochs = epoch or 0
            return
        texts = [" ".join(self.texts[utterance.id].split()) for utterance in self.references]
        results = make_results(self.references, texts)
        wrong = sum((result.characters for result in results), ErrorCounts()).rate
        if wrong < self.best:
            self.best, self.results, self.best_epoch = wrong, results, self.epochs
        update_learning_rate(self.optimizer, self.hparams.annealing(wrong)[1])
        scored = f"epoch {epoch}, loss {stage_loss:.3f}, CER {100 * wrong:.2f} %"
        print(f"SpeechBrain: {self.minutes:.1f} min, {scored}", flush=True)

    def _dataset(self, utterances: Sequence[Utterance]) -> DynamicItemDataset:
        numbers = {character: number for number, character in enumerate(self.characters)}

        def read(utterance: Utterance) -> torch.Tensor:
            return torch.from_numpy(read_audio(utterance.audio_filepath, RATE, utterance.offset, utterance.duration))

        def encode(utterance: Utterance) -> torch.Tensor:
            return torch.tensor([numbers[c] for c in utterance.text or "" if c in numbers])

        dataset = DynamicItemDataset({u.id: {"utterance": u, "duration": u.duration} for u in utterances})
        dataset.add_dynamic_item(read, takes="utterance", provides="sig")
        dataset.add_dynamic_item(encode, takes="utterance", provides="labels")
        dataset.set_output_keys(["id", "sig", "labels"])
        return dataset.filtered_sorted(sort_key="duration")
