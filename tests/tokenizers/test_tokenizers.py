import json
import pickle
import re
from pathlib import Path

import pytest
import yaml

from asr.errors import CheckpointError, ConfigError, DataError
from asr.tokenizers import BLANK, Characters, SentencePiece, Words

TEXTS = ["turn the light on", "call seven three five", "set the alarm for nine", "don't call the lamp", "on"] * 4
MAKERS = {
    "characters": Characters,
    "words": Words,
    "bpe": lambda **options: SentencePiece(40, "bpe", **options),
    "unigram": lambda **options: SentencePiece(30, "unigram", **options),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def fitted(make, **options):
    tokenizer = make(**options)
    tokenizer.fit(iter(TEXTS))
    return tokenizer


def test_round_trip_and_blank(make):
    tokenizer = fitted(make)
    assert tokenizer.labels[0] == BLANK and len(set(tokenizer.labels)) == len(tokenizer)
    assert len(tokenizer.word_starts) == len(tokenizer) and not tokenizer.word_starts[0]
    for text in [*TEXTS, ""]:
        ids = tokenizer.encode(text)
        assert 0 not in ids and all(type(i) is int for i in ids)
        assert tokenizer.decode(ids) == text and tokenizer.unknown(text) == []


def test_word_starts_split_labels_into_words(make):
    tokenizer = fitted(make)
    for text in TEXTS:
        words: list[list[int]] = []
        for i in tokenizer.encode(text):
            if tokenizer.word_starts[i] or not words:
                words.append([])
            words[-1].append(i)
        assert [tokenizer.decode(word).strip() for word in words] == text.split()


def test_fit_is_deterministic_and_saved(make, tmp_path):
    tokenizer, again = fitted(make), fitted(make)
    tokenizer.save(tmp_path)
    loaded = type(tokenizer).load(tmp_path)
    other = pickle.loads(pickle.dumps(tokenizer))
    for copy in (again, loaded, other):
        assert copy.labels == tokenizer.labels and copy.word_starts == tokenizer.word_starts
        assert copy.encode("call the light") == tokenizer.encode("call the light")
        with pytest.raises(DataError):
            copy.encode("zebra")


def test_skip_is_saved(make, tmp_path):
    fitted(make, unknown="skip").save(tmp_path)
    loaded = type(make()).load(tmp_path)
    assert loaded.skip and loaded.decode(loaded.encode("call zzz the")) == "call the"


def test_unknown_characters(make):
    if make is Words:
        return
    tokenizer = fitted(make)
    assert tokenizer.unknown("the zébu z") == ["z", "é", "b"]
    with pytest.raises(DataError, match=r"'é' \(U\+00E9 LATIN SMALL LETTER E WITH ACUTE\).*'calé'.*unknown=skip"):
        tokenizer.encode("calé")
    assert fitted(make, unknown="skip").encode("call – thée") == tokenizer.encode("call the")


def test_unknown_words():
    tokenizer = fitted(Words)
    assert tokenizer.unknown("call the blue blue moon") == ["blue", "moon"]
    with pytest.raises(DataError, match=r"The word 'blue' of the text 'call blue'"):
        tokenizer.encode("call blue")
    skipping = fitted(Words, unknown="skip")
    assert skipping.decode(skipping.encode("call blue the")) == "call the"


def test_unfitted_and_bad_options(make):
    tokenizer = make()
    for use in (lambda: tokenizer.encode("on"), lambda: tokenizer.decode([1]), lambda: len(tokenizer)):
        with pytest.raises(ConfigError, match="no labels yet"):
            use()
    with pytest.raises(DataError, match="text is empty"):
        tokenizer.fit([])
    with pytest.raises(DataError, match="text is empty"):
        tokenizer.fit(["", " "] if not isinstance(tokenizer, Characters) else [""])
    with pytest.raises(ConfigError, match=r"tokenizer\.unknown.*error, skip"):
        make(unknown="drop")


def test_given_labels():
    tokenizer = Characters(" 'abc")
    tokenizer.fit(["xyz"])
    assert tokenizer.labels == [BLANK, " ", "'", "a", "b", "c"]
    assert Characters(tokenizer.labels).labels == tokenizer.labels
    assert Words(["yes", "no"]).encode("no yes") == [2, 1]
    for labels in (["a", "a"], [], ["ab"], [None]):
        with pytest.raises(ConfigError, match=r"tokenizer\.labels"):
            Characters(labels)
    with pytest.raises(ConfigError, match="white space"):
        Words(["turn on"])


def test_chinese_characters_are_words():
    tokenizer = Characters()
    tokenizer.fit(["今天天气很好", "ok"])
    starts = zip(tokenizer.labels, tokenizer.word_starts, strict=True)
    assert [label for label, start in starts if start] == list("今天好很气")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_sentencepiece_vocab_size(model_type):
    assert len(fitted(lambda: SentencePiece(30, model_type))) == 30
    for size, problem in ((500, "too large"), (5, "too small")):
        with pytest.raises(ConfigError, match=f"{size} is {problem}") as caught:
            fitted(lambda size=size: SentencePiece(size, model_type))
        way_out = int(re.search(r"tokenizer.vocab_size=(\d+)", str(caught.value))[1])
        assert len(fitted(lambda size=way_out: SentencePiece(size, model_type))) == way_out
    with pytest.raises(ConfigError, match="There are: bpe, unigram"):
        SentencePiece(30, "word")


def test_sentencepiece_leaves_no_long_text_out():
    tokenizer = SentencePiece(26, "bpe")
    tokenizer.fit([" ".join(TEXTS * 100) + " xyz"])
    assert tokenizer.unknown("xyz") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"labels": ["<blank>"], "unknown": 1}', "damaged"),
        ('{"labels": [1]}', "list of strings"),
        ('{"labels": ["a"]}', "first being"),
        ('{"labels": ["<blank>", "a", "a"]}', "must differ"),
    ],
)
def test_broken_file(make, tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        type(make()).load(tmp_path)


def test_broken_sentencepiece_model(tmp_path):
    tokenizer = fitted(MAKERS["bpe"])
    tokenizer.save(tmp_path)
    model = tmp_path / "sentencepiece.model"
    for content in (b"", b"not a model", tokenizer.model[: len(tokenizer.model) // 2]):
        model.write_bytes(content)
        with pytest.raises(CheckpointError):
            SentencePiece.load(tmp_path)
    fitted(lambda: SentencePiece(30, "bpe")).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"labels": tokenizer.labels}))
    with pytest.raises(CheckpointError, match="are not the labels"):
        SentencePiece.load(tmp_path)
    model.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        SentencePiece.load(tmp_path)


def test_shipped_configs():
    import asr.tokenizers

    for path in (Path(__file__).parents[2] / "conf" / "tokenizer").glob("*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        getattr(asr.tokenizers, config.pop("_target_").split(".")[-1])(**config)
