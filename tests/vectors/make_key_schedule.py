"""Write key_schedule.json: `python tests/vectors/make_key_schedule.py`.

The file is pinned; a change is a new version.
"""

from __future__ import annotations

import json
from pathlib import Path

from ppcmi_fast.key_schedule import KeyStream, derive, schedule_info

SECRET = bytes(range(32))
FEDERATION_ID = "test-federation"
INFOS = [
    schedule_info("site", "image", 4, 16, "hadamard", 0),
    schedule_info("site", "mask", 8, 16, "haar", 0),
    schedule_info("federation", "image", 4, 16, "haar", 7),
]


def vector(info: str) -> dict[str, object]:
    """Every draw of one stream, in the order of docs/keys.md."""
    key = derive(SECRET, FEDERATION_ID, info)
    stream = KeyStream(key)
    return {
        "info": info,
        "derived": key.hex(),
        "stream": KeyStream(key).bytes(32).hex(),
        "signs": stream.signs(16).astype(int).tolist(),
        "permutation": stream.permutation(12).tolist(),
        "gaussians": stream.gaussians(5).tolist(),
        "haar": stream.haar(3).tolist(),
    }


if __name__ == "__main__":
    content = {
        "secret": SECRET.hex(),
        "federation_id": FEDERATION_ID,
        "vectors": [vector(info) for info in INFOS],
    }
    (Path(__file__).parent / "key_schedule.json").write_text(json.dumps(content, indent=1) + "\n")
