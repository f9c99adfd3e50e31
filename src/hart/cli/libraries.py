"""Suppression of messages and progress bars of other libraries."""

import importlib.util
import logging
import os
import sys
import warnings


def silence_libraries() -> None:
    """Suppress messages and progress bars of libraries, as hart reports what matters itself.

    Errors and progress bars of downloads, which may take long, are still shown.
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
        # Without it, DeepSpeed warns in every command that it has looked for a GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # The progress bars of loading weights; the call also disables those of downloads.
    transformers_logging.disable_progress_bar()
    enable_progress_bars()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
