"""What a download of an adaptation is: one zip file."""

import io
import tempfile
import zipfile
from pathlib import Path

from hart.errors import HartError
from hart.model.adaptation import FIELDS_FILE, TENSORS_FILE, Adaptation


def bundle(adaptation: Adaptation) -> bytes:
    """What `Adaptation.save_pretrained` writes, as one zip file."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(packed, "w") as archive:
        folder = Path(temporary) / "adaptation"
        adaptation.save_pretrained(folder)
        for name in (FIELDS_FILE, TENSORS_FILE):
            archive.write(folder / name, name)
    return packed.getvalue()


def unbundle(packed: bytes) -> Adaptation:
    """The adaptation in a zip file of `bundle`.

    Raises:
        HartError: it is no such file, or damaged.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                # Read by name, so that no name in the file decides where anything is written.
                for name in (FIELDS_FILE, TENSORS_FILE):
                    (folder / name).write_bytes(archive.read(name))
        except (zipfile.BadZipFile, KeyError) as error:
            raise HartError(f"not a zip file of an adaptation ({error})") from error
        return Adaptation.from_pretrained(folder)
