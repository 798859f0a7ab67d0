"""A whole training: it learns, it resumes exactly, and the number of processes makes no difference."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

import asr
from asr.bundle import install_decoder, load_config
from asr.errors import CheckpointError, ConfigError, DataError
from asr.training.lost_ranks import check_torchrun

from .conftest import PHONES, SMALL, killed

SCRIPTS = Path(__file__).parents[2] / "scripts"
EMA = "callbacks=[checkpoints,ema]"
SHORT = ("epochs=3", "data.batch_seconds=8", "callbacks.last.every_n_train_steps=2")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def difference(first: Path, second: Path) -> float:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def check_card(bundle: Path, wer: float) -> None:
    """What the Hub reads of it, and `asr info`."""
    from huggingface_hub import ModelCard

    from asr.info import describe_checkpoint

    card = ModelCard.load(bundle / "README.md")
    assert card.data.library_name == "asr-pipeline" and card.data.pipeline_tag == "automatic-speech-recognition"
    assert card.data.license == "cc-by-4.0" and card.data.metrics == ["wer", "cer"] and "blstm" in card.data.tags
    results = {(r.metric_type, r.dataset_split): r.metric_value for r in card.data.eval_results}
    assert results[("wer", "validation")] == round(100 * wer, 2) and ("cer", "validation") in results
    rows = describe_checkpoint(bundle)
    found = dict(rows)
    assert found["licence"] == "cc-by-4.0" and found["data"].startswith("Trained on ")
    assert found["name"] == card.data.model_name and f"torch {torch.__version__.split('+')[0]}" in found["versions"]
    assert [value.split(": ")[1][:3] for what, value in rows if what == "scores"] == ["WER", "CER"]
    assert (
        "Blstm on LogMel" in found["model"]
        and "M parameters" in found["model"]
        and found["decoder"].startswith("Greedy")
    )


def test_from_manifest_to_transcript(train, tones):
    run = train(
        "run", "license=cc-by-4.0", "epochs=25", "optimizer.lr=0.01", "data.batch_seconds=10", "encoder.dropout=0.1"
    )
    summary = json.loads((run / "evaluation" / "validation" / "summary.json").read_text())
    assert summary["wer"]["rate"] <= 0.05, summary["wer"]
    results = [json.loads(line) for line in (run / "evaluation/validation/results.jsonl").open()]
    trained_on = {json.loads(line)["id"] for line in (run / "validation.jsonl").open()}
    assert {row["id"] for row in results} == trained_on

    recognizer = asr.load(run)
    audio = tones.with_name("03.flac")
    transcript = recognizer.transcribe(str(audio))
    reference = [json.loads(line)["text"] for line in tones.open()][3]
    assert transcript.text == reference
    assert [word.text for word in transcript.words] == reference.split()
    # the tones start at 0.15 s and every 0.4 s; CTC may be late, never early by more than a frame or two
    for k, word in enumerate(transcript.words):
        assert 0.05 + 0.4 * k < word.start < 0.55 + 0.4 * k
    assert transcript.duration == pytest.approx(soundfile.info(audio).duration)
    check_card(run / "bundle", summary["wer"]["rate"])
    assert json.loads((run / "run.json").read_text())["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    "step, options", [(1, ()), (3, ()), (5, ()), (8, ()), (5, ("objective=cr_ctc", EMA)), (5, (*PHONES, EMA))]
)
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(train, monkeypatch, step, options):
    whole = train("whole", *SHORT, *options)
    steps = sum(1 for _ in (whole / "metrics.csv").open())
    assert steps > 0

    with killed(monkeypatch, "on_train_batch_end", step=step):
        train("cut", *SHORT, *options)
    cut = train("cut", *SHORT, *options, "resume=auto")
    assert difference(whole, cut) == 0


def test_masks_rest_until_their_first_step(train):
    options = ("epochs=1", "data.batch_seconds=8", "max_steps=3", "encoder.dropout=0")
    masked = (*options, "augment=[specaugment]")
    without = train("without", *options, "augment=[]")
    assert difference(without, train("after", *masked, "augment.specaugment.start_step=3")) == 0
    assert difference(without, train("in", *masked, "augment.specaugment.start_step=2")) > 0


def test_two_views_come_with_their_first_step(train):
    """Before it, every step is CTC's, with its intermediate layers, and the same draws."""
    options = ("epochs=1", "data.batch_seconds=8", "max_steps=3", "encoder.layers=2", "augment=[specaugment]")
    options += ("objective.intermediate_layers=[1]",)
    ctc, two = train("ctc", *options, "objective=inter_ctc"), (*options, "objective=cr_ctc")
    assert difference(ctc, train("after", *two, "objective.start_step=3")) == 0
    assert difference(ctc, train("in", *two, "objective.start_step=2")) > 0


