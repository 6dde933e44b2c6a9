"""How the demo's SAE was trained: corpora, activations, training, evaluation; no hub is needed."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
