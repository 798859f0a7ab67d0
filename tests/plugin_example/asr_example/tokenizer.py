"""A tokenizer of the English alphabet."""

from asr.tokenizers import Characters


class English(Characters):
    """The letters a to z, the apostrophe and the space, whatever the training text has."""

    def __init__(self, labels: str = " 'abcdefghijklmnopqrstuvwxyz", unknown: str = "error"):
        super().__init__(labels, unknown)
