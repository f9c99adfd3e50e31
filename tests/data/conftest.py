"""Fixtures: a folder of documents, and data sets of segments from it."""

from pathlib import Path

import pytest
from numbered_documents import DOCUMENTS, FORM, Make, Words, document, write

from hart.data.segments import SegmentDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = [document(number) for number in range(DOCUMENTS)]
    write(tmp_path / "c4" / "b.json.gz", ["too short", *texts[7:]])
    write(tmp_path / "c4" / "a.jsonl", [*texts[:7], "also too short"])
    return tmp_path / "c4"


@pytest.fixture
def make(folder: Path) -> Make:
    def build(**options) -> SegmentDataset:
        settings = {"directory": folder, "kind": "four", "length": 100, "seed": 3, "form": FORM}
        return SegmentDataset(Words(), **{**settings, "max_document_tokens": 80, **options})

    return build
