"""Whole training steps in JAX, the algorithm of acrlpd with its numbers, for `acrlpd bench step --peer`.

    python3 benches/peers/step_jax.py --save peer.json
    target/release/acrlpd bench step --config debug --fixture tests/golden/acrlpd_tiny --peer peer.json

One jitted function a step, f32, the schedule of acrlpd: one prefix pass for s that behaviour cloning, critic features and
Euler steps share, one for s'; candidates without gradients, the best of them once more with. Euler steps are a scan. It
is meant for the tiny fixture on a CPU. The fixture's losses, gradients and weights after three updates are checked first,
and nothing is timed where they differ.
"""

import functools
import math
import sys
import time

import step_common as common
from step_common import EPS, EXPERT, LANGUAGE, PROJECTOR, VISION

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    sys.exit("error: this Python has no jax; pip install jax")

stop = jax.lax.stop_gradient


def linear(w, name, x):
    y = x @ w[name + ".weight"].T
    bias = w.get(name + ".bias")
    return y if bias is None else y + bias


def gelu(x):
    return jax.nn.gelu(x, approximate=True)


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS)


def rms_norm(x, offset):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS) * (1.0 + offset)


def attend(q, k, v, mask):
    """[B, T, n, d], [B, S, m, d], [B, T, S] or nothing → [B, T, n · d]; n is a multiple of m."""
    b, t, n, d = q.shape
    m = k.shape[2]
    scores = jnp.einsum("btmgd,bsmd->bmgts", q.reshape(b, t, m, n // m, d), k) * d**-0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -1e30)
    out = jnp.einsum("bmgts,bsmd->btmgd", jax.nn.softmax(scores, axis=-1), v)
    return out.reshape(b, t, n * d)


def vision(w, d, images):
    n, side, p = images.shape[0], d.image_size // d.patch, d.patch
    cut = images.reshape(n, side, p, side, p, 3).transpose(0, 1, 3, 5, 2, 4).reshape(n, side * side, 3 * p * p)
    kernel = w[VISION + "embeddings.patch_embedding.weight"].reshape(d.vit_width, -1)
    x = cut @ kernel.T + w[VISION + "embeddings.patch_embedding.bias"] + w[VISION + "embeddings.position_embedding.weight"]
    norm = lambda name, x: layer_norm(x) * w[name + ".weight"] + w[name + ".bias"]
    for i in range(d.vit_depth):
        layer = f"{VISION}encoder.layers.{i}."
        y = norm(layer + "layer_norm1", x)
        heads = [linear(w, f"{layer}self_attn.{name}_proj", y).reshape(n, side * side, d.vit_heads, -1) for name in "qkv"]
        x = x + linear(w, layer + "self_attn.out_proj", attend(*heads, None))
        y = norm(layer + "layer_norm2", x)
        x = x + linear(w, layer + "mlp.fc2", gelu(linear(w, layer + "mlp.fc1", y)))
    return linear(w, PROJECTOR[:-1], norm(VISION + "post_layernorm", x))


def rope(x, positions):
    half = x.shape[-1] // 2
    angle = positions[..., None, None] * 10000.0 ** (-jnp.arange(half) / half)
    a, b, cos, sin = x[..., :half], x[..., half:], jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def projected(w, d, layer, y, positions, which):
    rows = {"q": d.heads, "k": d.kv_heads, "v": d.kv_heads}[which]
    x = linear(w, f"{layer}self_attn.{which}_proj", y).reshape(*y.shape[:2], rows, d.head_dim)
    return x if which == "v" else rope(x, positions)


def block(w, d, layer, x, positions, before, mask):
    """Tokens that see `before` and each other as far as `mask` lets them; their own keys and values."""
    y = rms_norm(x, w[layer + "input_layernorm.weight"])
    q, k, v = (projected(w, d, layer, y, positions, which) for which in "qkv")
    own = (k, v)
    if before is not None:
        k, v = (jnp.concatenate([old, new], 1) for old, new in zip(before, own))
    x = x + linear(w, layer + "self_attn.o_proj", attend(q, k, v, mask))
    y = rms_norm(x, w[layer + "post_attention_layernorm.weight"])
    gated = gelu(linear(w, layer + "mlp.gate_proj", y)) * linear(w, layer + "mlp.up_proj", y)
    return x + linear(w, layer + "mlp.down_proj", gated), own


def expert(w, d, x, first, context, cache, seen):
    b, t = x.shape[:2]
    positions = context["valid"].sum(1, keepdims=True) + first + jnp.arange(t)[None]
    mask = jnp.broadcast_to(jnp.concatenate([seen, jnp.ones((b, t), bool)], 1)[:, None], (b, t, seen.shape[1] + t))
    own = []
    for i in range(d.depth):
        x, new = block(w, d, f"{EXPERT}layers.{i}.", x, positions, cache[i], mask)
        own.append(new)
    return rms_norm(x, w[EXPERT + "norm.weight"]), own


def prefix(w, d, batch, who):
    """Embedded tokens of an observation, who is valid, and the keys and values that suffixes see."""
    cameras = [batch[f"{who}/images/{camera}"] for camera in d.cameras]
    pictures = jnp.split(vision(w, d, jnp.concatenate(cameras)), len(cameras))
    valid = [jnp.broadcast_to(batch[f"{who}/image_masks/{camera}"][:, None], p.shape[:2]) for camera, p in zip(d.cameras, pictures)]
    prompt = w[LANGUAGE + "embed_tokens.weight"][batch[who + "/tokens"]] * math.sqrt(d.vlm_width)
    x, valid = jnp.concatenate([*pictures, prompt], 1), jnp.concatenate([*valid, batch[who + "/token_mask"]], 1)
    embedded, positions, mask = x, jnp.cumsum(valid, 1) - 1, valid[:, None, :] & valid[:, :, None]
    cache = []
    for i in range(d.depth):
        layer = f"{LANGUAGE}layers.{i}."
        if i + 1 == d.depth:
            y = rms_norm(x, w[layer + "input_layernorm.weight"])
            own = tuple(projected(w, d, layer, y, positions, which) for which in "kv")
        else:
            x, own = block(w, d, layer, x, positions, None, mask)
        cache.append(own)
    context = {"tokens": embedded, "valid": valid}
    # The state token sees the prefix and itself: it is the same for every Euler step of every candidate.
    state = linear(w, "state_proj", batch[who + "/state"])[:, None]
    _, own = expert(w, d, state, 0, context, cache, valid)
    both = [tuple(jnp.concatenate(pair, 1) for pair in zip(old, new)) for old, new in zip(cache, own)]
    return context | {"cache": both, "seen": jnp.concatenate([valid, jnp.ones_like(valid[:, :1])], 1)}


def velocity(w, d, context, x, embedded_time):
    a = linear(w, "action_in_proj", x)
    both = jnp.concatenate([a, jnp.broadcast_to(embedded_time[:, None], a.shape)], -1)
    a = linear(w, "action_time_mlp_out", jax.nn.silu(linear(w, "action_time_mlp_in", both)))
    out, _ = expert(w, d, a, 1, context, context["cache"], context["seen"])
    return linear(w, "action_out_proj", out)


def sample(w, d, context, x, times):
    def step(x, time_):
        v = velocity(w, d, context, x, jnp.broadcast_to(time_, (x.shape[0], time_.shape[0])))
        return x - v / times.shape[0], None

    return jax.lax.scan(step, x, times)[0]


def critic(c, d, features, actions):
    x = jnp.concatenate([features, actions[..., : d.real_action_dim].reshape(actions.shape[0], -1)], -1)
    x = jnp.broadcast_to(x, (d.num_critics, *x.shape))
    layer = lambda name, x: jnp.einsum("ebi,eoi->ebo", x, c[name + ".weight"]) + c[name + ".bias"][:, None]
    for i in range(len(d.critic_hidden)):
        p = f"critic.layers.{i}."
        x = layer_norm(layer(p + "linear", x)) * c[p + "norm.weight"][:, None] + c[p + "norm.bias"][:, None]
        x = jax.nn.relu(x)
    return layer("critic.out", x)[..., 0]


def features_of(d, context, state):
    m = context["valid"].astype(jnp.float32)[..., None]
    return jnp.concatenate([(context["tokens"] * m).sum(1) / m.sum(1), state[:, : d.real_action_dim]], -1)


def rule(q, how):
    return q.min(0) if how == "min" else q.mean(0)


def losses(d, h, times, w, c, target, batch, totals):
    n, b = batch["cand_noise"].shape[:2]
    chunk = batch["cand_noise"].shape[2:]
    current = prefix(w, d, batch, "obs")
    fixed = jax.tree.map(stop, w)
    following = prefix(fixed, d, batch, "next_obs")
    features = stop(features_of(d, current, batch["obs/state"]))
    next_features = features_of(d, following, batch["next_obs/state"])

    # Candidates of s, one after the other, and the targets of s', in one pass without gradients.
    rows = jax.tree.map(lambda a, z: stop(jnp.concatenate([*[a] * n, z])), dict(current), dict(following))
    ends = sample(fixed, d, rows, jnp.concatenate([batch["cand_noise"].reshape(n * b, *chunk), batch["next_noise"]]), times)
    candidates, next_actions = stop(ends[: n * b].reshape(n, b, *chunk)), ends[n * b :]

    next_q = critic(target, d, next_features, next_actions)
    y = stop(batch["rewards"] + h["discount"] ** d.action_horizon * batch["masks"] * rule(next_q, h["target_q_agg"]))
    q = critic(c, d, features, batch["actions"])
    error, delta, valid = q - y, h["huber_delta"], batch["valid"][:, -1]
    huber = jnp.where(jnp.abs(error) <= delta, 0.5 * error**2, delta * (jnp.abs(error) - 0.5 * delta))
    critic_loss = ((error**2 if h["critic_loss"] == "mse" else huber).mean(0) * valid).sum() / totals[0]

    constant = jax.tree.map(stop, c)
    every = critic(constant, d, jnp.tile(features, (n, 1)), candidates.reshape(n * b, *chunk)).reshape(-1, n, b)
    values = rule(every, h["actor_q_agg"])
    best = values.argmax(0)
    winner = sample(w, d, current, batch["cand_noise"][best, jnp.arange(b)], times)
    chosen = rule(critic(constant, d, features, winner), h["actor_q_agg"])
    actor = -(chosen * valid).sum() / totals[0]

    t = batch["bc_time"][:, None, None]
    v = velocity(w, d, current, t * batch["bc_noise"] + (1.0 - t) * batch["actions"], batch["bc_times"])
    keep = batch["valid"] * batch["positive"][:, None]
    flow = jnp.square(v - (batch["bc_noise"] - batch["actions"])).mean(-1)
    bc = (flow * keep).sum() / jnp.maximum(totals[1] * d.action_horizon, 1)
    entropy = jnp.log(jnp.square(candidates - candidates.mean(0)).mean(0).mean((1, 2)) + 1e-8).mean()
    return {"features": features, "next_features": next_features, "next_actions": next_actions, "next_q": next_q,
            "target": y, "q": q, "candidates": candidates, "candidate_q": values, "v_t": v, "critic_loss": critic_loss,
            "actor_loss": actor, "bc_loss": bc, "entropy": entropy}


def adamw(h, rate, decay, count, tensors, grads, m, v):
    """Clips by the norm of all, then AdamW; the norm, and what comes out."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in grads.values()))
    factor = jnp.where(norm < h["clip_norm"], 1.0, h["clip_norm"] / norm)
    b1, b2 = h["beta1"], h["beta2"]
    m = {k: b1 * m[k] + (1.0 - b1) * factor * g for k, g in grads.items()}
    v = {k: b2 * v[k] + (1.0 - b2) * jnp.square(factor * g) for k, g in grads.items()}
    hat = lambda x, b: x / (1.0 - b**count)
    new = {k: p - rate * (hat(m[k], b1) / (jnp.sqrt(hat(v[k], b2)) + h["eps"]) + decay * p) for k, p in tensors.items()}
    return norm, new, m, v


class Step:
    """The step of one case, compiled once."""

    def __init__(self, dims, hyper):
        self.d, self.h = dims, hyper
        steps = hyper["euler_steps"]
        self.times = jnp.asarray(common.sincos([1.0 - i / steps for i in range(steps)], dims.expert_width))
        self.losses = jax.jit(functools.partial(losses, dims, hyper, self.times))
        self.step = jax.jit(self.whole, donate_argnums=0)

    def upload(self, batch):
        return {k: jnp.asarray(x) for k, x in batch.items()} | {
            "bc_times": jnp.asarray(common.sincos(batch["bc_time"], self.d.expert_width))}

    def start(self, weights, online):
        put = lambda tensors: {k: jnp.array(x) for k, x in tensors.items()}
        zeros = lambda tensors: {k: jnp.zeros_like(x) for k, x in put(tensors).items()}
        return {"pi0": put(weights), "critic": put(online), "target": put(online), "ema": put(weights),
                "pi0_m": zeros(weights), "pi0_v": zeros(weights), "critic_m": zeros(online), "critic_v": zeros(online),
                "count": jnp.zeros(())}

    def whole(self, s, parts, totals, rates):
        h = self.h

        def total(both, part):
            out = losses(self.d, h, self.times, both[0], both[1], s["target"], part, totals)
            policy = h["actor_weight"] * out["actor_loss"] + h["bc_weight"] * out["bc_loss"]
            return policy + h["critic_weight"] * out["critic_loss"]

        grads = [jax.grad(total)((s["pi0"], s["critic"]), part) for part in parts]
        pi0, critics = jax.tree.map(lambda *g: sum(g), *grads)
        count, out, norms = s["count"] + 1, {}, []
        for name, g, rate in (("pi0", pi0, rates[0]), ("critic", critics, rates[1])):
            norm, out[name], out[name + "_m"], out[name + "_v"] = adamw(
                h, rate, h[name + "_weight_decay"], count, s[name], g, s[name + "_m"], s[name + "_v"])
            norms.append(norm)
        blend = lambda old, new, rate: {k: (1.0 - rate) * old[k] + rate * new[k] for k in old}
        out["target"] = blend(s["target"], out["critic"], h["target_tau"])
        out["ema"] = blend(s["ema"], out["pi0"], 1.0 - (h["ema_decay"] if h["ema_decay"] is not None else 1.0))
        return out | {"count": count}, norms


class Checked:
    """A step as `common.check` wants it."""

    def __init__(self, golden, step):
        self.golden, self.step = golden, step

    @staticmethod
    def totals(batch):
        return len(batch["rewards"]), int(batch["positive"].sum())

    def start(self):
        return self.step.start(self.golden.files["weights"], self.golden.under("critic", "online/"))

    def losses(self, batch, target):
        s = self.start()
        out = self.step.losses(s["pi0"], s["critic"], target, self.step.upload(batch), self.totals(batch))
        return jax.device_get(out)

    def gradients(self, batch, target):
        s, inputs, totals = self.start(), self.step.upload(batch), self.totals(batch)
        found = {}
        for i, part in ((0, "actor"), (0, "bc"), (1, "critic")):
            loss = lambda w, c: self.step.losses(w, c, target, inputs, totals)[part + "_loss"]
            found[part] = jax.device_get(jax.grad(loss, argnums=i)(s["pi0"], s["critic"]))
        return found

    def train(self, batches, rates):
        s, norms = self.start(), []
        for batch, rate in zip(batches, rates):
            s, two = self.step.step(s, [self.step.upload(batch)], self.totals(batch), rate)
            norms.append([float(x) for x in two])
        return norms, {part: jax.device_get(s[part]) for part in ("pi0", "critic", "target", "ema")}


def timed(case, golden):
    def make():
        import numpy as np

        dims = common.Dims.of(case["dims"])
        step = Step(dims, case["hyper"])
        if golden.stem.name == case["name"]:
            s, parts = step.start(golden.files["weights"], golden.under("critic", "online/")), [golden.batch(0)]
        else:
            rng = np.random.default_rng(0)
            normal = lambda shape: rng.standard_normal(shape, dtype=np.float32)
            s = step.start(*({n: common.initial(n, x, normal) for n, x in group.items()} for group in common.shapes(dims)))
            micro = case["samples"] // case["micro_batches"]
            parts = [common.random_batch(dims, micro, case["candidates"], case["prompt_tokens"], i)
                     for i in range(case["micro_batches"])]
        totals = case["samples"], sum(int(part["positive"].sum()) for part in parts)

        def run():
            nonlocal s
            s, norms = step.step(s, [step.upload(part) for part in parts], totals, (1e-6, 1e-6))
            jax.block_until_ready(norms)
            jax.block_until_ready(s)

        return run, lambda: None

    return make


def main(argv):
    args = common.arguments(argv, __doc__.split("\n")[0])
    deadline = time.monotonic() + 60 * args.minutes
    golden = common.Golden(args.fixture)
    name, cases = common.cases_of(args, golden)
    if name != "float32":
        raise SystemExit("error: the JAX peer is f32; list the cases with --set model.dtype=float32")
    jax.config.update("jax_default_matmul_precision", "highest")
    worst = common.check(golden, Checked(golden, Step(golden.dims, golden.hyper)))
    print("right (" + ", ".join(f"{what} {error:.1e}" for what, error in worst.items()) + ")", file=sys.stderr, flush=True)
    rows = [common.measure(case, "jitted", timed(case, golden), args.steps, deadline) for case in cases]
    device = jax.devices()[0]
    head = {"program": f"jax {jax.__version__}", "device": device.device_kind, "api": "jax", "dtype": name}
    return common.finish(args, head, rows)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except common.Wrong as error:
        sys.exit(f"error: {error}: this is not the same computation, so nothing was timed")
