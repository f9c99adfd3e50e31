"""PEFT kinds (§2.2, §4.1): the interface in `base`, a file for each kind, and their injection into the main model.

Importing the package registers the kinds, one line each, and the attention functions.
"""

from hart.peft import adapter as adapter
from hart.peft import attention as attention
from hart.peft import decoder_attention as decoder_attention
from hart.peft import ia3 as ia3
from hart.peft import lora as lora
from hart.peft import prefix as prefix
