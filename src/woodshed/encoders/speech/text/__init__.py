"""From a line of a manifest to text ids: cleaning, language, normalisation, SentencePiece."""
