"""Pure batch planning: which windows are cut from a clip, and which pieces share a batch."""
