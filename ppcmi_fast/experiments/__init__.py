"""Experiments as files: runs planned in TOML, made once, resumed, and tabled."""
