"""Times PyTorch on the cases of `acrlpd bench kernels`, and writes results that its --peer joins by name.

    target/release/acrlpd bench kernels --list --json --dtype bf16 > cases.json
    python3 benches/peers/kernels.py cases.json --save peer.json
    target/release/acrlpd bench kernels --device cuda --dtype bf16 --peer peer.json

The cases are acrlpd's own list: no shape is written down here. A case may be done in several ways (SDPA with flash,
efficient and cuDNN kernels; eager and compiled chains): each is a row, and --peer takes the fastest. What PyTorch has no
counterpart for is left out. The rules are those of acrlpd: random inputs, launches that rotate over copies which exceed
the caches, a warm-up, spans of several launches between two CUDA events, medians. On a CPU it runs in f32, for trying out
with the cases of `--list --quick`.

Needs torch 2.5 or later; --minutes ends it in time, and what was not reached is in the file as skipped.
"""

import argparse
import json
import math
import pathlib
import sys
import time

FORMAT = 1
# As in src/bench/timing.rs.
PACE = {
    "cuda": dict(rotate_bytes=256 << 20, max_copies=64, span=1e-3, max_launches=256, budget=0.2, least=7, most=101),
    "cpu": dict(rotate_bytes=64 << 20, max_copies=4, span=5e-4, max_launches=16, budget=0.06, least=3, most=31),
}


def spread(seconds):
    """Median, 10th and 90th percentile in milliseconds, as acrlpd takes them."""
    ordered = sorted(seconds)
    at = lambda q: 1e3 * ordered[int(math.floor((len(ordered) - 1) * q + 0.5))]
    return {"median_ms": at(0.5), "p10_ms": at(0.1), "p90_ms": at(0.9)}


