"""Times acrlpd's loader and lerobot's own DataLoader on the same dataset, batch and single core, in turns.

    cargo build --release
    /tmp/lerobot/bin/python benches/peers/loader.py DATASET --acrlpd target/release/acrlpd --tokenizer MODEL

Each sample is what training needs: the pictures of all cameras at the first frame of a chunk and at the one after it,
the states there, and the chunk's actions. lerobot delivers float pictures of the recorded size; acrlpd's are resized
to 224x224, and the prompt is tokenized. Both run on one core (the numbers are per core), random order, pages cached.
The dataset is ALOHA's: three cameras, 14 joints. make_dataset.py writes one and says how to install lerobot.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time


def theirs(args):
    """Samples a second of lerobot's DataLoader in this process."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    info = json.loads((args.dataset / "meta/info.json").read_text())
    fps = info["fps"]
    deltas = {"action": [i / fps for i in range(args.horizon)], "observation.state": [0, args.horizon / fps]}
    for key, feature in info["features"].items():
        if feature["dtype"] in ("image", "video"):
            deltas[key] = [0, args.horizon / fps]
    dataset = LeRobotDataset(
        args.dataset.name, root=args.dataset, delta_timestamps=deltas, video_backend=args.backend
    )
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=args.batch, shuffle=True, num_workers=0, generator=generator, drop_last=True
    )
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    began = time.perf_counter()
    for _ in range(args.batches):
        next(batches)
    print(json.dumps(args.batches * args.batch / (time.perf_counter() - began)))


def ours(args):
    settings = {
        "batch_size": args.batch,
        "acrlpd.gradient_accumulation_steps": 1,
        "acrlpd.chunk_length": args.horizon,
        "model.action_horizon": args.horizon,
        "data.tokenizer": args.tokenizer.resolve(),
        "data.prompt_from_task": "true",
        "data.default_success": "true",
        "data.eval_fraction": 0,
        "eval_interval": 0,
    }
    command = [args.acrlpd, "bench", "loader", "--config", "rl_aloha_fold", "--data", str(args.dataset.resolve())]
    command += ["--threads", "1", "--batches", str(args.batches), "--step-ms", "0", "--json"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out)["loaders"][0]["samples_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=pathlib.Path)
    parser.add_argument("--acrlpd", default="target/release/acrlpd")
    parser.add_argument("--tokenizer", type=pathlib.Path, default="assets/tokenizer/tiny_paligemma.model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default=None, help="lerobot's video backend (its default: torchcodec if it loads)")
    parser.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        return theirs(args)
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    rows = []
    for i in range(args.rounds):
        peer = subprocess.run([sys.executable, __file__, "--theirs", *sys.argv[1:]], check=True, capture_output=True)
        rows.append((ours(args), json.loads(peer.stdout.splitlines()[-1])))
        ratio = rows[-1][0] / rows[-1][1]
        print("round %d: acrlpd %.1f, lerobot %.1f samples/s, %.2f x" % (i + 1, *rows[-1], ratio), flush=True)
    median = [statistics.median(column) for column in zip(*rows)]
    ratio = statistics.median(a / b for a, b in rows)
    print("median: acrlpd %.1f, lerobot %.1f samples/s on one core, %.2f x" % (*median, ratio))


if __name__ == "__main__":
    main()
