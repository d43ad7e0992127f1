"""Makes lora.json: `python lora.py REFERENCE.py`, with the reference implementation of README.md, JAX and safetensors.

Adapters have the shapes of openpi's JAX model and are multiplied by its einsums; see `merged`, which holds the matrix
that a layer then is against them. Values are whole multiples of 2^-14, so that every language makes the same ones.
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
R = importlib.util.module_from_spec(spec)
sys.modules["reference"] = R
spec.loader.exec_module(R)


def values(name, n):
    """Uniform in ±0.25."""
    h = np.uint64(0x811C9DC5)
    for byte in name.encode():
        h = ((h ^ np.uint64(byte)) * np.uint64(0x01000193)) & np.uint64(0xFFFFFFFF)
    x = (h + np.arange(n, dtype=np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x2C1B3C6D)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(12)
    x = (x * np.uint64(0x297A2D39)) & np.uint64(0xFFFFFFFF)
    return ((x >> np.uint64(19)).astype(np.float64) - 4096.0) / 2.0**14


def adapters(d, lora):
    """name in the files -> ([out, in] shape in the files)."""
    shapes = {}
    for e, stack in enumerate(("language", "expert")):
        if stack not in lora:
            continue
        r, w, f, h = lora[stack]["rank"], d.widths()[e], d.mlps()[e], d.head_dim
        for i in range(d.depth):
            p = f"{R.STREAMS[e]}layers.{i}."
            for name, heads in (("q", d.heads), ("k", d.kv_heads), ("v", d.kv_heads)):
                shapes[p + f"self_attn.{name}_proj.lora_a"] = (heads * r, w)
                shapes[p + f"self_attn.{name}_proj.lora_b"] = (heads * h, r)
            shapes[p + "self_attn.o_proj.lora_a"] = (r, d.heads * h)
            shapes[p + "self_attn.o_proj.lora_b"] = (w, d.heads * r)
            for name in ("gate", "up"):
                shapes[p + f"mlp.{name}_proj.lora_a"] = (r, w)
                shapes[p + f"mlp.{name}_proj.lora_b"] = (f, r)
            shapes[p + "mlp.down_proj.lora_a"] = (r, f)
            shapes[p + "mlp.down_proj.lora_b"] = (w, r)
    return {name: jnp.asarray(values(name, int(np.prod(s))).reshape(s)) for name, s in shapes.items()}


def check(y, x, a, b, down, up):
    """The two einsums of an adapter give `y`."""
    want = jnp.einsum(up, jnp.einsum(down, x, a), b)
    np.testing.assert_allclose(want.reshape(y.shape), y, rtol=1e-9, atol=1e-12)


def merged(P, A, d, lora):
    """All weights with what adapters add to them, in the order of openpi's einsums."""
    out = dict(P)
    key = np.random.default_rng(0)
    for e, stack in enumerate(("language", "expert")):
        if stack not in lora:
            continue
        r, s, h = lora[stack]["rank"], lora[stack]["alpha"] / lora[stack]["rank"], d.head_dim
        w = d.widths()[e]
        for i in range(d.depth):
            p = f"{R.STREAMS[e]}layers.{i}."
            for name, heads in (("q", d.heads), ("k", d.kv_heads), ("v", d.kv_heads)):
                m = p + f"self_attn.{name}_proj."
                # NDL and NLH.
                a = jnp.swapaxes(A[m + "lora_a"].reshape(heads, r, w), 1, 2)
                b = jnp.swapaxes(A[m + "lora_b"].reshape(heads, h, r), 1, 2)
                delta = jnp.einsum("NDL,NLH->NHD", a, b).reshape(heads * h, w)
                if not isinstance(delta, jax.core.Tracer):
                    x = jnp.asarray(key.normal(size=(2, 3, w)))
                    check(R.linear(x, delta), x, a, b, "BTD,NDL->BTNL", "BTNL,NLH->BTNH")
                out[m + "weight"] = P[m + "weight"] + s * delta
            m = p + "self_attn.o_proj."
            # NHL and NLD: the sum over heads is in both einsums.
            a = jnp.moveaxis(A[m + "lora_a"].reshape(r, d.heads, h), 0, 2)
            b = jnp.moveaxis(A[m + "lora_b"].reshape(w, d.heads, r), 0, 2)
            delta = jnp.einsum("NHL,MLD->DNH", a, b).reshape(w, d.heads * h)
            if not isinstance(delta, jax.core.Tracer):
                x = jnp.asarray(key.normal(size=(2, 3, d.heads, h)))
                check(R.linear(x.reshape(2, 3, -1), delta), x, a, b, "BTNH,NHL->BTL", "BTL,NLD->BTD")
            out[m + "weight"] = P[m + "weight"] + s * delta
            for name in ("gate", "up", "down"):
                m = p + f"mlp.{name}_proj."
                out[m + "weight"] = P[m + "weight"] + s * A[m + "lora_b"] @ A[m + "lora_a"]
    return out


