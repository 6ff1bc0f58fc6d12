"""TTS training features: the networks, front ends and text rules of IndexTTS 2.0 and 2.5."""
