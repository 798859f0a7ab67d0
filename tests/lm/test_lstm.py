from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import asr.lm
from asr.cli import run
from asr.errors import CheckpointError, ConfigError, DataError
from asr.lm import lstm as module
from asr.lm.lstm import Lstm, pad
from asr.lm.lstm_training import LanguageModelling, LstmTraining

VOCABULARY = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"]
CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "gradient_clip_val": 5.0}
SMALL = {"width": 24, "layers": 1, "dropout": 0.0, "min_count": 1, "held_out": 0.0, "batch_tokens": 32, "trainer": CPU}
FAST = {"_target_": "torch.optim.AdamW", "lr": 0.02}


def model(seed=0, **options) -> Lstm:
    """An untrained model with weights large enough to have opinions."""
    torch.manual_seed(seed)
    made = Lstm(VOCABULARY, **{"width": 12, "layers": 2, "dropout": 0.4, **options})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0, 0.7)
    return made.eval().requires_grad_(False)


def sentences(count, seed=0, longest=30) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.choices([*"abcde", "zebra"], k=draw.randrange(longest + 1)) for _ in range(count)]


def naive(lm, tokens) -> np.ndarray:
    """(tokens, V) log-probabilities of what follows each token, by the equations of the LSTM, in float64."""
    weights = {name: value.double().numpy() for name, value in lm.state_dict().items()}
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    layers, width = lm.lstm.num_layers, lm.lstm.hidden_size
    hidden, cell, found = np.zeros((layers, width)), np.zeros((layers, width)), []
    for token in tokens:
        x = weights["embedding.weight"][token]
        for k in range(layers):
            w, u, b, c = (weights[f"lstm.{name}_l{k}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            i, f, g, o = np.split(w @ x + b + u @ hidden[k] + c, 4)
            cell[k] = sigmoid(f) * cell[k] + sigmoid(i) * np.tanh(g)
            x = hidden[k] = sigmoid(o) * np.tanh(cell[k])
        logits = weights["output.weight"] @ x + weights["output.bias"]
        logits[1] = -np.inf  # <s>
        found.append(logits - np.log(np.exp(logits).sum()))
    return np.array(found)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_those_of_the_equations(tied):
    lm = model(tied=tied)
    for sentence in [*sentences(5), []]:
        ids = [VOCABULARY.index(word) if word in VOCABULARY else 0 for word in sentence]
        by_hand = [row[word] for row, word in zip(naive(lm, [1, *ids]), [*ids, 2], strict=True)]
        np.testing.assert_allclose(lm.word_log_probs(sentence), by_hand, atol=1e-5)
        assert lm.score(sentence) == pytest.approx(sum(by_hand), abs=1e-4)
        assert lm.score(sentence, eos=False) == pytest.approx(sum(by_hand[:-1]), abs=1e-4)
        after_unknown = [row[word] for row, word in zip(naive(lm, [0, *ids]), [*ids, 2], strict=True)]
        assert lm.score(sentence, bos=False) == pytest.approx(sum(after_unknown), abs=1e-4)


def test_the_probabilities_of_all_sentences_add_up():
    lm = model()
    words = ["zebra", *VOCABULARY[3:]]
    short = sum(math.exp(score) for score in lm.score_batch([[], *([word] for word in words)]))
    longer = sum(math.exp(lm.score(pair, eos=False)) for pair in itertools.product(words, repeat=2))
    assert short + longer == pytest.approx(1, abs=1e-5)


def test_special_words_in_a_text_are_unknown():
    lm = model()
    assert lm.score(["a", "<s>", "</s>"]) == lm.score(["a", "zebra", "<unk>"])
    assert lm.perplexity([["a", "<s>"]]).oov == 1


def test_a_batch_is_scored_as_each_sentence_alone(monkeypatch):
    lm = model()
    text = [*sentences(40), [], ["a"] * 300]
    alone = np.array([lm.score(sentence) for sentence in text])
    np.testing.assert_allclose(lm.score_batch(text), alone, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(module, "BATCH_TOKENS", 64)
    monkeypatch.setattr(module, "SOFTMAX_VALUES", 3 * len(VOCABULARY))
    np.testing.assert_allclose(lm.score_batch(text), alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        lm.score_batch(text, bos=False, eos=False), [lm.score(s, bos=False, eos=False) for s in text], atol=1e-4
    )
    assert lm.score_batch([[]], eos=False).tolist() == [0.0]
    assert lm.score_batch([]).shape == (0,)


def test_padding_has_no_part_in_the_gradient():
    lm = model(dropout=0.0).train().requires_grad_(True)
    rows = [np.array([1, *lm.numbers(sentence), 2]) for sentence in sentences(6, seed=3)]

    def gradient(batch):
        lm.zero_grad()
        lm.log_probs(*pad(batch)).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in lm.parameters()])

    torch.testing.assert_close(gradient(rows), sum(gradient([row]) for row in rows), rtol=1e-4, atol=1e-4)


def test_perplexity_counts_as_for_ngrams():
    lm = model()
    text = [["a", "b", "zebra"], [], ["c"]]
    scores = [lm.word_log_probs(sentence) for sentence in text]
    found = lm.perplexity(iter(text))
    assert (found.tokens, found.oov, found.sentences) == (7, 1, 3)
    assert found.log_prob == pytest.approx(sum(part.sum() for part in scores), abs=1e-4)
    assert found.oov_log_prob == pytest.approx(scores[0][2], abs=1e-5)


def test_it_learns_a_text_by_heart_and_no_better():
    """The best that a model can do on four equally frequent sentences is to know which they are."""
    text = ["the cat sat", "the dog ran far away", "a cat ran", "nobody knows the dog"]
    text = [sentence.split() for sentence in text] * 8
    trained = LstmTraining(**SMALL, epochs=40, optimizer=FAST).fit(text)
    tokens = sum(len(sentence) + 1 for sentence in text[:4])
    optimum = math.exp(4 * math.log(4) / tokens)
    assert optimum < trained.perplexity(text).including_oov < 1.05 * optimum
    samples = trained.sample(40, temperature=0.5)
    assert {*samples} == {" ".join(sentence) for sentence in text[:4]}
    assert not trained.training


def test_the_same_seed_gives_the_same_weights():
    options = {**SMALL, "dropout": 0.3, "held_out": 0.2, "layers": 2, "epochs": 2}
    text = sentences(40)

    def weights(seed):
        return LstmTraining(**options, seed=seed).fit(text).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_epoch_that_predicts_held_out_sentences_best_is_kept(capsys):
    """Random sentences: there is little to learn, and then only to learn by heart."""
    text = sentences(60, seed=5, longest=8)
    options = {**SMALL, "held_out": 0.3, "epochs": 15, "optimizer": FAST}
    trained = LstmTraining(**options).fit(text, metadata={"text": "random"})
    training = trained.metadata["training"]
    assert trained.metadata["text"] == "random"
    assert 1 <= training["best_epoch"] < 15
    held = LstmTraining(**options)._split(len(text))[0]
    assert (training["held_out"], training["sentences"]) == (len(held), 60 - len(held)) == (18, 42)
    measured = trained.perplexity([text[k] for k in held]).including_oov
    assert training["held_out_perplexity"] == pytest.approx(measured, rel=1e-4)
    last = LstmTraining(**{**options, "held_out": 0.0}).fit([s for k, s in enumerate(text) if k not in set(held)])
    assert last.perplexity([text[k] for k in held]).including_oov > 1.2 * measured
    assert f"best epoch {training['best_epoch']} of 15" in trained.describe()
    assert "epoch 15: perplexity" in capsys.readouterr().out


def test_rare_words_teach_the_unknown_word():
    """A name, never the same, in every second sentence."""
    text = [["hello", f"name{k}"] if k % 2 else ["hello", "you"] for k in range(60)]
    trained = LstmTraining(**{**SMALL, "min_count": 2}, epochs=15, optimizer=FAST).fit(text)
    assert trained.vocabulary == ["<unk>", "<s>", "</s>", "hello", "you"]
    assert math.exp(trained.word_log_probs(["hello", "somebody"])[1]) == pytest.approx(0.5, abs=0.1)
    found = trained.perplexity(text)
    assert found.oov == 30


def test_every_token_of_a_text_weighs_the_same():
    """The losses of an epoch's batches add up to the mean over tokens, times the number of batches."""
    lm = model(dropout=0.0)
    rows = [np.array([1, *lm.numbers(sentence), 2]) for sentence in sentences(7, seed=4)]
    tokens = sum(len(row) - 1 for row in rows)
    batches = [pad(rows[:1]), pad(rows[1:3]), pad(rows[3:])]
    training = LanguageModelling(lm, {}, {}, steps=1, batch_tokens=tokens / 3)
    training.on_train_epoch_start()
    losses = [float(training.training_step(batch, k)) for k, batch in enumerate(batches)]
    mean = -float(lm.log_probs(*pad(rows)).sum()) / tokens
    assert sum(losses) / 3 == pytest.approx(mean, rel=1e-5)


def test_ctrl_c_keeps_the_best_epoch(monkeypatch):
    def stop(self, *_):
        if self.current_epoch == 3:
            raise KeyboardInterrupt

    text = sentences(20, seed=6)
    options = {**SMALL, "held_out": 0.2, "epochs": 6}
    monkeypatch.setattr(LanguageModelling, "on_train_batch_start", stop)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning's, which ignores Ctrl-C from then on
    assert LstmTraining(**options).fit(text).metadata["training"]["best_epoch"] <= 3
    with pytest.raises(SystemExit):
        LstmTraining(**{**options, "held_out": 0.0}).fit(text)


@pytest.mark.parametrize("options", [{"tied": True}, {"tied": False, "layers": 1, "unit": "labels"}])
def test_saved_and_loaded_it_is_the_same(tmp_path, options):
    lm = model(**options, metadata={"command": ["train_lm"]})
    lm.save(tmp_path / "lm")
    lm.save(tmp_path / "lm")  # replaces itself
    torch.manual_seed(7)
    loaded = asr.lm.load(tmp_path / "lm")
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn), "loading draws nothing from the random state of all"
    text = sentences(10)
    assert loaded.score_batch(text).tolist() == lm.score_batch(text).tolist()
    assert (loaded.vocabulary, loaded.unit, loaded.metadata) == (lm.vocabulary, lm.unit, lm.metadata)
    assert loaded.describe() == lm.describe()
    assert len([*loaded.parameters()]) == len([*lm.parameters()]), "tied weights are still one"
    assert {path.name for path in (tmp_path / "lm").iterdir()} == {"lm.yaml", "model.safetensors", "vocabulary.txt"}