def test_phones_are_learnt_but_not_kept(train):
    run = train("run", "epochs=1", *PHONES)
    assert not [name for name in weights(run) if "phones" in name]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["objective.phones.head.weight"].shape == (8 + 1, 48)
    assert train("next", "epochs=1", f"init_from={run}", "encoder.layers=2").is_dir()


def test_fused_or_not_an_optimizer_does_the_same(train):
    options = ("epochs=1", "data.batch_seconds=8", "max_steps=3")
    for clipping in ("norm", "value"):
        given = (*options, f"+trainer.gradient_clip_algorithm={clipping}", "trainer.gradient_clip_val=0.1")
        fused, plain = (train(f"{clipping}-{fused}", *given, f"optimizer.fused={fused}") for fused in ("null", "false"))
        assert 0 < difference(fused, plain) < 1e-6


def test_a_second_augmentation_of_a_kind_draws_for_itself(train):
    """The same masks once more would change nothing."""
    options = ("epochs=1", "data.batch_seconds=8", "max_steps=1", "encoder.dropout=0", "augment=[specaugment]")
    assert difference(train("one", *options), train("two", *options, "+augment@augment.second=specaugment")) > 0


def test_the_sampler_does_not_read_past_audio_on_resume(train, monkeypatch):
    with killed(monkeypatch, "on_train_batch_end", step=4):
        train("cut", *SHORT, "data.validation_speakers=0", "epochs=1")
    read = []
    from asr.data import loader

    original = loader.read_audio
    monkeypatch.setattr(loader, "read_audio", lambda path, *rest: read.append(path) or original(path, *rest))
    train("cut", *SHORT, "data.validation_speakers=0", "epochs=1", "resume=auto")
    whole_epoch = 40
    assert 0 < len(read) < whole_epoch


def test_killed_for_real(tones, tmp_path, train):
    whole = train("whole", *SHORT, "epochs=30")
    out = tmp_path / "cut"
    arguments = [*SMALL, *SHORT, "epochs=30", f"data.train={tones}", f"out={out}", "resume=auto"]
    process = subprocess.Popen([sys.executable, SCRIPTS / "train.py", *arguments], stdout=subprocess.DEVNULL)
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "bundle").exists()
    train("cut", *SHORT, "epochs=30", "resume=auto")
    assert difference(whole, out) == 0


