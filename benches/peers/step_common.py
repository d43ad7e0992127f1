"""What the peers of `acrlpd bench step` share: cases, the fixture and its checks, random batches, times, results.

Needs numpy and, for the fixture, safetensors; lists and results need neither. Nothing here knows a framework.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

try:
    import numpy as np
except ImportError:
    np = None

FORMAT = 1

VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
PROJECTOR = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear."
LANGUAGE = "paligemma_with_expert.paligemma.model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."
EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Dims:
    """Sizes of π₀ and of the critics, under the names of the fixtures."""

    image_size: int
    patch: int
    vit_width: int
    vit_depth: int
    vit_mlp: int
    vit_heads: int
    vlm_width: int
    vlm_mlp: int
    expert_width: int
    expert_mlp: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_token_len: int
    cameras: tuple
    action_dim: int
    action_horizon: int
    real_action_dim: int
    num_critics: int
    critic_hidden: tuple

    @staticmethod
    def of(description):
        if description.get("pi05"):
            raise SystemExit("error: the peers know π₀ only, not π₀.₅")
        known = {field.name: description[field.name] for field in dataclasses.fields(Dims)}
        known |= {key: tuple(known[key]) for key in ("cameras", "critic_hidden")}
        return Dims(**known)

    def image_tokens(self):
        return (self.image_size // self.patch) ** 2


def shapes(d):
    """Names and shapes of π₀'s weights and of the critics'."""
    pi0, w = {}, d.vit_width
    pi0[VISION + "embeddings.patch_embedding.weight"] = (w, 3, d.patch, d.patch)
    pi0[VISION + "embeddings.patch_embedding.bias"] = (w,)
    pi0[VISION + "embeddings.position_embedding.weight"] = (d.image_tokens(), w)
    linear = lambda name, out, into: pi0.update({name + ".weight": (out, into), name + ".bias": (out,)})
    norm = lambda name: pi0.update({name + ".weight": (w,), name + ".bias": (w,)})
    for i in range(d.vit_depth):
        layer = f"{VISION}encoder.layers.{i}."
        norm(layer + "layer_norm1")
        norm(layer + "layer_norm2")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(layer + "self_attn." + name, w, w)
        linear(layer + "mlp.fc1", d.vit_mlp, w)
        linear(layer + "mlp.fc2", w, d.vit_mlp)
    norm(VISION + "post_layernorm")
    linear(PROJECTOR[:-1], d.vlm_width, w)
    pi0[LANGUAGE + "embed_tokens.weight"] = (d.vocab, d.vlm_width)
    for stream, width, mlp in ((LANGUAGE, d.vlm_width, d.vlm_mlp), (EXPERT, d.expert_width, d.expert_mlp)):
        for i in range(d.depth):
            layer = f"{stream}layers.{i}."
            for name, rows in (("q", d.heads), ("k", d.kv_heads), ("v", d.kv_heads)):
                pi0[f"{layer}self_attn.{name}_proj.weight"] = (rows * d.head_dim, width)
            pi0[layer + "self_attn.o_proj.weight"] = (width, d.heads * d.head_dim)
            pi0[layer + "mlp.gate_proj.weight"] = (mlp, width)
            pi0[layer + "mlp.up_proj.weight"] = (mlp, width)
            pi0[layer + "mlp.down_proj.weight"] = (width, mlp)
            pi0[layer + "input_layernorm.weight"] = (width,)
            pi0[layer + "post_attention_layernorm.weight"] = (width,)
        pi0[stream + "norm.weight"] = (width,)
    ew = d.expert_width
    linear("action_in_proj", ew, d.action_dim)
    linear("state_proj", ew, d.action_dim)
    linear("action_time_mlp_in", ew, 2 * ew)
    linear("action_time_mlp_out", ew, ew)
    linear("action_out_proj", d.action_dim, ew)
    critic, into = {}, d.vlm_width + d.real_action_dim + d.action_horizon * d.real_action_dim
    for i, width in enumerate(d.critic_hidden):
        layer = f"critic.layers.{i}."
        critic[layer + "linear.weight"] = (d.num_critics, width, into)
        for name in ("linear.bias", "norm.weight", "norm.bias"):
            critic[layer + name] = (d.num_critics, width)
        into = width
    critic["critic.out.weight"] = (d.num_critics, 1, into)
    critic["critic.out.bias"] = (d.num_critics, 1)
    return pi0, critic


def is_ones(name):
    """Weights of LayerNorms start at one; those of RMSNorms are offsets from one."""
    return "layer_norm" in name and name.endswith("weight") or name.endswith("norm.weight") and "critic" in name


def initial(name, shape, normal):
    """Initial values of a tensor; `normal` makes standard normals of a shape."""
    if len(shape) == 1 or name.endswith("bias") or "norm" in name:
        return np.full(shape, 1.0 if is_ones(name) or "post_layernorm.weight" in name else 0.0, np.float32)
    fan_in = math.prod(shape[1:]) if not name.startswith("critic") else shape[-1]
    return normal(shape) * np.float32(fan_in**-0.5)


def batch_shapes(d, samples, candidates, tokens):
    """What a batch holds, with the shapes of the fixture."""
    chunk = (d.action_horizon, d.action_dim)
    parts = {}
    for observation in ("obs", "next_obs"):
        for camera in d.cameras:
            parts[f"{observation}/images/{camera}"] = (samples, d.image_size, d.image_size, 3)
            parts[f"{observation}/image_masks/{camera}"] = (samples,)
        parts[f"{observation}/state"] = (samples, d.action_dim)
        parts[f"{observation}/tokens"] = (samples, tokens)
        parts[f"{observation}/token_mask"] = (samples, tokens)
    for name in ("actions", "bc_noise", "next_noise"):
        parts[name] = (samples, *chunk)
    parts["cand_noise"] = (candidates, samples, *chunk)
    parts["valid"] = (samples, d.action_horizon)
    parts |= {name: (samples,) for name in ("rewards", "masks", "positive", "bc_time")}
    return parts


def random_batch(d, samples, candidates, tokens, seed=0):
    """A batch in which nothing can be left out: every camera, prompts of `tokens`, all samples cloned and valid."""
    rng, batch = np.random.default_rng(seed), {}
    for name, shape in batch_shapes(d, samples, candidates, tokens).items():
        kind = name.split("/")
        if kind[-1] == "tokens":
            batch[name] = rng.integers(0, d.vocab, shape, dtype=np.int32)
        elif "image_masks" in kind or kind[-1] in ("token_mask", "positive"):
            batch[name] = np.ones(shape, bool)
        elif kind[-1] in ("valid", "masks"):
            batch[name] = np.ones(shape, np.float32)
        elif "images" in kind:
            batch[name] = rng.uniform(-1, 1, shape).astype(np.float32)
        elif kind[-1] == "bc_time":
            batch[name] = rng.uniform(0.05, 1, shape).astype(np.float32)
        else:
            batch[name] = rng.standard_normal(shape, dtype=np.float32)
    return batch


def sincos(time_, width):
    """Embedding of flow times, in float64: angles reach 1600 rad."""
    time_ = np.asarray(time_, np.float64)
    period = 4e-3 * (4.0 / 4e-3) ** np.linspace(0.0, 1.0, width // 2)
    angle = time_[:, None] * (2.0 * math.pi / period)[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


class Golden:
    """A training fixture: weights, batches, and what must come out."""

    def __init__(self, stem):
        from safetensors.numpy import load_file

        self.stem = pathlib.Path(str(stem).removesuffix(".json"))
        self.json = json.loads(self.stem.with_suffix(".json").read_text())
        self.files = {part: load_file(f"{self.stem}.{part}.safetensors") for part in
                      ("weights", "critic", "batches", "losses", "grads", "post")}
        self.dims, self.hyper = Dims.of(self.json["dims"]), self.json["hyper"]

    def under(self, part, prefix):
        return {name[len(prefix):]: x for name, x in self.files[part].items() if name.startswith(prefix)}

    def batch(self, step):
        return self.under("batches", f"step{step}/")

    def case(self):
        return {"name": self.stem.name, "dims": self.json["dims"], "hyper": self.hyper, "samples": self.json["batch"],
                "micro_batches": 1, "candidates": self.json["candidates"]}


class Wrong(Exception):
    """A number that is not the fixture's."""