def test_loading_needs_no_lightning(tmp_path):
    model().save(tmp_path / "lm")
    code = "import sys, asr.lm; print(asr.lm.load(sys.argv[1]).score(['a']), 'lightning' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "lm"], capture_output=True, text=True, check=True)
    score, has_lightning = run.stdout.split()
    assert float(score) == pytest.approx(model().score(["a"]), abs=1e-5)
    assert has_lightning == "False"


def _cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _edit(**changes):
    def edit(folder):
        header = yaml.safe_load((folder / "lm.yaml").read_text())
        (folder / "lm.yaml").write_text(yaml.safe_dump(header | changes))

    return edit


def _spoil(folder):
    weights = load_file(folder / "model.safetensors")
    weights["embedding.weight"][3, 2] = math.nan
    save_file(weights, folder / "model.safetensors")


DAMAGE = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "safetensors: no such file"),
    "cut weights": (_cut, "safetensors: cannot be read"),
    "not numbers": (_spoil, "its values make no model"),
    "no vocabulary": (lambda folder: (folder / "vocabulary.txt").unlink(), "vocabulary.txt: no such file"),
    "short vocabulary": (lambda folder: (folder / "vocabulary.txt").write_text("<unk>\n"), "8 different words"),
    "other width": (_edit(width=10**9), "does not fit lm.yaml"),
    "more layers": (_edit(layers=3), "does not fit lm.yaml"),
    "not tied": (_edit(tied=False), "does not fit lm.yaml"),
    "no width": (_edit(width=None), "'?width'? is wrong"),
    "bad unit": (_edit(unit="phones"), "unit is wrong"),
    "no dropout": (_edit(dropout=7.0), "a size is wrong"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(tmp_path, what):
    damage, message = DAMAGE[what]
    model().save(tmp_path / "lm")
    damage(tmp_path / "lm")
    with pytest.raises(CheckpointError, match=message):
        asr.lm.load(tmp_path / "lm")


BAD = {
    "width": ({"width": 0}, r"lm\.width=0: must be 1"),
    "held_out": ({"held_out": 1.0}, r"lm\.held_out=1\.0"),
    "dropout": ({"dropout": -0.1}, r"lm\.dropout"),
    "max_epochs": ({"trainer": {**CPU, "max_epochs": 3}}, r"say lm\.epochs"),
    "devices": ({"trainer": {**CPU, "devices": 2}}, "trained by one"),
    "trainer key": ({"trainer": {**CPU, "acelerator": "cpu"}}, "Did you mean accelerator"),
    "optimizer key": ({"optimizer": {**FAST, "momentum": 0.9}}, r"lm\.optimizer: has no option 'momentum'"),
    "plateau": ({"schedule": {"_target_": "asr.training.schedules.plateau"}}, "nothing to watch"),
    "min_count": ({"min_count": 1000}, "no word is seen so often"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_options_are_named(what):
    options, message = BAD[what]
    with pytest.raises(ConfigError, match=message):
        LstmTraining(**{**SMALL, "epochs": 1, **options}).fit(sentences(5, seed=1))


def test_too_little_text():
    with pytest.raises(DataError, match="is empty"):
        LstmTraining(**SMALL).fit([])
    with pytest.raises(DataError, match=r"lm\.held_out=0"):
        LstmTraining(**{**SMALL, "held_out": 0.1}).fit([["a"]])


def test_options_of_lightning_pass_through():
    schedule = {"_target_": "asr.training.schedules.plateau"}
    trainer = {**CPU, "check_val_every_n_epoch": 2, "accumulate_grad_batches": 3, "precision": "bf16-mixed"}
    options = {**SMALL, "held_out": 0.2, "schedule": schedule, "trainer": trainer}
    trained = LstmTraining(**options, epochs=4).fit(sentences(20), unit="labels")
    assert trained.unit == "labels"
    assert trained.metadata["training"]["best_epoch"] in (2, 4)


def test_sentence_marks_in_the_text_are_refused():
    with pytest.raises(DataError, match="Sentence 3 of the training text holds </s>"):
        LstmTraining(**SMALL).fit([["a", "b"], [], ["a", "</s>"]])


def test_the_command_trains_and_shows_one(clean, tmp_path, capsys):
    lines = [" ".join(sentence) for sentence in sentences(30, longest=6)]
    (tmp_path / "train.txt").write_text("\n".join(lines[:20]))
    (tmp_path / "test.txt").write_text("\n".join(lines[20:]))
    options = ["lm.width=8", "lm.layers=1", "lm.epochs=2", "lm.optimizer.lr=0.01", "optimizer@lm.optimizer=adamw"]
    options += ["lm.trainer.accelerator=cpu", "+lm.trainer.enable_progress_bar=false", "schedule@lm.schedule=constant"]
    run("train_lm", ["lm=lstm", "train=train.txt", "test=test.txt", "out=model", "samples=3", *options])
    printed = capsys.readouterr().out
    trained = asr.lm.load(tmp_path / "model")
    perplexity = trained.perplexity([line.split() for line in lines[20:] if line])
    assert f"test {perplexity}" in printed
    training = trained.metadata["training"]
    assert (training["optimizer"]["lr"], training["epochs"]) == (0.01, 2)
    assert training["schedule"] == {"_target_": "asr.training.schedules.constant"}
    assert [line.removeprefix("sample ") for line in printed.splitlines()[-3:]] == trained.sample(3)
    run("evaluate_lm", ["model=model", "test=test.txt", "samples=3"])
    assert capsys.readouterr().out.splitlines()[-4:] == printed.splitlines()[-4:]
