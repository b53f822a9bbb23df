"""Pictures of 8-bit grey values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ppcmi_fast.data.records import Pixels
from ppcmi_fast.errors import DataError


def open_grey(path: Path) -> Image.Image:
    """Decode an 8-bit grey, palette or 1-bit image whole, in its own mode: a 1-bit mask has the values 0 and 1.

    Raises:
        DataError: missing, damaged, or of another mode.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("L", "P", "1"):
                raise DataError(
                    f"{path}: expected an 8-bit grey image, got mode {image.mode}; convert it to 8-bit grey"
                )
            return image.copy()
    except FileNotFoundError:
        raise DataError(
            f"{path}: expected an image file, found nothing; correct the manifest or add the file"
        ) from None
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: expected a readable image, got a damaged file ({error}); replace it"
        ) from None


def grey_values(path: Path) -> Pixels:
    """A picture's values, 0 to 255; black and white are 0 and 255.

    Raises:
        DataError: as `open_grey`.
    """
    pixels: Pixels = np.asarray(open_grey(path).convert("L"), dtype=np.float32)
    return pixels
