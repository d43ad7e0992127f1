"""Whole training steps in PyTorch, the algorithm of acrlpd with its numbers, for `acrlpd bench step --peer`.

    target/release/acrlpd bench step --list --json --dtype bf16 > cases.json
    python3 benches/peers/step_torch.py cases.json --save peer.json
    target/release/acrlpd bench step --device cuda --peer peer.json

Two schedules, each a row of its own, because they answer different questions:

cached      what a good PyTorch program does: one prefix pass for s, which behaviour cloning, critic features and all Euler
            steps share; the last language layer's keys alone; the state token in the cache; candidates without gradients,
            and only the best of them once more with; padding cut off; blocks compiled and recomputed in backward.
original    what the original program does: a prefix pass for each loss, padding and all; every candidate through backward;
            every layer recomputed; critics and policy in two evaluations.

Both give the fixture's losses, gradients and weights after three updates: that is checked first, in f32, and nothing is
timed where it fails. Weights are f32 masters of which a step uses rounded copies; sums, softmax, norms, critics, flow
states and gradients are f32, as in acrlpd. Needs torch 2.5 or later; without a GPU it runs in f32.
"""

import sys
import time

import step_common as common
from step_common import EPS, EXPERT, LANGUAGE, PROJECTOR, VISION

WAYS = ("cached", "original")


