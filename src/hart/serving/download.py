"""The format of downloaded adaptations: one zip file."""

import io
import tempfile
import zipfile
from pathlib import Path

from hart.errors import HartError
from hart.model.adaptation import FIELDS_FILE, TENSORS_FILE, Adaptation


def bundle(adaptation: Adaptation) -> bytes:
    """The files of `Adaptation.save_pretrained` as one zip file."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(packed, "w") as archive:
        folder = Path(temporary) / "adaptation"
        adaptation.save_pretrained(folder)
        for name in (FIELDS_FILE, TENSORS_FILE):
            archive.write(folder / name, name)
    return packed.getvalue()


def unbundle(packed: bytes) -> Adaptation:
    """The adaptation in a zip file made by `bundle`.

    Raises:
        HartError: the file is not such a zip file, or damaged.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                # Read by known names, so that names in the file cannot choose where files are written.
                for name in (FIELDS_FILE, TENSORS_FILE):
                    (folder / name).write_bytes(archive.read(name))
        except (zipfile.BadZipFile, KeyError) as error:
            raise HartError(f"not a zip file of an adaptation ({error})") from error
        return Adaptation.from_pretrained(folder)
