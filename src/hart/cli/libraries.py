"""The notes and bars of other libraries, kept from the user."""

import importlib.util
import logging
import os
import sys
import warnings


def silence_libraries() -> None:
    """Keep the notes and bars of the libraries underneath from the user; what matters we say ourselves.

    Errors still show, and so do downloads, which may take long.
    """
    import torch
    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    for name in ("bitsandbytes", "accelerate", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if importlib.util.find_spec("deepspeed") and not torch.cuda.is_available():
        # Else it warns in every command that it has looked for a GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Bars of loading weights; the call switches those of downloads off as well.
    transformers_logging.disable_progress_bar()
    enable_progress_bars()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