@pytest.mark.parametrize(
    "objective",
    [("objective=ctc", "augment=[]"), ("objective=cr_ctc", "augment=[specaugment]"), ("augment=[]", *PHONES)],
    ids=["ctc", "cr_ctc", "phones"],
)
def test_two_processes_equal_one_that_accumulates(tones, tmp_path, train, objective):
    """The same gradients, validation counts and utterances, where ranks have fewer of them, and some batches none."""
    options = ("epochs=2", "data.batch_seconds=2.5", "data.validation_batch_seconds=1", "data.buckets=3")
    options += ("encoder.dropout=0", "trainer.log_every_n_steps=1", *objective)
    two = tmp_path / "two"

    def noting(name: str) -> list[str]:
        callbacks = {"notes": "Notes", "gradients": "Gradients"}
        targets = [f"+callbacks.{key}._target_=tests.training.faults.{kind}" for key, kind in callbacks.items()]
        return targets + [f"+callbacks.{key}.path={tmp_path / name}-{key}" for key in callbacks]

    one = train("one", *options, *noting("one"), "trainer.accumulate_grad_batches=2")
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    arguments = [*SMALL[1:], *devices, *options, *noting("two"), f"data.train={tones}", f"out={two}"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    subprocess.run([sys.executable, SCRIPTS / "train.py", *arguments], check=True, timeout=300, env=environment)
    assert difference(one, two) < 1e-5
    first, second = (
        [json.loads(line) for line in (run / "evaluation/validation/results.jsonl").open()] for run in (one, two)
    )
    assert first == second

    steps, others = (torch.load(tmp_path / f"{name}-gradients") for name in ("one", "two"))
    assert len(steps) == len(others) > 20
    for mine, theirs in zip(steps, others, strict=True):
        assert mine.keys() == theirs.keys()
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-5

    def noted(name: str, part: str) -> list[list[int]]:
        """[epoch, number, utterances …] of each batch."""
        return [[*map(int, line.split())][1:] for line in (tmp_path / f"{name}-notes-{part}").open()]

    ranks = noted("two", "0"), noted("two", "1")
    assert [batch[2:] for pair in zip(*ranks, strict=True) for batch in pair] == [b[2:] for b in noted("one", "0")]
    assert any(len(batch) == 2 for batch in ranks[1]) and all(len(batch) > 2 for batch in ranks[0])
    ranks = noted("two", "validation-0"), noted("two", "validation-1")
    assert len(ranks[0]) == len(ranks[1]) and any(len(batch) == 2 for batch in ranks[1])
    for epoch in (0, 1):
        validated = sorted(k for batch in (*ranks[0], *ranks[1]) if batch[0] == epoch for k in batch[2:])
        assert validated == sorted(k for batch in noted("one", "validation-0") if batch[0] == epoch for k in batch[2:])
        assert len(set(validated)) == len(validated) == 5
    rates = []
    for run in (one, two):
        with (run / "metrics.csv").open(newline="") as file:
            rates.append([(row["val_wer"], row["val_cer"]) for row in csv.DictReader(file) if row["val_wer"]])
    assert rates[0] == rates[1] and len(rates[0]) == 2


def test_an_existing_folder_is_left_alone(train, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="resume=auto"):
        train("run")
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_resuming_writes_over_nothing_but_what_it_began(train, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"would write over metrics\.csv"):
        train("run", "resume=auto")
    (out / "metrics.csv").unlink()
    (out / "slurm.log").write_text("a log of the launcher")
    train("run", "epochs=1", "resume=auto")
    shutil.rmtree(out / "checkpoints")
    before = (out / "bundle" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="would write over bundle"):
        train("run", "epochs=1", "seed=1", "resume=auto")
    assert (out / "bundle" / "model.safetensors").read_bytes() == before
    shutil.rmtree(out / "bundle")
    shutil.rmtree(out / "evaluation")
    train("run", "epochs=1", "resume=auto")  # as after a stop ahead of the first checkpoint


@pytest.mark.parametrize(
    "options, named",
    [
        (["encoder.width=20"], r"encoder\.width"),
        (["text.case=upper"], r"text\.case"),
        (["epochs=4"], "steps of the schedule"),
        (["freeze=[head]"], "freeze"),
        (["learning_rates={head:2}"], r"learning_rates\.head"),
        (["optimizer.lr=1e-5"], r"optimizer\.lr"),
        (["schedule=noam"], r"schedule\._target_"),
        (["objective=cr_ctc"], r"objective\._target_"),
        (["augment.speed.factors=[0.8,1.0]"], r"augment\.speed\.factors"),
        (["augment=[]"], r"augment\.speed"),
        (["seed=9"], "seed"),
    ],
)
def test_a_run_is_not_resumed_as_another(train, options, named):
    run = train("run", "epochs=1")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(CheckpointError, match=named):
        train("run", "epochs=1", "resume=auto", *options)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_is_not_resumed_with_other_phones(train, tmp_path):
    lexicon = tmp_path / "words.dict"
    lexicon.write_text("low L OW\nmiddle M IH D AH L\nhigh HH AY\n")
    options = (*SHORT, *PHONES, f"objective.phones={lexicon}")
    train("run", *options)
    lexicon.write_text("low L OW\nmiddle M UH D AH L\nhigh HH AY\n")  # as many
    with pytest.raises(CheckpointError, match="what the objective learns"):
        train("run", *options, "resume=auto")


def test_a_run_of_a_release_with_fewer_options_is_resumed(train, tmp_path):
    run = train("run", *SHORT)
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["recognizer"]["learning"]["objective"]["phone_weight"]
    torch.save(checkpoint, path)
    assert train("run", *SHORT, "resume=auto").is_dir()


def test_more_epochs_where_the_schedule_does_not_depend_on_them(train):
    train("cosine", "epochs=1", "schedule=warmup_cosine")
    with pytest.raises(CheckpointError, match="steps of the schedule"):
        train("cosine", "epochs=2", "schedule=warmup_cosine", "resume=auto")
    train("constant", "epochs=1", "schedule=constant")
    more = train("constant", "epochs=2", "schedule=constant", "resume=auto")
    assert difference(more, train("whole", "epochs=2", "schedule=constant")) == 0


def test_the_best_checkpoint_moves_with_the_run(train, tmp_path):
    run = train("run", *SHORT)
    [best] = (run / "checkpoints").glob("best-*")
    # nothing that comes can be better
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    [state] = [state for state in checkpoint["callbacks"].values() if "best_k_models" in state]
    state |= {"best_model_score": torch.tensor(-1.0), "best_k_models": {str(best): torch.tensor(-1.0)}}
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    run.rename(tmp_path / "moved")
    moved = train("moved", *SHORT, "resume=auto")
    state = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=False)["callbacks"]
    [state] = [state for state in state.values() if "best_k_models" in state]
    assert state["best_model_path"] == str(moved / "checkpoints" / best.name) and state["best_model_score"] == -1
    assert difference(moved, moved) == 0


