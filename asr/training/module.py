"""One training step, one validation, and what they log."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from asr.augment.seeds import other_seeds, utterance_seeds
from asr.errors import AsrError, ConfigError
from asr.evaluation.counts import ErrorCounts, count_characters, count_words
from asr.objectives.ctc import ctc_losses, fits
from asr.pipeline import Pipeline
from asr.plugins import instantiate
from asr.training.checkpoints import (
    fit_world_size,
    follow_folder,
    keep_rest_of_epoch,
    stopped_early,
    validate_between_steps,
)
from asr.training.transfer import parameter_groups
from asr.types import Batch, Emissions, Utterance


class SpeechRecognition(L.LightningModule):
    """Trains a pipeline's acoustic model by an objective, validates it by CTC and error rates.

    The loss of an optimizer step is the sum of its utterances' losses, over all ranks and accumulated batches, divided
    by their number: how the utterances are spread makes no difference. All randomness of a step is a function of
    (seed, epoch, position in the epoch), so a resumed run draws what the uninterrupted one drew.

    Args:
        pipeline: the stages; its model is trained.
        objective, optimizer, schedule: configs that name them.
        augment: configs of augmentations, by name.
        steps: optimizer steps of the whole training, for the schedule.
        micro_batches_per_step: ranks times accumulated batches.
        references: the utterances that validation batches number, for their transcripts.
        seed: of augmentation and dropout.
        monitor: the validation figure that a plateau schedule watches.
        describe: gives what a checkpoint holds besides the weights, to be loaded without the run's folder.
        examples: how many references to print against their hypotheses at each validation.
        learning_rates: multiples of the optimizer's, by names of parameters, see `parameter_groups`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        objective: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        augment: Mapping[str, Mapping[str, Any]],
        steps: int,
        micro_batches_per_step: int = 1,
        references: Sequence[Utterance] | None = None,
        seed: int = 0,
        monitor: str = "val_wer",
        describe: Callable[[], dict[str, Any]] | None = None,
        examples: int = 3,
        learning_rates: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.pipeline, self.model = pipeline, pipeline.model
        self.optimizer_config, self.schedule_config, self.steps = optimizer, schedule, steps
        self.micro_batches_per_step, self.references = micro_batches_per_step, references
        self.seed, self.examples = seed, examples
        self.monitor, self.describe, self.learning_rates = monitor, describe, learning_rates
        stages = build_augmentations(augment)
        self.waveform_augment = nn.ModuleList(stage for stage in stages if stage.domain == "waveform")
        self.feature_augment = nn.ModuleList(stage for stage in stages if stage.domain == "features")
        self.objective = instantiate(objective, "objective", model=self.model)
        self._asked_to_stop = False
        self.batch: Batch | None = None
        """What is, or was last, computed."""
        self.step_losses: list[tuple[Batch, Tensor]] = []
        """This rank's micro-batches of the present step, and the losses (B,) of their utterances."""

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(waveforms, lengths)

    # --- training

    def on_train_start(self) -> None:
        validate_between_steps(self.trainer)
        self.trainer.should_stop = stopped_early(self.trainer)

    def on_train_batch_end(self, *_: Any) -> None:  # after that of all callbacks, which may ask to stop at any batch
        self._asked_to_stop |= self.trainer.should_stop
        self.trainer.should_stop = self._asked_to_stop and not self.trainer.fit_loop.epoch_loop._should_accumulate()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        position = batch_idx * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(int(utterance_seeds(self.seed, self.current_epoch, torch.tensor([-1 - position]))))
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.step_losses = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if not len(batch):  # a rank without utterances still takes part in the step
            return sum(parameter.sum() for parameter in self.parameters()) * 0.0  # type: ignore[return-value]
        self.batch = batch
        losses, parts = self.losses(batch)
        self.step_losses.append((batch, losses.detach()))
        self.log("train_loss", losses.detach().mean(), prog_bar=True, batch_size=len(batch))
        for name, part in parts.items():
            self.log(f"train_{name}", part.detach().mean(), batch_size=len(batch))
        # Lightning divides by the accumulated batches, DDP by the ranks: their product is undone here
        return losses.sum() * (self.micro_batches_per_step / batch.step_utterances)

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses of augmented utterances, and the parts that the objective tells apart."""
        seeds = utterance_seeds(self.seed, self.current_epoch, batch.indices)
        waveforms, lengths = batch.waveforms, batch.lengths
        # no autocast: half precision would alter the samples, and which ones would depend on the batch
        with torch.no_grad(), torch.autocast(waveforms.device.type, enabled=False):
            for augment, twin in self._begun(self.waveform_augment):
                waveforms, lengths = augment(waveforms, lengths, other_seeds(seeds, twin=twin))
        learnt = any(parameter.requires_grad for parameter in self.model.featurizer.parameters())
        with torch.set_grad_enabled(learnt):
            features, lengths = self.model.features(waveforms, lengths)

        @torch.set_grad_enabled(learnt)
        @torch.autocast(waveforms.device.type, enabled=False)
        def view(number: int) -> tuple[Tensor, Tensor]:
            seen, frames = features, lengths
            for augment, twin in self._begun(self.feature_augment):
                # what changes lengths does so in all views alike, or their frames could not be compared
                drawn = other_seeds(seeds, 0 if hasattr(augment, "max_speed") else number, twin)
                seen, frames = augment(seen, frames, drawn)
            return seen, frames

        begun = self.global_step >= getattr(self.objective, "start_step", 0)
        return (self.objective if begun else self.objective.before)(self.model, view, batch)

    def _begun(self, stages: nn.ModuleList) -> list[tuple[nn.Module, int]]:
        """The augmentations whose first step has come, each with the number of those of its kind before it."""
        kinds = [type(stage) for stage in stages]
        begun = [self.global_step >= getattr(stage, "start_step", 0) for stage in stages]
        return [(stage, kinds[:k].count(kinds[k])) for k, stage in enumerate(stages) if begun[k]]

    # --- validation

    def on_validation_epoch_start(self) -> None:
        self._words, self._characters = ErrorCounts(), ErrorCounts()
        self._sums = torch.zeros(4, dtype=torch.float64)  # loss, utterances with a loss, blank frames, frames
        self._examples: list[tuple[str, str]] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not len(batch):
            return
        self.batch = batch
        log_probs, lengths = self.model(batch.waveforms, batch.lengths)
        counted = (batch.label_lengths > 0) & fits(lengths, batch.labels, batch.label_lengths)
        losses = ctc_losses(log_probs, lengths, batch.labels, batch.label_lengths)[counted]
        real = torch.arange(log_probs.shape[1])[None, :] < lengths[:, None]
        blank = (log_probs.argmax(-1).cpu() == 0) & real
        self._sums += torch.tensor([float(losses.sum()), len(losses), float(blank.sum()), float(real.sum())])
        # decoders refuse what is no number: here that is blank, for it is no reason to end a training
        emissions = Emissions(log_probs.nan_to_num(nan=-1e9), lengths, self.model.frame_seconds)
        decoder = self.pipeline.decoder
        hypotheses = decoder(emissions if getattr(decoder, "device", False) else emissions.numpy())
        assert self.references is not None
        for index, (best, *_) in zip(batch.indices.tolist(), hypotheses, strict=True):
            reference = self.pipeline.text(self.references[index].text or "")
            self._words += count_words(reference, best.text)
            self._characters += count_characters(reference, best.text)
            if len(self._examples) < self.examples:
                self._examples.append((reference, best.text))

    def on_validation_epoch_end(self) -> None:
        words, characters = self._reduce(self._words), self._reduce(self._characters)
        sums = self.trainer.strategy.reduce(self._sums.to(self.device, torch.float32), reduce_op="sum").double()
        loss, blank = float(sums[0] / sums[1].clamp(min=1)), float(sums[2] / sums[3].clamp(min=1))
        values = {"val_loss": loss, "val_wer": words.rate, "val_cer": characters.rate, "val_blank": blank}
        # the same on every rank: the sums were reduced
        self.log_dict(values, sync_dist=True)
        if self.trainer.sanity_checking:
            return
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                known = self.trainer.callback_metrics | values
                if self.monitor not in known:
                    raise ConfigError(f"monitor={self.monitor}: nothing logs it. There is {', '.join(sorted(known))}.")
                self.lr_scheduler_step(config.scheduler, known[self.monitor])
        lines = [
            f"epoch {self.current_epoch}, step {self.global_step}: loss {loss:.3f}, {words.format('WER')}, "
            f"{characters.format('CER')}, blank {100 * blank:.0f} %"
        ]
        if blank > 0.99:
            lines.append("  (only blanks so far: CTC begins so, often for hundreds of steps)")
        for reference, hypothesis in self._examples:
            lines += [f"  reference   {reference}", f"  hypothesis  {hypothesis}"]
        self.print("\n".join(lines))

    def _reduce(self, counts: ErrorCounts) -> ErrorCounts:
        numbers = torch.tensor(
            [counts.substitutions, counts.deletions, counts.insertions, counts.reference], device=self.device
        )
        return ErrorCounts(*(int(n) for n in self.trainer.strategy.reduce(numbers, reduce_op="sum")))

    # --- optimization

    def configure_optimizers(self) -> Any:
        groups, multiples = parameter_groups(self, self.learning_rates)
        config = dict(self.optimizer_config)
        if "fused" in config and config["fused"] is None:  # a scaler's steps are not for fused ones that are clipped
            config["fused"] = self.device.type in ("cpu", "cuda") and not self._scaled and not config.get("foreach")
        optimizer = instantiate(config, "optimizer", params=groups)
        for group, multiple in zip(optimizer.param_groups, multiples, strict=True):
            group["lr"] *= multiple
        schedule = instantiate(self.schedule_config, "schedule", optimizer=optimizer, steps=self.steps)
        scheduler: dict[str, Any] = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            # never by Lightning, which knows epochs, but no validations, and would do it behind their checkpoints
            scheduler |= {"interval": "epoch", "frequency": sys.maxsize, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if not gradient_clip_val or self._scaled:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":  # Lightning's own refuses fused optimizers under any mixed precision
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    @property
    def _scaled(self) -> bool:
        """Whether the loss is scaled, for the sake of 16-bit gradients: by some trainers."""
        return self._trainer is not None and getattr(self._trainer.precision_plugin, "scaler", None) is not None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.describe is not None:
            checkpoint["recognizer"] = self.describe()
        checkpoint["world_size"] = self.trainer.world_size
        keep_rest_of_epoch(self.trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fit_world_size(checkpoint, self.trainer.world_size)
        follow_folder(self.trainer, checkpoint)


def build_augmentations(configs: Mapping[str, Mapping[str, Any]]) -> list[nn.Module]:
    """The augmentations that configs name, in their order.

    Raises:
        ConfigError: one of them does not say what it alters.
    """
    stages = []
    for name, config in (configs or {}).items():
        try:
            stage = instantiate(config, f"augment.{name}")
        except AsrError as error:  # which calls it by its kind
            raise type(error)(re.sub(r"^augment\.\w+", f"augment.{name}", str(error))) from None
        if getattr(stage, "domain", None) not in ("waveform", "features"):
            raise ConfigError(f"augment.{name}: its 'domain' must be 'waveform' or 'features'.")
        stages.append(stage)
    return stages
