"""Where items come from: folders, stable-audio dataset configs, manifests, single files."""
