"""`python -m lora_scripts`: the same as the command `lora-scripts`."""

from __future__ import annotations

import sys

from lora_scripts.cli import main

sys.exit(main())
