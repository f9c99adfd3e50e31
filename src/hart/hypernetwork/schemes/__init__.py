"""Generation schemes (§2.2, §3.1): the interface in `base`, a file for each scheme.

Importing the package registers the schemes, one line each.
"""

from hart.hypernetwork.schemes import autoregressive as autoregressive
from hart.hypernetwork.schemes import bidirectional as bidirectional
from hart.hypernetwork.schemes import causal as causal
from hart.hypernetwork.schemes import component as component
from hart.hypernetwork.schemes import shared as shared
