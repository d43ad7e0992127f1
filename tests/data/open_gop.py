"""Makes `open_gop/`: 50 frames of H.264 and HEVC whose key frames are decoded before, and shown after, frames that
need the key frame before; tagged BT.709. `frames.json` has the xxh3 of all planes (sequential decode by PyAV) and of
all pictures (torchcodec), frame by frame.

    python open_gop.py        # needs av, torchcodec, xxhash
"""

import json
from pathlib import Path

import av
import numpy as np
import xxhash
from torchcodec.decoders import VideoDecoder

STREAMS = {
    "h264": ("libx264", {"x264-params": "open-gop=1:b-pyramid=normal:bframes=3:keyint=12:min-keyint=4:crf=30"}),
    "hevc": ("libx265", {"x265-params": "keyint=10:bframes=4:open-gop=1:crf=32:log-level=none"}),
}
BT709 = 1


def encode(path, codec, options):
    y, x = np.mgrid[:72, :96]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=50, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        stream.codec_context.colorspace = BT709
        for t in range(50):
            picture = np.stack([(2 * x + 4 * t) % 256, (3 * y + 2 * t) % 256, (x + y + 3 * t) % 256], -1)
            picture[20:50, 20:60] = 128 + 40 * np.sin(t / 5)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)


def main():
    folder = Path(__file__).with_name("open_gop")
    hashes = {}
    for name, (codec, options) in STREAMS.items():
        path = folder / f"{name}.mp4"
        encode(path, codec, options)
        with av.open(str(path)) as file:
            planes = [frame.to_ndarray() for frame in file.decode(video=0)]
        pictures = [frame.permute(1, 2, 0).numpy() for frame in VideoDecoder(str(path), seek_mode="exact")]
        digest = lambda array: xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).tobytes())
        hashes[name] = {"planes": [digest(a) for a in planes], "rgb": [digest(a) for a in pictures]}
    (folder / "frames.json").write_text(json.dumps(hashes) + "\n")


main()
