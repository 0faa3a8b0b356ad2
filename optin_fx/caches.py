"""Key-value caches of transformers as pytrees, so that decoders export as they ship (`use_cache=True`)."""

from __future__ import annotations

import sys


def register_caches() -> None:
    """Make every cache class of an imported transformers a pytree; call before export, and before reading a file.

    A decoder returns its cache beside its logits, and `torch.export` refuses outputs that it cannot take apart.
    transformers registers its caches only inside its own exporters, so the same is done here. Does nothing where
    transformers is not imported, and nothing twice.
    """
    if "transformers.cache_utils" not in sys.modules:
        return
    from transformers.cache_utils import Cache
    from transformers.exporters.exporter_dynamo import register_pytree_node

    pending = [Cache]
    while pending:
        kind = pending.pop()
        register_pytree_node(kind)
        pending += kind.__subclasses__()
