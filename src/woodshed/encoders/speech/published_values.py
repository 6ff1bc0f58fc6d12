"""Numbers that IndexTTS2's inference and its original preprocessing go by. Loads nothing."""

from __future__ import annotations

RATE_HZ = 16_000
"""What all its networks hear."""
ORIGINAL_FIRST_RATE_HZ = 24_000
"""What the original preprocessing resamples to first."""
REFERENCE_S = 15.0
"""Inference takes voice and emotion from so much of a clip's beginning."""
SEMANTIC_LAYER = 17
"""Hidden state of w2v-bert-2.0 that its semantic features are; 0 is the projected input."""
MAX_CLIP_S = 200.0
"""Its conditioning network has no positions for more."""
MIN_FRAMES = 3
"""Frames of 20 ms that its conditioning network needs."""
