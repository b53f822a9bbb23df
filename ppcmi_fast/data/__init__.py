"""Data: the folder layout, splits by subject, augmentation and phantoms."""
