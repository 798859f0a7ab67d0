"""The recipes of public corpora: each prepares a miniature of the official layout and takes a step at its real size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.training.run import set_up

from .conftest import composed

PLAIN = (
    "trainer=cpu", "threads=1", "data.workers=0", "logger=[]", "callbacks=[]", "epochs=1",
    "+trainer.enable_progress_bar=false", "+trainer.enable_checkpointing=false", "data.batch_seconds=30",
)  # fmt: skip


def sound(path: Path, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(round(1.2 * rate)), rate)


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def an4(root: Path) -> None:
    for split, folder in (("train", "an4_clstk"), ("test", "an4test_clstk")):
        ids = [f"{folder}/{speaker}/an{k}-{speaker}-b" for k, speaker in enumerate(("fash", "mwhw"))]
        for name in ids:
            sound(root / "wav" / f"{name}.flac")
        lines(root / f"etc/an4_{split}.fileids", *ids)
        lines(root / f"etc/an4_{split}.transcription", *(f"<s> GO TEN </s> ({Path(name).name})" for name in ids))


def speechocean762(root: Path) -> None:
    for split, speakers in (("train", range(5)), ("test", range(5, 7))):
        names = {f"{k:04}0011": f"WAVE/SPEAKER{k:04}/{k:04}0011.WAV" for k in speakers}
        for path in names.values():
            sound(root / path)
        lines(root / split / "wav.scp", *(f"{name}\t{path}" for name, path in names.items()))
        lines(root / split / "text", *(f"{name}\tWE CALL IT" for name in names))
        lines(root / split / "utt2spk", *(f"{name} {name[:4]}" for name in names))
        lines(root / split / "spk2age", *(f"{name[:4]} 6" for name in names))


def librispeech(root: Path) -> None:
    train, others = ("clean-100", "clean-360", "other-500"), ("dev-clean", "dev-other", "test-clean", "test-other")
    subsets = (*(f"train-{name}" for name in train), *others)
    for k, subset in enumerate(subsets):
        chapter = root / "LibriSpeech" / subset / f"{k}" / "208"
        for number in range(2):
            sound(chapter / f"{k}-208-000{number}.flac")
        lines(chapter / f"{k}-208.trans.txt", f"{k}-208-0000 IT'S FINE", f"{k}-208-0001 SO IT IS")


def aishell(root: Path) -> None:
    names = {"train": "BAC009S0002W0122", "dev": "BAC009S0724W0121", "test": "BAC009S0764W0121"}
    for split, name in names.items():
        sound(root / "data_aishell/wav" / split / name[6:11] / f"{name}.wav")
    texts = (f"{name} 而 对 楼市" for name in names.values())
    lines(root / "data_aishell/transcript/aishell_transcript_v0.8.txt", *texts)


def commonvoice(root: Path) -> None:
    for split in ("train", "dev", "test"):
        sound(root / f"clips/common_voice_cy_{split}.mp3", 48000)
        header = "client_id\tpath\tsentence\tlocale"
        lines(root / f"{split}.tsv", header, f"{split}\tcommon_voice_cy_{split}.mp3\tBore da!\tcy")


PIECES = ("tokenizer.vocab_size=12",)
RECIPES = {
    "an4": ([an4], "train", 0, "test", PIECES),
    "speechocean762": ([speechocean762], "train", 1, "test", PIECES),
    "an4_speechocean762": (
        [an4, speechocean762], "an4/train speechocean762/train", 1, "an4/test speechocean762/test", PIECES,
    ),
    "librispeech_100": ([librispeech], "train-clean-100", 4, "test-clean test-other", PIECES),
    "librispeech_960": (
        [librispeech], "train-clean-100 train-clean-360 train-other-500", 4, "test-clean test-other", PIECES,
    ),
    "aishell": ([aishell], "train", 1, "test", ()),
    "commonvoice": ([commonvoice], "train", 1, "test", ()),
}  # fmt: skip
"""Its corpora, the manifests trained on, utterances of validation, the manifests scored, and options."""


@pytest.mark.parametrize("name", RECIPES)
def test_prepares_and_takes_a_step(name, tmp_path):
    corpora, trained, validation, scored, options = RECIPES[name]
    for corpus in corpora:
        key = "corpus.root" if len(corpora) == 1 else f"corpus.parts.{corpus.__name__}.root"
        options = (*options, f"{key}={tmp_path / corpus.__name__}")
        corpus(tmp_path / corpus.__name__)
    manifests = tmp_path / "manifests"
    config = composed(f"+experiment={name}", *PLAIN, f"manifests={manifests}", f"out={tmp_path / 'run'}", *options)
    torch.manual_seed(0)
    trainer, module, data = set_up(config)
    assert [part.path for part in data.train.parts] == [manifests / f"{split}.jsonl" for split in trained.split()]
    assert list(data.tests.values()) == [str(manifests / f"{split}.jsonl") for split in scored.split()]
    assert len(data.validation_indices) == validation and not data.dropped.parts
    before = [parameter.clone() for parameter in module.parameters()]
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1 and 0 < float(trainer.callback_metrics["train_loss"]) < 1e3
    moved = [not torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True)]
    assert all(moved)
    assert ("val_cer" in trainer.callback_metrics) == bool(validation)
