"""Field defaults, YAML files and flags, composed into one settings object per command."""
