"""Shrinks what lerobot returned for a dataset to what a test needs: queries, and for every tensor its type, shape and
xxh3 hash.

    python truth.py FOLDER_WITH_NAME.json_AND_NAME.safetensors NAME ...

The folder comes from lerobot (0.3.3 for v2, 0.4.4 for v3.0): for each query frame, `dataset[index]` with
`delta_timestamps`, and the planes of a sequential decode with PyAV. Needs xxhash.
"""

import json
import struct
import sys
from pathlib import Path

import xxhash

KEPT = ["written_and_read_by", "codebase_version", "fps", "horizon", "num_frames", "episode_from", "episode_to", "tasks"]


def tensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        digest = xxhash.xxh3_64_hexdigest(data[8 + size + begin : 8 + size + end])
        yield name, [entry["dtype"], entry["shape"], digest]


def main(folder, *names):
    for name in names:
        full = json.loads((folder / f"{name}.json").read_text())
        small = {key: full[key] for key in KEPT}
        small["episode_tasks"] = [episode["tasks"] for episode in full["episodes"]]
        small["queries"] = [{k: v for k, v in query.items() if k != "video"} for query in full["queries"]]
        small["tensors"] = dict(tensors(folder / f"{name}.safetensors"))
        lines = json.dumps(small, ensure_ascii=False).replace('"q', '\n"q').replace('{"index"', '\n{"index"')
        Path(__file__).with_name("truth").joinpath(f"{name}.json").write_text(lines + "\n")


main(Path(sys.argv[1]), *sys.argv[2:])
