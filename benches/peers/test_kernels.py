"""Tests of kernels.py without torch: cases, ways, times, files. What calls torch is not tested here."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import kernels


class Stub:
    """An engine whose launches take a known time, and one of whose ways always fails."""

    def __init__(self):
        self.prepared = []

    def ways(self, case):
        return {"product": ["compile", "matmul"], "loss": []}.get(case["kind"], ["broken"])

    def memory(self):
        return 1 << 30

    def room(self, case):
        return 1.5

    def release(self):
        pass

    def prepare(self, case, way):
        if way == "broken":
            raise RuntimeError("no such\nkernel")
        self.prepared.append((case["name"], way))
        return way

    def span(self, runs):
        return sum(2e-3 if way == "matmul" else 1e-3 for way in runs)

    def name(self):
        return "stub"

    def program(self):
        return "stub 1"


def case(name, kind, held=1 << 20):
    return {"name": name, "kind": kind, "flops": 2e9, "bytes": 1e6, "held_bytes": held}


PACE = dict(rotate_bytes=4 << 20, max_copies=8, span=1e-3, max_launches=4, budget=0.0, least=3, most=5)


class Tests(unittest.TestCase):
    def rows(self, cases, deadline=None):
        self.engine = Stub()
        return kernels.measure(cases, self.engine, PACE, deadline or time.monotonic() + 60)

    def test_times_are_of_one_launch_and_compiled_ways_come_last(self):
        rows = self.rows([case("product/a", "product"), case("product/b", "product")])
        self.assertEqual([(r["name"], r["kernel"]) for r in rows],
                         [("product/a", "matmul"), ("product/b", "matmul"), ("product/a", "compile"), ("product/b", "compile")])
        self.assertTrue(all(r["status"] == "ok" and r["copies"] == 4 for r in rows))
        self.assertAlmostEqual(rows[0]["median_ms"], 2.0)
        self.assertAlmostEqual(rows[2]["p90_ms"], 1.0)
        self.assertEqual(len(self.engine.prepared), 16)

    def test_what_fails_is_too_large_or_late_is_skipped_and_says_why(self):
        rows = self.rows([case("x", "rows"), case("y", "product", held=1 << 30), case("z", "loss")])
        self.assertEqual([r["status"] for r in rows], ["skipped"] * 3)
        self.assertEqual({r["why"] for r in rows}, {"no such kernel", "needs 1.1 GB, there are 1.1"})
        late = self.rows([case("product/a", "product")], deadline=time.monotonic() - 1)
        self.assertEqual({r["why"] for r in late}, {"the time was up"})

    def test_spreads_are_those_of_acrlpd(self):
        self.assertEqual(kernels.spread([i * 1e-3 for i in range(11, 0, -1)]),
                         {"median_ms": 6.0, "p10_ms": 2.0, "p90_ms": 10.0})

    def test_copies_exceed_caches_but_not_memory(self):
        self.assertEqual(kernels.copies_of(1 << 20, PACE, 1 << 30), 4)
        self.assertEqual(kernels.copies_of(1 << 10, PACE, 1 << 30), 8)
        self.assertEqual(kernels.copies_of(3 << 20, PACE, 7 << 20), 1)

    def test_lists_are_filtered_and_strangers_refused(self):
        listed = {"format": 1, "dtype": "float32", "quick": True, "cases": [case("product/a", "product"), case("b", "rows")]}
        self.assertEqual([c["name"] for c in kernels.choose(listed, ["prod"])], ["product/a"])
        self.assertEqual(len(kernels.choose(listed, [])), 2)
        for wrong, patterns in [(listed, ["nothing"]), ({"format": 7}, [])]:
            with self.assertRaises(SystemExit) as refused:
                kernels.choose(wrong, patterns)
            self.assertIn("error:", str(refused.exception))
        written = kernels.results(listed, Stub(), [])
        self.assertEqual((written["format"], written["program"], written["quick"]), (1, "stub 1", True))

    def test_flags(self):
        args = kernels.arguments(["cases.json", "--filter", "a", "--filter", "b", "--minutes", "2"])
        self.assertEqual((args.filter, args.minutes, args.device, args.save), (["a", "b"], 2.0, "auto", None))
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
            kernels.arguments(["cases.json", "--nonsense"])
        with self.assertRaises(SystemExit) as refused:
            kernels.main(["/nonexistent.json"])
        self.assertIn("cannot be read", str(refused.exception))

    def test_the_ways_of_a_real_list_are_named(self):
        # The list that acrlpd printed, if the caller gives one: every kind of case is known, and every op has its chain.
        if len(LISTS) == 0:
            self.skipTest("no list given")
        engine = kernels.Torch.__new__(kernels.Torch)
        engine.cuda = True
        for path in LISTS:
            cases = json.loads(pathlib.Path(path).read_text())["cases"]
            ways = {c["name"]: engine.ways(c) for c in cases}
            for prefix, least in [("product/", 1), ("attention/vision", 3), ("attention/prefix", 6), ("adamw", 1)]:
                found = [w for name, w in ways.items() if name.startswith(prefix)]
                self.assertTrue(found and all(len(w) >= least for w in found), prefix)
            self.assertIn(["eager", "compile"], ways.values())
            self.assertEqual([w for name, w in ways.items() if name.startswith("td_loss")][0], [])


LISTS = [arg for arg in sys.argv[1:] if arg.endswith(".json")]

if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main(argv=[arg for arg in sys.argv if not arg.endswith(".json")])