def test_a_bundle_with_an_installed_decoder_is_kept(train, capsys):
    run = train("run", *SHORT)
    install_decoder(run, {"_target_": "asr.decoders.Greedy", "blank_penalty": 1.5})
    train("run", *SHORT, "resume=auto")
    assert "bundle-1: another decoder was installed" in " ".join(capsys.readouterr().out.split())
    assert load_config(run / "bundle-1")["decoder"]["blank_penalty"] == 1.5
    assert load_config(run / "bundle")["decoder"]["blank_penalty"] == 0
    train("run", *SHORT, "resume=auto")
    assert not (run / "bundle-2").exists()


def test_a_finished_run_has_nothing_left_to_resume(train):
    run = train("run", *SHORT)
    before = weights(run)
    train("run", *SHORT, "resume=auto")
    after = weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (run / "run-1.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["schedule=plateau", "optimizer=sgd", "trainer.check_val_every_n_epoch=2"],
        ["schedule=noam", "trainer.precision=bf16-mixed", "normalization=utterance"],
        ["schedule=warmup_cosine", "encoder=gru", "featurizer=mfcc", "tokenizer=characters", "monitor=val_cer"],
        [
            "objective=inter_ctc",
            "objective.intermediate_layers=[1]",
            "self_conditioning=[1]",
            "encoder.layers=2",
            "trainer.precision=bf16-mixed",
        ],
        ["objective=cr_ctc", "augment=[tempo,specaugment]", "augment.tempo.lowest=0.6"],
        ["objective=cr_ctc", *PHONES, "trainer.precision=bf16-mixed", "tokenizer=characters"],
        ["trainer.precision=bf16-mixed", "encoder.subsampling=stack"],
        ["+optimizer.foreach=true"],
        ["optimizer.fused=true", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.1"],
        ["trainer.precision=auto", "+trainer.gradient_clip_algorithm=value"],
        ["schedule=constant", "callbacks=[checkpoints,early_stopping]", "featurizer=spectrogram", "max_steps=3"],
    ],
)
def test_options_go_together(train, options):
    run = train("run", "epochs=2", *options)
    assert asr.load(run).pipeline.tokenizer.labels[0] == "<blank>"


def test_many_manifests(train, tones, tmp_path):
    """The same ids in several manifests, and test manifests of the same name, are kept apart."""
    rows = [json.loads(line) for line in tones.open()]
    for row in rows:
        row["audio_filepath"] = str(tones.parent / row["audio_filepath"])
        row["id"] = Path(row["audio_filepath"]).stem
    paths = []
    for name in "ab":
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "m.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    both = f"[{paths[0]},{paths[1]}]"
    run = train("run", "epochs=1", f"data.train={both}", f"data.validation={both}", f"data.test={both}")
    summaries = {path.parent.name: json.loads(path.read_text()) for path in run.glob("evaluation/*/summary.json")}
    assert {name: summary["utterances"] for name, summary in summaries.items()} == {"validation": 12, "m": 6, "b-m": 6}


def test_what_cannot_be_scored_is_found_before_training(train, tmp_path):
    for option in ("data.test", "data.validation"):
        with pytest.raises(DataError, match="no such manifest"):
            train("run", f"{option}={tmp_path / 'missing.jsonl'}")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_vocabulary_is_refused(train, tones, tmp_path):
    train("run", "epochs=1")
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in tones.open()]
    for row in rows:
        row |= {"text": row["text"].replace("high", "top"), "audio_filepath": str(tones.parent / row["audio_filepath"])}
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match="labels"):
        train("run", "epochs=1", "resume=auto", f"data.train={other}")


def test_all_speakers_are_trained_on_without_validation(train):
    run = train("run", "epochs=1", "data.validation_speakers=0")
    assert not (run / "validation.jsonl").exists()
    assert (run / "bundle" / "model.safetensors").exists()


def test_restarts_by_torchrun_need_a_store_of_their_own():
    restarts = {"TORCHELASTIC_MAX_RESTARTS": "3", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with pytest.raises(ConfigError, match="Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_torchrun(restarts)
    for other in ({"TORCHELASTIC_USE_AGENT_STORE": "False"}, {"TORCHELASTIC_MAX_RESTARTS": "0"}, {"WORLD_SIZE": "1"}):
        check_torchrun(restarts | other)
    check_torchrun({})


def test_noise_from_a_folder_is_another_augmentation_than_coloured_noise(train, tones):
    options = ("epochs=2", "max_steps=1", "augment=[noise]")
    train("run", *options)
    with pytest.raises(CheckpointError, match=r"because this has changed: augment\.noise\.path\."):
        train("run", *options, f"augment.noise.path={tones.parent}", "resume=auto")
