"""A recognizer whose decoder has n-gram models of the transcripts that it was trained on."""

from __future__ import annotations

import json

import pytest

import asr
from asr.bundle import load_config
from asr.data.manifest import read_manifest
from asr.errors import AsrError
from asr.lm import KneserNey
from asr.lm import load as load_lm
from asr.lm.train import evaluate as evaluate_lm

NO_TEXT = {"text": None, "checkpoint": None}


def test_the_recognizer_has_models_of_the_training_transcripts(train, tones, tmp_path):
    models = ("decoder@lm_decoder=beam", "lm_decoder.lm=2", "lm_decoder.label_lm=3", "lm_decoder.open_vocabulary=false")
    run = train("run", "epochs=3", "data.batch_seconds=8", *models, "tokenizer=characters")
    held_out = {json.loads(line)["id"] for line in (run / "validation.jsonl").open()}
    trained_on = [u.text for u in read_manifest(tones) if u.id not in held_out]
    bundle = run.rename(tmp_path / "moved") / "bundle"
    decoder = load_config(bundle)["decoder"]
    assert decoder["_target_"] == "asr.decoders.Beam" and decoder["lm"] == str(bundle / "lm" / "lm")
    for key, order, split in (("lm", 2, str.split), ("label_lm", 3, list)):
        sentences = [[word.replace(" ", "<space>") for word in split(text)] for text in trained_on]
        found, expected = load_lm(bundle / "lm" / key), KneserNey(order).fit(sentences)
        assert found.perplexity(sentences) == expected.perplexity(sentences)
    evaluate_lm({"model": str(bundle / "lm" / "lm"), "test": [str(tones)], "samples": 0, "unknown": "error"} | NO_TEXT)
    recognizer = asr.load(bundle)
    assert set(recognizer.transcribe(tones.parent / "00.flac").text.split()) <= {"low", "middle", "high"}
    greedy = asr.load(bundle.parent / "checkpoints" / "last.ckpt")
    assert type(greedy.pipeline.decoder).__name__ == "Greedy"


@pytest.mark.parametrize("option", ["lm=0", "beam=0", "lm=no.arpa"])
def test_a_decoder_that_cannot_be_is_found_before_training(train, tmp_path, option):
    with pytest.raises(AsrError, match=f"lm_decoder.{option}"):
        train("run", "decoder@lm_decoder=beam", f"lm_decoder.{option}")
    assert not (tmp_path / "run").exists()
