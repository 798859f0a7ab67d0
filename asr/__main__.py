"""`python -m asr COMMAND …`, as `asr COMMAND …`."""

import sys

from asr.cli import main

sys.argv[0] = "asr"
main()
