"""Versions of libraries with which PEFT's prefixes work."""

import peft
import pytest
from packaging.version import Version

from hart.runtime.third_party.transformers import CACHE

peft_prefixes = pytest.mark.skipif(
    CACHE == "cache" and Version(peft.__version__) <= Version("0.21.2"),
    reason="this peft gives its prefixes to a model under a name that transformers ignores from 5.24 on",
)
