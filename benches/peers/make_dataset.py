"""Writes a LeRobot v3.0 dataset that is large enough to measure random access: three cameras of 480x640.

    python3 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install lerobot==0.4.4 && apt-get install ffmpeg
    /tmp/lerobot/bin/python benches/peers/make_dataset.py OUT --codec av1|h264|hevc|png [--episodes 12] [--frames 250]

lerobot itself encodes (its defaults: yuv420p, a key frame every two frames, CRF 30). The pictures are what a robot's
cameras give an encoder: a textured background that drifts, two moving objects, and noise of a sensor.
"""

import argparse
import pathlib

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

HEIGHT, WIDTH, FPS = 480, 640, 50
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
ENCODERS = {"av1": "libsvtav1", "h264": "h264", "hevc": "hevc", "png": None}


def texture(rng):
    """Smooth structure of several sizes, wide enough for a window that drifts over it."""
    picture = np.zeros((HEIGHT * 2, WIDTH * 2, 3), np.float32)
    for cell in (160, 80, 40, 20, 10, 5):
        coarse = rng.normal(size=(HEIGHT * 2 // cell, WIDTH * 2 // cell, 3)).astype(np.float32)
        picture += np.kron(coarse, np.ones((cell, cell, 1), np.float32)) * (cell**0.5) * 2
    return 128 + picture


def picture(rng, background, t, phase):
    y = int(HEIGHT / 2 * (1 + np.sin(t / 40 + phase)))
    x = int(WIDTH / 2 * (1 + np.cos(t / 55 + phase)))
    image = background[y : y + HEIGHT, x : x + WIDTH].copy()
    for k in range(2):
        cy = int(HEIGHT * (0.5 + 0.3 * np.sin(t / 15 + phase + 2 * k)))
        cx = int(WIDTH * (0.5 + 0.3 * np.cos(t / 21 + phase + k)))
        image[cy - 40 : cy + 40, cx - 40 : cx + 40] = (220 * k, 60, 200 - 150 * k)
    image += rng.normal(scale=2.0, size=image.shape).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--codec", choices=ENCODERS, default="av1")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--frames", type=int, default=250)
    args = parser.parse_args()
    video = args.codec != "png"
    joints = [f"joint_{i}" for i in range(14)]
    features = {
        "observation.state": {"dtype": "float32", "shape": (14,), "names": joints},
        "action": {"dtype": "float32", "shape": (14,), "names": joints},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    for camera in CAMERAS:
        features[f"observation.images.{camera}"] = {
            "dtype": "video" if video else "image",
            "shape": (HEIGHT, WIDTH, 3),
            "names": ["height", "width", "channels"],
        }
    dataset = LeRobotDataset.create(
        repo_id=args.out.name,
        fps=FPS,
        root=args.out,
        features=features,
        use_videos=video,
        # Not streamed: a full queue of lerobot's streaming encoder drops frames.
        **({"vcodec": ENCODERS[args.codec]} if video else {}),
    )
    rng = np.random.default_rng(0)
    backgrounds = [texture(rng) for _ in CAMERAS]
    for episode in range(args.episodes):
        for t in range(args.frames):
            state = np.sin(np.arange(14) + (t + 97 * episode) / 30).astype(np.float32)
            frame = {
                "observation.state": state,
                "action": state + 0.01,
                "next.success": np.array([t == args.frames - 1 and episode % 3 != 0]),
                "task": "pick up the block",
            }
            for k, camera in enumerate(CAMERAS):
                frame[f"observation.images.{camera}"] = picture(rng, backgrounds[k], t + 31 * episode, 2 * k)
            dataset.add_frame(frame)
        dataset.save_episode()
        print(f"episode {episode + 1} of {args.episodes}", flush=True)
    dataset.finalize()


if __name__ == "__main__":
    main()
