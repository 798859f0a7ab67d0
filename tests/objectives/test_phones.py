"""The phones of transcripts: where they come from, and their CTC against its formula."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from test_objectives import LABELS, batch, ctc_loss, gradients, inner_emissions, views

from asr import testing
from asr.encoders import Blstm
from asr.errors import ConfigError, DataError
from asr.featurizers import LogMel
from asr.model import AcousticModel
from asr.objectives import CrCtc, Ctc
from asr.objectives.pronunciations import pronounce, read_lexicon
from asr.pipeline import Pipeline
from asr.text import Normalizer
from asr.tokenizers import Words

LEXICON = """;;; a comment
'a  AE1
A  AH0 # the letter, too
A(2)  EY1
TWO\tT UW1

don’t D OW1 N T
read R IY1 D
read R EH1 D
Rosé r o55 z e55
<mute> SPN
"""
WORDS = ["a", "read", "two", "don't", "mute"]
PHONES = {"a": ["AH"], "two": ["T", "UW"], "don't": ["D", "OW", "N", "T"], "read": ["R", "IY", "D"]}
needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)


@pytest.fixture
def lexicon(tmp_path) -> str:
    path = tmp_path / "words.dict"
    path.write_text(LEXICON + "mute\tSIL\n", "utf-8")
    return str(path)


def test_a_lexicon(lexicon):
    """Words are normalised, but the plain spelling goes first; the first pronunciation counts; a tone stays."""
    found = read_lexicon(lexicon, Normalizer())
    assert found == PHONES | {"rosé": ["r", "o55", "z", "e55"], "mute": ["SIL"]}
    assert pronounce(["two", "a", "two"], lexicon, Normalizer()) == {"a": ["AH"], "two": ["T", "UW"]}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ConfigError, r"objective.phones=.*cannot be read \(No such file.*espeak:VOICE"),
        (b"one W AH N\ntwo\n", DataError, r"words\.dict, line 2: a word and its phones are expected, found 'two'"),
        (b"two 1.0 T UW\n", DataError, r"words\.dict, line 1: a word and its phones are expected, found 'two 1.0"),
        (b"caf\xe9 K\n", DataError, "UTF-8"),
        (b"two T UW\n", DataError, r"1 of the 2 words .* not in it: 'one'.*objective.phones=espeak:LANGUAGE"),
    ],
)
def test_lexicons_that_cannot_be_used(tmp_path, content, error, message):
    path = tmp_path / "words.dict"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        pronounce(["two", "one"], str(path), str.lower)


@needs_espeak
def test_espeak():
    found = pronounce(["two", "yes", "'", "computer"], "espeak:en-us", str.lower)
    assert found == {"two": ["t", "uː"], "yes": ["j", "ɛ", "s"], "'": [], "computer": found["computer"]}
    assert found["computer"][0] == "k" and not any("ˈ" in phone for phone in found["computer"])
    assert pronounce(["computer"], "espeak:de", str.lower)["computer"] != found["computer"]
    many = [f"{'a' * k}{'b' * n}" for k in range(1, 40) for n in range(40)]  # more than are asked for at once
    assert len(pronounce(many, "espeak:en-us", str.lower)) == len(many)
    with pytest.raises(ConfigError, match=r"objective.phones=espeak:klingonese: no voice"):
        pronounce(["two"], "espeak:klingonese", str.lower)


def test_without_espeak(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"objective.phones=espeak:en-us: .*pip install espeakng-loader.*objective.phones=null"
    ):
        pronounce(["two"], "espeak:en-us", str.lower)


@pytest.fixture
def model() -> AcousticModel:
    torch.manual_seed(0)
    return AcousticModel(LogMel(bands=8), Blstm(8, layers=3, width=6, channels=2, dropout=0.0), labels=6)


def prepared(make, lexicon: str, model: AcousticModel, texts=("A READ TWO", "don’t mute unheard"), **options):
    objective = make(model=model, phones=lexicon, **options)
    pipeline = Pipeline(Normalizer(), Words(WORDS, unknown="skip"), model, decoder=None)
    note = objective.prepare(pipeline, texts, [6, 4])
    assert note == "phones      9: don't → D OW N T; 1 utterances may have more than frames, and learn none"
    return objective


def phone_ctc(objective, model: AcousticModel, row: int, number: int, layer: int) -> torch.Tensor:
    """Of an utterance alone, by a copy of the model that ends with this layer and the phones."""
    spoken = [phone for label in LABELS[row] for phone in (PHONES | {"mute": ["SIL"]})[WORDS[label - 1]]]
    phones = sorted({"AH", "T", "UW", "D", "OW", "N", "R", "IY", "SIL"})
    head, model.head = model.head, objective.phones.head
    log_probs = inner_emissions(model, row, number, layer)
    model.head = head
    labels = torch.tensor([[phones.index(phone) + 1 for phone in spoken]])
    return ctc_loss(log_probs[:, None], labels, [len(log_probs)], [len(spoken)], reduction="sum", zero_infinity=True)


def test_their_ctc(model, lexicon):
    objective = prepared(Ctc, lexicon, model, phone_layer=1, phone_weight=0.4, intermediate_layers=[2])
    losses, parts = objective(model, views(0, 1, 2), batch(0, 1, 2))
    expected = torch.stack([phone_ctc(objective, model, row, 0, 1) for row in range(3)])
    torch.testing.assert_close(parts["phone_ctc"], expected)
    plain, _ = Ctc(model, [2])(model, views(0, 1, 2), batch(0, 1, 2))
    torch.testing.assert_close(losses, 0.6 * plain + 0.4 * expected)
    assert (expected > 0).all()
    for ours, theirs in zip(gradients(model, losses), gradients(model, 0.6 * plain + 0.4 * expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_with_two_views(model, lexicon):
    objective = prepared(CrCtc, lexicon, model)
    losses, parts = objective(model, views(0, 1), batch(0, 1))
    for row in range(2):
        both = sum(phone_ctc(objective, model, row, number, 2) for number in range(2)) / 2
        torch.testing.assert_close(parts["phone_ctc"][row], both)
    torch.testing.assert_close(losses, 0.7 * parts["ctc"] + 0.3 * parts["phone_ctc"] + 0.2 * parts["consistency"])
    first, _ = objective.before(model, views(0), batch(0))
    one, _ = Ctc(model)(model, views(0), batch(0))
    torch.testing.assert_close(first, 0.7 * one + 0.3 * phone_ctc(objective, model, 0, 0, 2))


def test_more_phones_than_frames_cost_nothing(model, lexicon):
    objective = prepared(Ctc, lexicon, model)

    def view(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        features, _ = views(0)(number)
        return features[:, :24], torch.tensor([24])  # six frames of emissions: for the labels, not for nine phones

    losses, parts = objective(model, view, batch(0))
    assert parts["phone_ctc"].item() == 0 and parts["ctc"].item() > 0
    torch.testing.assert_close(losses, 0.7 * parts["ctc"])
    torch.testing.assert_close(parts["ctc"], Ctc(model)(model, view, batch(0))[0])


@pytest.mark.parametrize("make", [Ctc, CrCtc])
def test_the_contract(lexicon, make):
    testing.check_objective(lambda model: prepared(make, lexicon, model))


@pytest.mark.parametrize("option", [{"phone_weight": 1.0}, {"phone_layer": 3}, {"phone_layer": 0}])
def test_options_that_are_none(model, option):
    with pytest.raises(ConfigError, match=f"objective.{next(iter(option))}"):
        CrCtc(model, phones="espeak:en-us", **option)


def test_texts_without_phones(model, lexicon):
    with pytest.raises(DataError, match="no word of the training text has phones"):
        prepared(Ctc, lexicon, model, [" ", "unheard"])


def test_without_phones_nothing_is_prepared(model):
    assert Ctc(model).prepare(Pipeline(str, Words(WORDS), model, None), ["two"], [9]) is None
