"""How the demo's SAE was trained: corpora, activations, training, evaluation; no hub is asked."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
