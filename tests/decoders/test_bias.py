"""The penalty on blank and the labels' prior: by their formula, in every decoder, and where the prior comes from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.bundle import install_decoder, load_pipeline, pipeline_config, save_bundle
from asr.data.audio import read_audio
from asr.decoders import Beam, Flashlight, Greedy
from asr.errors import ConfigError
from asr.evaluation.prior import estimate_prior, write_prior
from asr.pipeline import build
from asr.recognizer import Recognizer
from asr.testing import check_decoder
from asr.tokenizers import Characters
from asr.types import Emissions

LETTERS = Characters(labels=" abc")
PRIOR = {"<blank>": 0.7, " ": 0.02, "a": 0.18, "b": 0.06, "c": 0.04}
OPTIONS = [
    {"blank_penalty": 1.5},
    {"label_prior": PRIOR, "prior_scale": 0.4},
    {"blank_penalty": -0.5, "label_prior": PRIOR, "prior_scale": 1.0},
]


def emissions() -> Emissions:
    logits = 2 * torch.randn(3, 30, 5, generator=torch.Generator().manual_seed(0))
    logits[..., 0] += 2
    return Emissions(logits.log_softmax(-1).numpy(), np.array([30, 17, 1]), 0.04)


def biased(given: Emissions, options: dict) -> Emissions:
    """The same emissions after the formula."""
    scores = torch.from_numpy(np.array(given.log_probs)).double().exp()
    if "label_prior" in options:
        scores = scores / torch.tensor([PRIOR[label] for label in LETTERS.labels]) ** options["prior_scale"]
    scores[..., 0] *= np.exp(-options.get("blank_penalty", 0.0))
    scores = scores / scores.sum(-1, keepdim=True)
    return Emissions(scores.log().float().numpy(), given.lengths, given.frame_seconds)


def assert_same(found, expected) -> None:
    for some, others in zip(found, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            assert one.labels == other.labels
            assert one.score == pytest.approx(other.score, abs=1e-3)
            assert [word.confidence for word in one.words] == pytest.approx([w.confidence for w in other.words])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make", [Greedy, Beam, Flashlight])
def test_every_decoder_searches_what_the_formula_gives(make, options):
    if make is Flashlight:
        pytest.importorskip("flashlight.lib.text")
    given = emissions()
    found = make(LETTERS, **options)(given)
    assert_same(found, make(LETTERS)(biased(given, options)))
    assert [best.labels for best, *_ in found] != [best.labels for best, *_ in make(LETTERS)(given)]
    check_decoder(make(LETTERS, **options), LETTERS)


def test_a_stream():
    decoder = Beam(LETTERS, blank_penalty=1.5)
    given = emissions()
    state = decoder.start()
    for begin in range(0, 30, 7):
        part = given.log_probs[:1, begin : begin + 7]
        decoder.step(Emissions(part, np.array([part.shape[1]]), 0.04), state)
    assert_same([decoder.finish(state)], decoder(given)[:1])


@pytest.mark.parametrize("make", [Greedy, Beam])
def test_a_penalty_on_blank_gives_more_labels(make):
    counts = [
        sum(len(best.labels) for best, *_ in make(LETTERS, blank_penalty=penalty)(emissions()))
        for penalty in (-20.0, 0.0, 1.0, 3.0)
    ]
    assert counts[0] == 0 and counts == sorted(set(counts))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"blank_penalty": float("nan")}, r"decoder\.blank_penalty=nan"),
        ({"prior_scale": -1.0}, r"decoder\.prior_scale=-1\.0"),
        ({"label_prior": {"a": 1.0}}, "of other labels than the tokenizer's"),
        ({"label_prior": PRIOR | {"a": 0}}, "a probability above 0"),
        ({"label_prior": "missing.json"}, r"missing\.json: cannot be read"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Greedy(LETTERS, **options)


def test_the_prior_of_a_recognizer(noise_manifest: Path, tmp_path: Path):
    """The mean posterior, whatever the batches; and a bundle takes it along."""
    config = {
        "text": {"_target_": "asr.text.Normalizer"},
        "tokenizer": {"_target_": "asr.tokenizers.Characters"},
        "featurizer": {"_target_": "asr.featurizers.LogMel", "bands": 20},
        "encoder": {"_target_": "asr.encoders.Blstm", "layers": 1, "width": 8, "channels": 2},
        "decoder": {"_target_": "asr.decoders.Greedy"},
        "normalization": "global",
    }
    torch.manual_seed(0)
    pipeline = build(config, texts=["one two three"])
    bundle = tmp_path / "bundle"
    save_bundle(bundle, pipeline, pipeline_config(config), "")
    pipeline = load_pipeline(bundle)
    labels = pipeline.tokenizer.labels
    posteriors = []
    for k in range(4):
        samples = torch.from_numpy(read_audio(noise_manifest.with_name(f"{k}.flac"), 16000))
        posteriors.append(pipeline.model(samples[None], torch.tensor([len(samples)]))[0][0].exp())
    frames = torch.cat(posteriors)
    expected = (frames.sum(0) + 1) / (len(frames) + len(labels))
    for batch_seconds in (1.0, 100.0):
        prior = estimate_prior(Recognizer(pipeline, "cpu", batch_seconds), noise_manifest)
        assert [*prior] == labels
        np.testing.assert_allclose([*prior.values()], expected.numpy(), rtol=1e-5)
    path = tmp_path / "some" / "prior.json"
    write_prior(prior, path)
    install_decoder(bundle, config["decoder"] | {"label_prior": str(path), "prior_scale": 0.5})
    path.unlink()
    loaded = load_pipeline(bundle).decoder.bias.offsets
    np.testing.assert_allclose(loaded, 0.5 * np.log(expected.numpy()), rtol=1e-5)
    assert json.loads((bundle / "lm" / "label_prior.json").read_text()) == prior