def copies_of(held, pace, memory):
    """Copies of operands that hold so many bytes."""
    wanted = max(1, min(pace["max_copies"], -(-pace["rotate_bytes"] // max(held, 1))))
    return max(1, min(wanted, memory // 2 // max(held, 1)))


def time_one(engine, runs, pace):
    """Seconds of one launch, several times."""
    first = 0

    def span(launches):
        nonlocal first
        chosen = [runs[(first + i) % len(runs)] for i in range(launches)]
        first += launches
        return engine.span(chosen) / launches

    span(1)
    rough = max(span(len(runs)), 1e-9)
    launches = max(1, min(pace["max_launches"], math.ceil(pace["span"] / rough)))
    span(launches)
    began, seconds = time.perf_counter(), []
    while len(seconds) < pace["least"] or (
        time.perf_counter() - began < pace["budget"] and len(seconds) < pace["most"]
    ):
        seconds.append(span(launches))
    return seconds


def measure(cases, engine, pace, deadline, tell=lambda text: None):
    """A row for every case and way; compiled ways come last, because compiling takes longest."""
    jobs = [(case, way) for case in cases for way in engine.ways(case)]
    jobs.sort(key=lambda job: job[1].startswith("compile"))
    rows = []
    for i, (case, way) in enumerate(jobs):
        row = {"name": case["name"], "kernel": way, "flops": case["flops"], "bytes": case["bytes"]}
        row |= {"median_ms": 0.0, "p10_ms": 0.0, "p90_ms": 0.0}
        tell(f"{i + 1}/{len(jobs)} {case['name']} ({way})")
        held, memory = case["held_bytes"], engine.memory()
        if time.monotonic() > deadline:
            row |= {"status": "skipped", "why": "the time was up"}
        elif held * engine.room(case) > 0.8 * memory:
            row |= {"status": "skipped", "why": f"needs {held * 1e-9:.1f} GB, there are {memory * 1e-9:.1f}"}
        else:
            try:
                count = copies_of(held, pace, memory)
                runs = [engine.prepare(case, way) for _ in range(count)]
                row |= {"status": "ok", "copies": count} | spread(time_one(engine, runs, pace))
            except Exception as error:  # one way that a version lacks must not end the rest
                row |= {"status": "skipped", "why": " ".join(str(error).split())[:300] or type(error).__name__}
            runs = None
            engine.release()
        rows.append(row)
    return rows


class Torch:
    """PyTorch on one device."""

    def __init__(self, device, dtype):
        import torch

        self.torch = torch
        self.device = device
        self.dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
        self.cuda = device == "cuda"
        self.compiled = {}
        torch.manual_seed(0)
        # f32 means f32: acrlpd's f32 products have all bits, too.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def name(self):
        return self.torch.cuda.get_device_name() if self.cuda else "CPU"

    def program(self):
        return f"torch {self.torch.__version__}"

    def memory(self):
        return self.torch.cuda.mem_get_info()[0] if self.cuda else 8 << 30

    def room(self, case):
        """How many times the operands' memory a way may need."""
        return 3 if case["kind"] == "attention" else 1.5

    def release(self):
        if self.cuda:
            self.torch.cuda.empty_cache()

    def span(self, runs):
        if not self.cuda:
            began = time.perf_counter()
            for run in runs:
                run()
            return time.perf_counter() - began
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda.synchronize()
        start.record()
        for run in runs:
            run()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)

    def random(self, *shape, dtype=None):
        return self.torch.rand(*shape, device=self.device, dtype=self.torch.float32).mul_(2).sub_(1).to(dtype or self.dtype)

    def ways(self, case):
        """The ways in which a case can be done here."""
        kind = case["kind"]
        if kind == "product":
            plain = not (case["residual"] or case["activation"] != "none" or case["form"] == "tn")
            return ["matmul"] if plain else ["matmul", "compile"]
        if kind == "attention":
            if case["direction"] == "backward_keys" or (case["direction"] == "backward" and "suffix" in case["name"]):
                return []
            if not self.cuda:
                return ["sdpa math"]
            grouped = case["q_heads"] != case["kv_heads"]
            ways = ["sdpa flash", "sdpa efficient", "sdpa cudnn"]
            return ways + ([way + ", keys repeated" for way in ways] if grouped else [])
        op = case.get("op")
        if kind == "rope":
            return ["compile"] if not case["backward"] else []
        if kind == "update":
            return {"adamw": ["fused adamw + foreach ema"], "norm": ["vector_norm"], "soft_update": ["lerp_"]}.get(op, [])
        if kind == "move":
            ways = ("copy", "fill", "gather", "scatter", "embedding")
            return ["eager"] if op in ways else []
        if kind == "rows":
            return ["eager", "compile"] if hasattr(self, "row_" + op) else []
        return []

    def prepare(self, case, way):
        """One copy of the operands, and what runs on them."""
        run = getattr(self, case["kind"])(case, way)
        return run if case["kind"] == "attention" else self.without_gradients(run)

    def without_gradients(self, run):
        def inner():
            with self.torch.no_grad():
                run()

        return inner

    def compile(self, way, key, function):
        """The function as it is, or compiled once for each shape."""
        if not way.startswith("compile"):
            return function
        if key not in self.compiled:
            self.compiled[key] = self.torch.compile(function, dynamic=False)
        return self.compiled[key]

    def product(self, case, way):
        torch, functional = self.torch, self.torch.nn.functional
        e, m, n, k = (case[key] for key in ("batch", "m", "n", "k"))
        dtype = torch.float32 if case["f32"] else self.dtype
        new = lambda *shape: self.random(*(shape if e == 1 else (e, *shape)), dtype=dtype)
        form, activation = case["form"], case["activation"]
        if form == "tn":
            a, b = new(k, m), new(k, n)
            c = new(m, n).float()
            if dtype == torch.float32:
                into = torch.addmm if e == 1 else torch.baddbmm
                return lambda: into(c, a.mT, b, out=c)
            add = self.compile(way, "tn", lambda a, b, c: c.add_(a.mT @ b))
            return lambda: add(a, b, c)
        a = new(m, k)
        b = new(n, k) if form == "nt" else new(k, n)
        bias = new(n) if case["bias"] else None
        residual = new(m, n) if case["residual"] else None
        keep = case["keep"]

        def whole(a, b, bias, residual):
            if e == 1 and form == "nt":
                c = functional.linear(a, b, bias)
            else:
                c = a @ (b.mT if form == "nt" else b)
                c = c if bias is None else c + bias.unsqueeze(-2)
            c = c if residual is None else c + residual
            act = {"none": lambda x: x, "gelu": lambda x: functional.gelu(x, approximate="tanh"), "swish": functional.silu}
            return (c, act[activation](c)) if keep else act[activation](c)

        key = ("product", form, activation, keep, e > 1, case["bias"], case["residual"])
        whole = self.compile(way, key, whole)
        return lambda: whole(a, b, bias, residual)

    def attention(self, case, way):
        torch = self.torch
        # For all calls until the next case: a context manager in each would cost more than small kernels take.
        kernel, backends = way.split()[1].rstrip(","), torch.backends.cuda
        backends.enable_flash_sdp(kernel == "flash")
        backends.enable_mem_efficient_sdp(kernel == "efficient")
        backends.enable_cudnn_sdp(kernel == "cudnn")
        backends.enable_math_sdp(kernel == "math")
        repeated = "repeated" in way
        heads = case["q_heads"] if repeated else case["kv_heads"]
        backward = case["direction"] == "backward"
        new = lambda h, rows: self.random(case["sequences"], h, rows, case["head_dim"]).requires_grad_(backward)
        q, k, v = new(case["q_heads"], case["queries"]), new(heads, case["keys"]), new(heads, case["keys"])
        grouped = heads != case["q_heads"]

        def forward():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)

        if not backward:
            return self.without_gradients(forward)
        out = forward()
        above = self.random(*out.shape).to(out.dtype)
        return lambda: torch.autograd.grad(out, (q, k, v), above, retain_graph=True)

    def rows(self, case, way):
        make, function = getattr(self, "row_" + case["op"])(case["rows"], case["width"])
        function = self.compile(way, case["op"], function)
        return lambda: function(*make)

    # Each returns operands and a function of them. Arithmetic is f32, as in acrlpd.

    def row_rms_norm(self, m, d):
        def function(x, w):
            f = x.float()
            return (f * (f.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + w.float())).to(x.dtype)

        return (self.random(m, d), self.random(d)), function

    def row_rms_norm_backward(self, m, d):
        def function(x, w, dy, around):
            f, g = x.float(), dy.float() * (1 + w.float())
            rstd = (f.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            normed = f * rstd
            dx = (g - normed * (g * normed).mean(-1, keepdim=True)) * rstd + around.float()
            return dx.to(x.dtype), (normed * (1 + w.float())).to(x.dtype), rstd

        return (self.random(m, d), self.random(d), self.random(m, d), self.random(m, d)), function

    def row_rms_norm_scale(self, m, d):
        float32 = self.torch.float32
        operands = (self.random(m, d), self.random(m, d), self.random(m, 1, dtype=float32), self.random(d, dtype=float32))
        return operands, lambda x, dy, rstd, dw: dw.add_((dy.float() * x.float() * rstd).sum(0))

    def row_layer_norm(self, m, d):
        norm = self.torch.nn.functional.layer_norm
        return (self.random(m, d), self.random(d), self.random(d)), lambda x, w, b: norm(x, (d,), w, b, 1e-6)

    def row_layer_norm_backward(self, m, d):
        def function(x, w, b, dy, around):
            f, g = x.float(), dy.float() * w.float()
            mean = f.mean(-1, keepdim=True)
            rstd = ((f - mean).square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            normed = (f - mean) * rstd
            dx = (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True)) * rstd
            y = normed * w.float() + b.float()
            return (dx + around.float()).to(x.dtype), y.to(x.dtype), mean, rstd

        return (self.random(m, d), self.random(d), self.random(d), self.random(m, d), self.random(m, d)), function

    def row_layer_norm_params(self, m, d):
        def function(x, dy, mean, rstd, dw, db):
            dy = dy.float()
            dw.add_((dy * (x.float() - mean) * rstd).sum(0))
            db.add_(dy.sum(0))

        f = lambda *shape: self.random(*shape, dtype=self.torch.float32)
        return (self.random(m, d), self.random(m, d), f(m, 1), f(m, 1), f(d), f(d)), function

    def row_geglu(self, m, f):
        gelu = self.torch.nn.functional.gelu

        def function(gate_up):
            gate, up = gate_up.float().chunk(2, -1)
            return (gelu(gate, approximate="tanh") * up).to(gate_up.dtype)

        return (self.random(m, 2 * f),), function

    def row_geglu_backward(self, m, f):
        torch = self.torch

        def function(gate_up, dact):
            gate, up = gate_up.float().chunk(2, -1)
            dact = dact.float()
            dgate = torch.ops.aten.gelu_backward(dact * up, gate, approximate="tanh")
            dup = dact * torch.nn.functional.gelu(gate, approximate="tanh")
            return torch.cat((dgate, dup), -1).to(gate_up.dtype)

        return (self.random(m, 2 * f), self.random(m, f)), function

    def row_gelu_backward(self, m, d):
        torch = self.torch

        def function(x, dy):
            f = x.float()
            dx = torch.ops.aten.gelu_backward(dy.float(), f, approximate="tanh")
            return dx.to(x.dtype), torch.nn.functional.gelu(f, approximate="tanh").to(x.dtype)

        return (self.random(m, d), self.random(m, d)), function

    def row_swish(self, m, d):
        return (self.random(m, d),), lambda x: self.torch.nn.functional.silu(x)

    def row_swish_backward(self, m, d):
        return (self.random(m, d), self.random(m, d)), lambda x, dy: self.torch.ops.aten.silu_backward(dy, x)

    def row_softmax(self, m, w):
        return (self.random(m, w, dtype=self.torch.float32),), lambda z: self.torch.softmax(z * 0.0625, -1)

    def row_softmax_backward(self, m, w):
        f = lambda: self.random(m, w, dtype=self.torch.float32)
        return (f(), f()), lambda p, dp: 0.0625 * p * (dp - (p * dp).sum(-1, keepdim=True))

    def row_column_sum(self, m, d):
        operands = (self.random(m, d), self.random(d, dtype=self.torch.float32))
        return operands, lambda dy, out: out.add_(dy.sum(0, dtype=self.torch.float32))

    def rope(self, case, way):
        torch = self.torch
        m, q, kv, d = (case[key] for key in ("rows", "q_heads", "kv_heads", "head_dim"))
        qkv = self.random(m, q + 2 * kv, d)
        cache = self.random(m, 2 * kv, d) if case["cached"] else None
        angles = torch.rand(case["positions"], d // 2, device=self.device)
        cos, sin = angles.cos(), angles.sin()
        position = torch.arange(m, device=self.device) % case["positions"]
        line = torch.randperm(m, device=self.device)
        turned = q if case["cached"] else q + kv

        def rotate(x, position, cos, sin):
            a, b = x.float().chunk(2, -1)
            c, s = cos[position].unsqueeze(1), sin[position].unsqueeze(1)
            return torch.cat((a * c - b * s, b * c + a * s), -1).to(x.dtype)

        def function(qkv, cache, position, line, cos, sin):
            if cache is not None:
                keys = rotate(qkv[:, q : q + kv], position, cos, sin)
                cache[line] = torch.cat((keys, qkv[:, q + kv :]), 1)
            qkv[:, :turned] = rotate(qkv[:, :turned], position, cos, sin)

        function = self.compile(way, ("rope", case["cached"]), function)
        return lambda: function(qkv, cache, position, line, cos, sin)

    def update(self, case, way):
        torch, n, float32 = self.torch, case["elements"], self.torch.float32
        if case["op"] == "norm":
            g = self.random(n, dtype=float32)
            return lambda: torch.linalg.vector_norm(g)
        p, average = self.random(n, dtype=float32), self.random(n, dtype=float32)
        if case["op"] == "soft_update":
            return lambda: average.lerp_(p, 0.0625)
        p.requires_grad_(True)
        p.grad = self.random(n, dtype=float32)
        adam = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-6, fused=True)
        short = None if self.dtype == float32 else self.random(n)

        def run():
            adam.step()
            torch._foreach_lerp_([average], [p], 0.001)
            if short is not None:
                short.copy_(p)
            p.grad.zero_()

        return run

    def move(self, case, way):
        torch, m, d = self.torch, case["rows"], case["width"]
        op, float32 = case["op"], self.torch.float32
        if op == "copy":
            x, y = self.random(m, d, dtype=float32), self.random(m, d, dtype=float32)
            return lambda: y.copy_(x)
        if op == "fill":
            y = self.random(m, d)
            return lambda: y.zero_()
        if op == "embedding":
            table = self.random(case["parts"], d)
            tokens = torch.arange(m, device=self.device) % 8 * (case["parts"] // 9)
            return lambda: torch.nn.functional.embedding(tokens, table) * math.sqrt(d)
        x, y, index = self.random(m, d), self.random(m, d), torch.randperm(m, device=self.device)
        if op == "gather":
            return lambda: torch.index_select(x, 0, index, out=y)
        return lambda: y.index_copy_(0, index, x)


def choose(listed, patterns):
    """The cases of a list, or those whose name contains a pattern."""
    if listed.get("format") != FORMAT:
        raise SystemExit(f"error: the list has format {listed.get('format')}, this script knows {FORMAT}")
    cases = [case for case in listed["cases"] if not patterns or any(p in case["name"] for p in patterns)]
    if not cases:
        raise SystemExit(f"error: no case has a name with {' or '.join(patterns)}")
    return cases


def results(listed, engine, rows):
    return {
        "format": FORMAT,
        "program": engine.program(),
        "device": engine.name(),
        "api": "torch",
        "dtype": listed["dtype"],
        "quick": listed["quick"],
        "rows": rows,
    }


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("list", type=pathlib.Path, help="what `acrlpd bench kernels --list --json` printed")
    parser.add_argument("--save", type=pathlib.Path, help="write the results here instead of to stdout")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--filter", action="append", default=[], help="only cases whose name contains this; may be repeated")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    return parser.parse_args(argv)


def main(argv):
    args = arguments(argv)
    try:
        listed = json.loads(args.list.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {args.list} cannot be read: {error}")
    cases = choose(listed, args.filter)
    try:
        import torch
    except ImportError:
        raise SystemExit("error: this Python has no torch; pip install torch")
    cuda = torch.cuda.is_available()
    device = {"auto": "cuda" if cuda else "cpu"}.get(args.device, args.device)
    if device == "cuda" and not cuda:
        raise SystemExit("error: torch finds no CUDA device; use --device cpu")
    if device == "cpu" and listed["dtype"] != "float32":
        raise SystemExit("error: on a CPU only float32 is measured; list the cases with --dtype f32")
    engine = Torch(device, listed["dtype"])
    tell = lambda text: print(text, file=sys.stderr, flush=True)
    rows = measure(cases, engine, PACE[device], time.monotonic() + 60 * args.minutes, tell)
    text = json.dumps(results(listed, engine, rows), indent=2)
    if args.save:
        args.save.write_text(text + "\n")
    else:
        print(text)
    failed = [row for row in rows if row["status"] != "ok"]
    tell(f"{len(rows) - len(failed)} rows measured, {len(failed)} skipped")
    return 0 if len(failed) < len(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