def f64(tensors):
    wide = lambda v: jnp.asarray(v, dtype=jnp.float64) if v.dtype.kind == "f" else jnp.asarray(v)
    return {k: wide(v) for k, v in tensors.items()}


def batch_of(d):
    flat = {k.removeprefix("step0/"): v for k, v in f64(load_file(HERE / "acrlpd_tiny.batches.safetensors")).items()
            if k.startswith("step0/")}
    out = {}
    for k, v in flat.items():
        at = out
        *path, last = k.split("/")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = v
    return out


def fingerprint(g):
    g = np.asarray(g, dtype=np.float64).ravel()
    return [float(f"{v:.10g}") for v in (np.sqrt(np.sum(g * g)), np.sum(g * np.sin(1.0 + np.arange(g.size))))]


def case(pi05, lora):
    about = json.loads((HERE / "acrlpd_tiny.json").read_text())
    fields = {f.name for f in dataclasses.fields(R.Dims)}
    dims = {k: tuple(v) if isinstance(v, list) else v for k, v in about["dims"].items() if k in fields}
    d = R.Dims(**(dims | {"pi05": pi05}))
    fields = {f.name for f in dataclasses.fields(R.Hyper)}
    hp = R.Hyper(**{k: v for k, v in about["hyper"].items() if k in fields})
    P = f64(load_file(HERE / f"{'pi05_tiny' if pi05 else 'acrlpd_tiny'}.weights.safetensors"))
    critic = f64(load_file(HERE / "acrlpd_tiny.critic.safetensors"))
    C, T = ({k.removeprefix(s): v for k, v in critic.items() if k.startswith(s)} for s in ("online/", "target/"))
    batch = batch_of(d)
    A = adapters(d, lora)
    merged(P, A, d, lora)

    def loss(P, A):
        total, out = R.acrlpd_losses(merged(P, A, d, lora), C, T, d, hp, batch)
        return total, out

    (_, out), (dP, dA) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(P, A)
    result = {"pi05": pi05, "lora": lora}
    result |= {k: float(out[k]) for k in ("critic_loss", "actor_loss", "bc_loss")}
    result["gradients"] = {k: fingerprint(g) for k, g in sorted((dP | dA).items())}
    return result


if __name__ == "__main__":
    language, expert = {"rank": 2, "alpha": 3.0}, {"rank": 4, "alpha": 2.0}
    both = {"language": language, "expert": expert}
    cases = [case(False, both), case(True, both), case(False, {"language": language}), case(True, {"expert": expert})]
    note = ("Losses, and of every gradient of their weighted total [L2 norm, sum(g[i] * sin(1 + i))], on batch step0 of "
            "acrlpd_tiny with low-rank adapters, stored critics and the weights of acrlpd_tiny or pi05_tiny; float64.")
    (HERE / "lora.json").write_text(json.dumps({"note": note, "cases": cases}, separators=(",", ":")) + "\n")