def close(what, got, want, limit):
    """Refuses values further off than `limit` times the largest of what they must be."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise Wrong(f"{what} has shape {got.shape}, not {want.shape}")
    size = max(float(np.max(np.abs(want))), 1e-30)
    off = float(np.max(np.abs(got - want))) / size if want.size else 0.0
    if not off <= limit:
        raise Wrong(f"{what} is off by {off:.1e} of its largest value, {limit:.0e} are allowed")
    return off


def check(golden, engine):
    """Holds losses, intermediates, gradients and three updates of an engine to the fixture; returns the largest errors.

    `engine.losses(batch, target)` gives a dict of losses and intermediates, `engine.gradients(batch, target)` a dict of
    the gradients of `actor`, `bc` and `critic`, each a dict of arrays; `engine.train(batches, rates)` runs updates from the
    fixture's weights and gives their norms and the new weights.
    """
    batch, target = golden.batch(0), golden.under("critic", "target/")
    worst = {"losses": 0.0, "gradients": 0.0, "norms": 0.0, "updates": 0.0}
    losses = engine.losses(batch, target)
    for name in ("features", "next_features", "next_actions", "next_q", "target", "q", "candidates", "candidate_q",
                 "v_t", "critic_loss", "actor_loss", "bc_loss", "entropy"):
        if name in losses:
            worst["losses"] = max(worst["losses"], close(name, losses[name], golden.files["losses"][name], 1e-4))
    # Summed over elements and layers, f32 rounding of a ten-step chain is larger than that of one tensor's values.
    for part, gradients in engine.gradients(batch, target).items():
        norm = math.sqrt(sum(float(np.sum(np.square(g.astype(np.float64)))) for g in gradients.values()))
        worst["norms"] = max(worst["norms"], close(f"norm of {part}", norm, golden.json["grad_norms"][part], 5e-4))
        wanted = golden.under("grads", f"grad_{part}/")
        for name, want in wanted.items():
            # Zero but for rounding: softmax does not see what is added to all keys.
            if VISION in name and name.endswith("k_proj.bias"):
                continue
            worst["gradients"] = max(worst["gradients"], close(f"{part}: {name}", gradients[name], want, 5e-4))
    log = golden.json["training"]["log"]
    rates = [(entry["pi0_lr"], entry["critic_lr"]) for entry in log]
    norms, weights = engine.train([golden.batch(step) for step in range(len(log))], rates)
    for entry, (pi0, critic) in zip(log, norms):
        for key, norm in (("pi0_grad_norm", pi0), ("critic_grad_norm", critic)):
            worst["norms"] = max(worst["norms"], close(f"step {entry['step']}: {key}", norm, entry[key], 5e-3))
    # pi0, critic, target, ema: how far they have moved.
    moved, wanted = 0.0, 0.0
    for part, tensors in weights.items():
        start = golden.files["weights"] if part in ("pi0", "ema") else golden.under("critic", "online/")
        for name, end in golden.under("post", f"after{len(log)}/{part}/").items():
            if VISION in name and name.endswith("k_proj.bias"):
                continue
            moved += float(np.sum(np.square(tensors[name].astype(np.float64) - end)))
            wanted += float(np.sum(np.square(end.astype(np.float64) - start[name])))
    worst["updates"] = math.sqrt(moved / max(wanted, 1e-30))
    if not worst["updates"] <= 3e-3:
        raise Wrong(f"after {len(log)} updates the weights are off by {worst['updates']:.1e} of how far they moved")
    return worst


def spread(seconds):
    """Median, 10th and 90th percentile in milliseconds, as acrlpd takes them."""
    ordered = sorted(seconds)
    at = lambda q: 1e3 * ordered[int(math.floor((len(ordered) - 1) * q + 0.5))]
    return {"median_ms": at(0.5), "p10_ms": at(0.1), "p90_ms": at(0.9)}


def measure(case, way, make, steps, deadline):
    """The row of a case; `make()` gives a function that runs one whole step and waits for it, and one for peak memory."""
    row = {"name": case["name"], "way": way, "status": "ok", "samples": case["samples"], "candidates": case["candidates"]}
    if time.monotonic() > deadline:
        return row | {"status": "skipped", "why": "the time was up", "step": spread([0.0])}
    if lacks := case.get("peers_lack"):
        return row | {"status": "skipped", "why": f"the peers do not know {', '.join(lacks)}", "step": spread([0.0])}
    try:
        began = time.perf_counter()
        step, peak = make()
        built = time.perf_counter()
        step()
        first = time.perf_counter() - built
        step()
        seconds = []
        while len(seconds) < steps and (len(seconds) < 3 or time.monotonic() < deadline):
            began_step = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began_step)
        row |= {"step": spread(seconds), "first_step_ms": 1e3 * first, "built_ms": 1e3 * (built - began), "steps": len(seconds)}
        row["samples_per_s"] = 1e3 * case["samples"] / row["step"]["median_ms"]
        if (bytes_ := peak()) is not None:
            row["peak_bytes"] = bytes_
    except Exception as error:  # out of memory in one way must not end the others
        row |= {"status": "failed", "why": " ".join(str(error).split())[:300] or type(error).__name__, "step": spread([0.0])}
    return row


def arguments(argv, text, extra=lambda parser: None):
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("list", type=pathlib.Path, nargs="?", help="what `acrlpd bench step --list --json` printed")
    parser.add_argument("--fixture", type=pathlib.Path, default=pathlib.Path(__file__).parents[2] / "tests/golden/acrlpd_tiny",
                        help="the training fixture that is checked before anything is timed, and timed if there is no list")
    parser.add_argument("--save", type=pathlib.Path, help="write the results here instead of to stdout")
    parser.add_argument("--filter", action="append", default=[], help="only cases whose name contains this; may be repeated")
    parser.add_argument("--steps", type=int, default=20, help="steps to measure, after two that are not")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    extra(parser)
    args = parser.parse_args(argv)
    if np is None:
        raise SystemExit("error: this Python has no numpy; pip install numpy safetensors")
    return args


def cases_of(args, golden):
    """The cases of the list; without one, the fixture's."""
    if args.list is None:
        return "float32", [golden.case()]
    try:
        listed = json.loads(args.list.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {args.list} cannot be read: {error}")
    if listed.get("format") != FORMAT or listed.get("kind") != "step":
        raise SystemExit(f"error: {args.list} is no list of `acrlpd bench step --list --json` of format {FORMAT}")
    cases = [case for case in listed["cases"] if not args.filter or any(p in case["name"] for p in args.filter)]
    if not cases:
        raise SystemExit(f"error: no case has a name with {' or '.join(args.filter)}")
    return listed["dtype"], cases


def save(args, head, rows):
    """Writes what there is so far: a run that is ended has not been for nothing."""
    text = json.dumps({"format": FORMAT, "kind": "step"} | head | {"rows": rows}, indent=2)
    if args.save:
        args.save.write_text(text + "\n")
    return text


def finish(args, head, rows):
    """Writes the results; the exit code."""
    text = save(args, head, rows)
    if not args.save:
        print(text)
    good = sum(row["status"] == "ok" for row in rows)
    print(f"{good} rows measured, {len(rows) - good} not", file=sys.stderr)
    return 0 if good else 1