class Networks:
    """π₀ and critics as functions of weights; `compiled` blocks, recomputed in backward if `again`."""

    def __init__(self, torch, dims, dtype, compiled, again):
        self.torch, self.f = torch, torch.nn.functional
        self.d, self.dtype, self.again = dims, dtype, again
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.vision_block, self.gemma_block = wrap(self.vision_block), wrap(self.gemma_block)
        self.critic = wrap(self.critic)

    def block(self, function, *inputs):
        if self.again and self.torch.is_grad_enabled():
            return self.torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def linear(self, w, name, x):
        return self.f.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def layer_norm(self, x, weight, bias):
        return self.f.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), EPS).to(x.dtype)

    def rms_norm(self, x, offset):
        wide = x.float()
        wide = wide * self.torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        return (wide * (1.0 + offset.float())).to(x.dtype)

    # ---- SigLIP

    def vision_block(self, x, n1, q, k, v, o, n2, fc1, fc2):
        n, t, width = x.shape
        heads = lambda y: y.view(n, t, self.d.vit_heads, -1).transpose(1, 2)
        y = self.layer_norm(x, *n1)
        o_in = self.f.scaled_dot_product_attention(*(heads(self.f.linear(y, *p)) for p in (q, k, v)))
        x = x + self.f.linear(o_in.transpose(1, 2).reshape(n, t, width), *o)
        y = self.layer_norm(x, *n2)
        return x + self.f.linear(self.f.gelu(self.f.linear(y, *fc1), approximate="tanh"), *fc2)

    def vision(self, w, images):
        """[n, S, S, 3] → [n, tokens, language width]"""
        x = self.f.conv2d(images.permute(0, 3, 1, 2).to(self.dtype), w[VISION + "embeddings.patch_embedding.weight"],
                          w[VISION + "embeddings.patch_embedding.bias"], stride=self.d.patch)
        x = x.flatten(2).transpose(1, 2) + w[VISION + "embeddings.position_embedding.weight"]
        pair = lambda name: (w[name + ".weight"], w[name + ".bias"])
        for i in range(self.d.vit_depth):
            p = f"{VISION}encoder.layers.{i}."
            a = [pair(f"{p}self_attn.{name}_proj") for name in ("q", "k", "v", "out")]
            x = self.block(self.vision_block, x, pair(p + "layer_norm1"), *a, pair(p + "layer_norm2"),
                           pair(p + "mlp.fc1"), pair(p + "mlp.fc2"))
        x = self.layer_norm(x, *pair(VISION + "post_layernorm"))
        return self.linear(w, PROJECTOR[:-1], x)

    # ---- Gemma and the expert

    def rope(self, x, cos, sin):
        """[B, T, heads, dim]; angles of the positions [B, T, dim / 2] in f32."""
        a, b = x.float().chunk(2, -1)
        cos, sin = cos[:, :, None], sin[:, :, None]
        return self.torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    def keys(self, x, norm, k, v, cos, sin):
        y = self.rms_norm(x, norm)
        b, t = x.shape[:2]
        split = lambda y: y.view(b, t, self.d.kv_heads, self.d.head_dim)
        return y, self.rope(split(self.f.linear(y, k)), cos, sin), split(self.f.linear(y, v))

    def gemma_block(self, x, cos, sin, before, mask, n1, q, k, v, o, n2, gate, up, down):
        """Tokens that see `before` (keys and values, or none) and each other, as far as `mask` lets them."""
        b, t = x.shape[:2]
        y, keys, values = self.keys(x, n1, k, v, cos, sin)
        own = (keys, values)
        if before is not None:
            keys, values = (self.torch.cat([old, new], 1) for old, new in zip(before, (keys, values)))
        queries = self.rope(self.f.linear(y, q).view(b, t, self.d.heads, self.d.head_dim), cos, sin)
        out = self.f.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, enable_gqa=True)
        x = x + self.f.linear(out.transpose(1, 2).reshape(b, t, -1), o)
        y = self.rms_norm(x, n2)
        return x + self.f.linear(self.f.gelu(self.f.linear(y, gate), approximate="tanh") * self.f.linear(y, up), down), own

    def angles(self, positions):
        d = self.d.head_dim
        inverse = 10000.0 ** (-self.torch.arange(d // 2, device=positions.device, dtype=self.torch.float32) * 2.0 / d)
        angle = positions[..., None].float() * inverse
        return angle.cos(), angle.sin()

    def weights(self, w, stream, i):
        p = f"{stream}layers.{i}."
        a, m = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")], [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
        names = ["input_layernorm", *a, "post_attention_layernorm", *m]
        return [w[f"{p}{name}.weight"] for name in names]

    def prefix(self, w, obs, keys_only):
        """One pass over an observation: embedded tokens, who is valid, keys and values of every layer."""
        torch, tokens, valid = self.torch, [], []
        cameras = [obs[f"images/{camera}"] for camera in self.d.cameras]
        pictures = self.vision(w, torch.cat(cameras)).chunk(len(cameras))
        for camera, picture in zip(self.d.cameras, pictures):
            tokens.append(picture)
            valid.append(obs[f"image_masks/{camera}"][:, None].expand(picture.shape[:2]))
        table = w[LANGUAGE + "embed_tokens.weight"]
        tokens.append(self.f.embedding(obs["tokens"].long(), table) * self.d.vlm_width**0.5)
        valid.append(obs["token_mask"])
        x, valid = torch.cat(tokens, 1), torch.cat(valid, 1)
        embedded = x
        whole = obs["whole"]
        # With nothing to leave out there is no mask, and the fastest kernels can be used.
        mask = None if whole else (valid[:, None, :, None] & valid[:, None, None, :])
        if mask is not None:
            # Rows of padding attend to everything; nothing reads them.
            mask = mask | ~valid[:, None, :, None]
        cos, sin = self.angles(valid.int().cumsum(1) - 1)
        cache = []
        for i in range(self.d.depth):
            p = self.weights(w, LANGUAGE, i)
            if keys_only and i + 1 == self.d.depth:
                _, k, v = self.keys(x, p[0], p[2], p[3], cos, sin)
                cache.append((k, v))
            else:
                x, own = self.block(self.gemma_block, x, cos, sin, None, mask, *p)
                cache.append(own)
        return {"tokens": embedded, "valid": valid, "cache": cache, "whole": whole}

    def expert(self, w, x, context, cache, valid, first):
        """Tokens at positions `first`… behind the prefix, which see the cache and each other; their cache, too."""
        t = x.shape[1]
        positions = context["valid"].sum(1, keepdim=True) + first + self.torch.arange(t, device=x.device)[None]
        cos, sin = self.angles(positions)
        mask = None
        if not context["whole"]:
            own = self.torch.ones(x.shape[0], t, dtype=self.torch.bool, device=x.device)
            mask = self.torch.cat([valid, own], 1)[:, None, None, :]
        own = []
        for i in range(self.d.depth):
            x, new = self.block(self.gemma_block, x, cos, sin, cache[i], mask, *self.weights(w, EXPERT, i))
            own.append(new)
        return self.rms_norm(x, w[EXPERT + "norm.weight"]), own

    def with_state(self, w, context, state):
        """The context whose cache also has the state token, which sees the prefix and itself alone."""
        token = self.linear(w, "state_proj", state.to(self.dtype))[:, None]
        _, own = self.expert(w, token, context, context["cache"], context["valid"], 0)
        both = [tuple(self.torch.cat(pair, 1) for pair in zip(old, new)) for old, new in zip(context["cache"], own)]
        one = self.torch.ones_like(context["valid"][:, :1])
        return context | {"full": both, "seen": self.torch.cat([context["valid"], one], 1)}

    def velocity(self, w, context, x, embedded_time):
        """v(x, t) [B, H, A] in f32."""
        a = self.linear(w, "action_in_proj", x.to(self.dtype))
        both = self.torch.cat([a, embedded_time.to(self.dtype)[:, None].expand_as(a)], -1)
        a = self.linear(w, "action_time_mlp_out", self.f.silu(self.linear(w, "action_time_mlp_in", both)))
        out, _ = self.expert(w, a, context, context["full"], context["seen"], 1)
        return self.linear(w, "action_out_proj", out).float()

    def sample(self, w, context, x, times):
        for time_ in times:
            v = self.velocity(w, context, x, time_[None].expand(x.shape[0], -1))
            x = x - v / len(times)
        return x

    # ---- Critics

    def critic(self, c, features, actions):
        """[B, F], [B, H, ≥ real] → [E, B]"""
        flat = actions[..., : self.d.real_action_dim].flatten(1)
        x = self.torch.cat([features, flat], -1)[None].expand(self.d.num_critics, -1, -1)
        layer = lambda name, x: self.torch.baddbmm(c[name + ".bias"][:, None], x, c[name + ".weight"].mT)
        for i in range(len(self.d.critic_hidden)):
            p = f"critic.layers.{i}."
            x = layer(p + "linear", x)
            x = self.f.layer_norm(x, x.shape[-1:], eps=EPS) * c[p + "norm.weight"][:, None] + c[p + "norm.bias"][:, None]
            x = x.relu()
        return layer("critic.out", x)[..., 0]

    def features(self, context, state):
        m = context["valid"].float()[..., None]
        mean = (context["tokens"].float() * m).sum(1) / m.sum(1).clamp(min=1.0)
        return self.torch.cat([mean, state[:, : self.d.real_action_dim]], -1)


class Step:
    """The losses of one micro-batch in one of two schedules, and the update."""

    def __init__(self, torch, device, dims, hyper, dtype, way, compiled, again):
        self.torch, self.device, self.d, self.h, self.way = torch, device, dims, hyper, way
        self.dtype = dtype
        self.net = Networks(torch, dims, dtype, compiled, again)
        steps = hyper["euler_steps"]
        times = common.sincos([1.0 - i / steps for i in range(steps)], dims.expert_width)
        self.times = self.put(times)

    def put(self, x):
        return self.torch.as_tensor(x, device=self.device)

    def load(self, weights, online, target):
        make = lambda tensors, learn: {n: self.put(x).float().clone().requires_grad_(learn) for n, x in tensors.items()}
        self.p, self.c, self.t = make(weights, True), make(online, True), make(target, False)
        averaged = self.p if self.h["ema_decay"] is not None else {}
        self.ema = {n: x.detach().clone() for n, x in averaged.items()}
        self.log_alpha = self.put(self.h.get("log_alpha", 0.0)).float().clone().requires_grad_(True)
        h = self.h
        fused = self.device == "cuda"
        adam = lambda tensors, decay: self.torch.optim.AdamW(
            tensors.values(), lr=0.0, betas=(h["beta1"], h["beta2"]), eps=h["eps"], weight_decay=decay, fused=fused)
        self.optimizers = adam(self.p, h["pi0_weight_decay"]), adam(self.c, h["critic_weight_decay"])

    def upload(self, batch):
        """On the device, and, for the cached schedule, without what is padding in every sample."""
        longest = {}
        for who in ("obs/", "next_obs/"):
            longest[who] = int(batch[who + "token_mask"].sum(1).max()) if self.way == "cached" else None
        out = {}
        for name, x in batch.items():
            who = name.split("/")[0] + "/"
            if name.endswith(("/tokens", "/token_mask")) and longest.get(who) is not None:
                x = x[:, : longest[who]]
            out[name] = self.put(x)
        out["bc_times"] = self.put(common.sincos(batch["bc_time"], self.d.expert_width))
        for who in ("obs/", "next_obs/"):
            masks = [x for name, x in batch.items() if name.startswith(who) and "mask" in name and "token" not in name]
            kept = batch[who + "token_mask"][:, : longest[who]]
            out[who + "whole"] = bool(kept.all()) and all(bool(mask.all()) for mask in masks)
        return out

    def observation(self, batch, who):
        return {name[len(who):]: x for name, x in batch.items() if name.startswith(who)}

    def context(self, w, batch, who):
        obs = self.observation(batch, who)
        context = self.net.prefix(w, obs, keys_only=self.way == "cached")
        return self.net.with_state(w, context, obs["state"])

    def repeated(self, context, times):
        """The context of `times` candidates of each sample, candidate by candidate."""
        tile = lambda x: x.repeat(times, *[1] * (x.dim() - 1))
        full = [tuple(map(tile, pair)) for pair in context["full"]]
        return {"full": full, "valid": tile(context["valid"]), "seen": tile(context["seen"]), "whole": context["whole"]}

    def joined(self, one, other):
        """Rows of two contexts of the same length."""
        cat = lambda a, b: self.torch.cat([a, b])
        full = [tuple(map(cat, a, b)) for a, b in zip(one["full"], other["full"])]
        return {"full": full, "valid": cat(one["valid"], other["valid"]), "seen": cat(one["seen"], other["seen"]),
                "whole": one["whole"] and other["whole"]}

    def rule(self, q, how):
        return q.amin(0) if how == "min" else q.mean(0)

    def losses(self, batch, c, target, totals):
        """All losses of a micro-batch; totals are samples and positives of the whole batch."""
        torch, h, d, net = self.torch, self.h, self.d, self.net
        w = {n: x.to(self.dtype) for n, x in self.p.items()}
        n, b = batch["cand_noise"].shape[:2]
        chunk = batch["cand_noise"].shape[2:]
        state, next_state = batch["obs/state"], batch["next_obs/state"]
        cached = self.way == "cached"
        current = self.context(w, batch, "obs/")
        constant = {name: x.detach() for name, x in c.items()}
        with torch.no_grad():
            following = self.context(w, batch, "next_obs/")
            next_features = net.features(following, next_state)
            if cached:
                rows = self.joined(self.repeated(current, n), following)
                noise = torch.cat([batch["cand_noise"].flatten(0, 1), batch["next_noise"]])
                ends = net.sample(w, rows, noise, self.times)
                candidates, next_actions = ends[: n * b].view(n, b, *chunk), ends[n * b :]
            else:
                next_actions = net.sample(w, self.context(w, batch, "next_obs/"), batch["next_noise"], self.times)
            next_q = net.critic(target, next_features, next_actions)
            power = h["discount"] ** d.action_horizon
            y = batch["rewards"] + power * batch["masks"] * self.rule(next_q, h["target_q_agg"])
            features = net.features(current if cached else self.context(w, batch, "obs/"), state)
        if not cached:
            rows = self.repeated(self.context(w, batch, "obs/"), n)
            candidates = net.sample(w, rows, batch["cand_noise"].flatten(0, 1), self.times).view(n, b, *chunk)
        valid = batch["valid"][:, -1]

        q = net.critic(c, features, batch["actions"])
        error = q - y
        delta = h["huber_delta"]
        huber = torch.where(error.abs() <= delta, 0.5 * error.square(), delta * (error.abs() - 0.5 * delta))
        critic = ((error.square() if h["critic_loss"] == "mse" else huber).mean(0) * valid).sum() / totals[0]

        every = net.critic(constant, features.repeat(n, 1), candidates.flatten(0, 1)).view(-1, n, b)
        values = self.rule(every, h["actor_q_agg"])
        if cached:
            best = values.argmax(0)
            noise = batch["cand_noise"][best, torch.arange(b, device=best.device)]
            winner = net.sample(w, current, noise, self.times)
            chosen = self.rule(net.critic(constant, features, winner), h["actor_q_agg"])
        else:
            chosen = values.amax(0)
        actor = -(chosen * valid).sum() / totals[0]

        t = batch["bc_time"][:, None, None]
        x = t * batch["bc_noise"] + (1.0 - t) * batch["actions"]
        v = net.velocity(w, current, x, batch["bc_times"])
        keep = batch["valid"] * batch["positive"][:, None].float()
        flow = (v - (batch["bc_noise"] - batch["actions"])).square().mean(-1)
        bc = (flow * keep).sum() / max(totals[1] * d.action_horizon, 1)

        ends = candidates.detach()
        entropy = ((ends - ends.mean(0)).square().mean(0).mean((1, 2)) + 1e-8).log().mean()
        temperature = self.log_alpha.exp() * (entropy + h["target_entropy_multiplier"] * d.action_dim)
        return {"features": features, "next_features": next_features, "next_actions": next_actions, "next_q": next_q,
                "target": y, "q": q, "candidates": candidates, "candidate_q": values, "v_t": v, "critic_loss": critic,
                "actor_loss": actor, "bc_loss": bc, "entropy": entropy, "alpha_loss": temperature}

    def policy(self, out):
        h = self.h
        return h["actor_weight"] * out["actor_loss"] + h["bc_weight"] * out["bc_loss"]

    def backward(self, batch, totals):
        """Adds the gradients of one micro-batch."""
        if self.way == "cached":
            out = self.losses(batch, self.c, self.t, totals)
            total = self.policy(out) + self.h["critic_weight"] * out["critic_loss"] + out["alpha_loss"]
            total.backward()
            return
        # Two evaluations, each of everything.
        out = self.losses(batch, self.c, self.t, totals)
        (self.h["critic_weight"] * out["critic_loss"]).backward(inputs=list(self.c.values()))
        del out
        out = self.losses(batch, self.c, self.t, totals)
        inputs = [*self.p.values(), self.log_alpha]
        (self.policy(out) + out["alpha_loss"]).backward(inputs=inputs)

    def update(self, rates):
        """Clips, steps, averages; returns the norms, which are on the device."""
        h, norms = self.h, []
        for optimizer, tensors, rate in zip(self.optimizers, (self.p, self.c), rates):
            # The dead end of the last language layer gets no gradient from the cached schedule; elsewhere it gets zero.
            for x in tensors.values():
                if x.grad is None:
                    x.grad = self.torch.zeros_like(x)
            norms.append(self.torch.nn.utils.clip_grad_norm_(list(tensors.values()), h["clip_norm"]))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        self.log_alpha.grad = None
        with self.torch.no_grad():
            lerp = self.torch._foreach_lerp_
            lerp(list(self.t.values()), [x.detach() for x in self.c.values()], h["target_tau"])
            if self.ema:
                lerp(list(self.ema.values()), [x.detach() for x in self.p.values()], 1.0 - h["ema_decay"])
        return norms


class Checked:
    """A step as `common.check` wants it."""

    def __init__(self, golden, make):
        self.golden, self.make = golden, make

    def fresh(self, target=None):
        step, online = self.make(), self.golden.under("critic", "online/")
        step.load(self.golden.files["weights"], online, target or online)
        return step

    def run(self, step, batch):
        totals = len(batch["rewards"]), int(batch["positive"].sum())
        return step.losses(step.upload(batch), step.c, step.t, totals)

    def losses(self, batch, target):
        return {name: x.detach().cpu().numpy() for name, x in self.run(self.fresh(target), batch).items()}

    def gradients(self, batch, target):
        found = {}
        for part, loss in (("actor", "actor_loss"), ("bc", "bc_loss"), ("critic", "critic_loss")):
            step = self.fresh(target)
            self.run(step, batch)[loss].backward()
            tensors = step.c if part == "critic" else step.p
            zero = step.torch.zeros_like
            found[part] = {n: (zero(x) if x.grad is None else x.grad).cpu().numpy() for n, x in tensors.items()}
        return found

    def train(self, batches, rates):
        step, norms = self.fresh(), []
        for batch, rate in zip(batches, rates):
            totals = len(batch["rewards"]), int(batch["positive"].sum())
            step.backward(step.upload(batch), totals)
            norms.append([float(x) for x in step.update(rate)])
        host = lambda tensors: {n: x.detach().cpu().numpy() for n, x in tensors.items()}
        return norms, {"pi0": host(step.p), "critic": host(step.c), "target": host(step.t), "ema": host(step.ema)}


def timed(torch, device, case, dtype, way, compiled, again, golden):
    """What `common.measure` runs: whole steps of a case."""

    def make():
        dims = common.Dims.of(case["dims"])
        step = Step(torch, device, dims, case["hyper"], dtype, way, compiled, again)
        if golden and golden.stem.name == case["name"]:
            online = golden.under("critic", "online/")
            step.load(golden.files["weights"], online, online)
            parts = [golden.batch(0)]
        else:
            torch.manual_seed(0)
            normal = lambda shape: torch.randn(shape).numpy()
            pi0, critic = ({n: common.initial(n, s, normal) for n, s in group.items()} for group in common.shapes(dims))
            step.load(pi0, critic, critic)
            micro = case["samples"] // case["micro_batches"]
            parts = [common.random_batch(dims, micro, case["candidates"], case["prompt_tokens"], i)
                     for i in range(case["micro_batches"])]
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        positives = sum(int(part["positive"].sum()) for part in parts)
        parts = [pinned(torch, device, part) for part in parts]

        def run():
            for part in parts:
                step.backward(step.upload(part), (case["samples"], positives))
            step.update((1e-6, 1e-6))
            wait()

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return run, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None

    return make


def pinned(torch, device, part):
    return part if device != "cuda" else {n: torch.as_tensor(x).pin_memory() for n, x in part.items()}


def main(argv):
    def extra(parser):
        parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
        parser.add_argument("--way", choices=WAYS, action="append", help="only this schedule")
        parser.add_argument("--eager", action="store_true", help="compile nothing")
        parser.add_argument("--keep", action="store_true", help="cached: keep activations instead of recomputing blocks")
        parser.add_argument("--check", action="store_true", help="hold the numbers to the fixture, time nothing")
        parser.add_argument("--check-eager", action="store_true", help="do not check the compiled blocks, too: that takes minutes")

    args = common.arguments(argv, __doc__.split("\n")[0], extra)
    deadline = time.monotonic() + 60 * args.minutes
    try:
        import torch
        import torch.utils.checkpoint
    except ImportError:
        raise SystemExit("error: this Python has no torch; pip install torch")
    cuda = torch.cuda.is_available()
    device = {"auto": "cuda" if cuda else "cpu"}.get(args.device, args.device)
    if device == "cuda" and not cuda:
        raise SystemExit("error: torch finds no CUDA device; use --device cpu")
    # f32 means f32: acrlpd's f32 products have all bits, too.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    golden = common.Golden(args.fixture)
    name, cases = common.cases_of(args, golden)
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
    if device == "cpu" and dtype != torch.float32:
        raise SystemExit("error: on a CPU only float32 is measured; list the cases with --dtype f32")
    device_name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    head = {"program": f"torch {torch.__version__}", "device": device_name, "api": "torch", "dtype": name}
    rows = []
    for way in args.way or WAYS:
        again = not args.keep or way == "original"
        for compiled in sorted({False, not (args.eager or args.check_eager)}):
            plain = lambda: Step(torch, device, golden.dims, golden.hyper, torch.float32, way, compiled, again)
            worst = common.check(golden, Checked(golden, plain))
            told = ", ".join(f"{what} {error:.1e}" for what, error in worst.items())
            print(f"{way}{', compiled' if compiled else ''}: right ({told})", file=sys.stderr, flush=True)
        if args.check:
            continue
        how = f"{way}, {'eager' if args.eager else 'compiled'}, {'recomputing' if again else 'keeping'}"
        for case in cases:
            make = timed(torch, device, case, dtype, way, not args.eager, again, golden)
            rows.append(common.measure(case, how, make, args.steps, deadline))
            print(f"{case['name']} ({how}): {rows[-1]['status']} {rows[-1]['step']['median_ms']:.1f} ms", file=sys.stderr, flush=True)
            common.save(args, head, rows)
            if device == "cuda":
                torch.cuda.empty_cache()
    if args.check:
        return 0
    return common.finish(args, head, rows)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except common.Wrong as error:
        sys.exit(f"error: {error}: this is not the same computation, so nothing was timed")
