import random
from pathlib import Path

import pytest
import yaml

from asr.errors import ConfigError
from asr.text import Normalizer

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "text").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Twenty-one  o’clock,\tthey said: 'Go!'\n", "twenty one o'clock they said go"),
        ("DON'T — the dogs' … (yes/no)", "don't the dogs yes no"),
        ("rock ’n’ roll, ŉ", "rock n roll n"),
        ("e\u0301te\u0301 ﬁn ＡＢＣ", "été fin abc"),
        ("a\ufeffb\u00adc d\u00a0e", "abc d e"),
        ("हिन्दी में।", "हिन्दी में"),
        ("I ❤️ you 1️⃣ 👩‍💻 there", "i you 1 there"),
        ("می\u200cروم کتاب\u200c ها", "می\u200cروم کتاب ها"),
        ("cut \ud83d off", "cut off"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_standard(text, expected):
    assert Normalizer()(text) == expected


def test_options():
    assert Normalizer(case="upper")("it's") == "IT'S"
    verbatim = Normalizer(case="keep", punctuation="keep", unicode_form="NFC", keep="")
    assert verbatim(" Yes,  “OK” ﬁ’s ") == "Yes, “OK” ﬁ’s"
    assert Normalizer(unicode_form="NFD")("Été’s") == "e\u0301te\u0301's"
    assert Normalizer(keep="")("don't") == "dont"
    assert Normalizer(keep="'<>%")("<noise> 5 %!") == "<noise> 5 %"
    assert Normalizer(spaces="remove")("今天，天气 很好。 ＯＫ") == "今天天气很好ok"


@pytest.mark.parametrize("option", ["case", "punctuation", "unicode_form", "spaces"])
def test_unknown_value_names_key_and_options(option):
    with pytest.raises(ConfigError, match=rf"text\.{option}.*'nothing'.*There are: "):
        Normalizer(**{option: "nothing"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_idempotent(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.pop("_target_") == "asr.text.Normalizer"
    normalize = Normalizer(**config)
    draw = random.Random(0)
    pool = "aBßİŉ'’‘´`-–_ \t\u200b\u0301\u0308\u0323éﬁ①＇语कि।.,!?$"
    for _ in range(3000):
        anywhere = [chr(draw.randrange(0x20, 0xD7FF)) for _ in range(4)]
        text = "".join(draw.choices(pool + "".join(anywhere), k=12))
        once = normalize(text)
        assert normalize(once) == once, ascii(text)
