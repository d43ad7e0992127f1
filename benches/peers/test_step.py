"""Tests of what the peers of whole steps share, without a framework: lists, shapes, rows. Argument: what
`acrlpd bench step --list --json` printed. With numpy, batches and checks are tested, too."""

import argparse
import json
import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import step_common as common

ROOT = pathlib.Path(__file__).parents[2]
LIST = None


def description():
    return json.loads((ROOT / "tests/golden/acrlpd_tiny.json").read_text())


class Lists(unittest.TestCase):
    def args(self, path=None, patterns=()):
        return argparse.Namespace(list=path, filter=list(patterns), save=None)

    def test_sizes_are_those_of_the_model(self):
        dtype, cases = common.cases_of(self.args(LIST), None)
        self.assertIn(dtype, ("float32", "bfloat16", "float16"))
        for case in cases:
            dims = common.Dims.of(case["dims"])
            pi0, critic = common.shapes(dims)
            self.assertEqual(critic["critic.layers.0.linear.weight"][0], dims.num_critics)
            self.assertEqual(case["samples"] % case["micro_batches"], 0)
            hyper = set(description()["hyper"]) - {"pi0_peak_lr", "pi0_end_lr", "critic_peak_lr", "critic_end_lr",
                                                  "warmup_steps", "decay_steps"}
            self.assertEqual(hyper - set(case["hyper"]), set())
        with self.assertRaises(SystemExit):
            common.cases_of(self.args(LIST, ["no such case"]), None)
        with self.assertRaises(SystemExit):
            common.cases_of(self.args(pathlib.Path("/nonexistent")), None)

    def test_shapes_are_those_of_the_fixture(self):
        told = description()
        pi0, critic = common.shapes(common.Dims.of(told["dims"]))
        tensors = lambda part: {n: tuple(x[1]) for n, x in told["files"][f"acrlpd_tiny.{part}.safetensors"]["tensors"].items()}
        self.assertEqual(pi0, tensors("weights"))
        self.assertEqual({"online/" + n: x for n, x in critic.items()},
                         {n: x for n, x in tensors("critic").items() if n.startswith("online/")})
        told["dims"]["pi05"] = True
        with self.assertRaises(SystemExit):
            common.Dims.of(told["dims"])


class Rows(unittest.TestCase):
    CASE = {"name": "a", "samples": 8, "candidates": 4}

    def test_a_step_is_timed(self):
        calls = []
        make = lambda: (lambda: calls.append(time.sleep(0.002)), lambda: 7)
        row = common.measure(self.CASE, "w", make, 5, time.monotonic() + 60)
        self.assertEqual((row["status"], row["steps"], len(calls), row["peak_bytes"]), ("ok", 5, 7, 7))
        self.assertGreaterEqual(row["step"]["median_ms"], 2.0)
        self.assertAlmostEqual(row["samples_per_s"], 8e3 / row["step"]["median_ms"])

    def test_what_fails_or_is_late_is_said(self):
        def broken():
            raise RuntimeError("out of\nmemory")

        row = common.measure(self.CASE, "w", broken, 5, time.monotonic() + 60)
        self.assertEqual((row["status"], row["why"]), ("failed", "out of memory"))
        self.assertEqual(common.measure(self.CASE, "w", broken, 5, time.monotonic() - 1)["status"], "skipped")
        row = common.measure(self.CASE | {"peers_lack": ["dropout"]}, "w", broken, 5, time.monotonic() + 60)
        self.assertEqual(row["why"], "the peers do not know dropout")


@unittest.skipIf(common.np is None, "no numpy")
class Numbers(unittest.TestCase):
    def test_batches_have_the_shapes_of_the_fixture(self):
        told = description()
        dims = common.Dims.of(told["dims"])
        batch = common.random_batch(dims, told["batch"], told["candidates"], dims.max_token_len)
        stored = told["files"]["acrlpd_tiny.batches.safetensors"]["tensors"]
        for name, x in batch.items():
            self.assertEqual([str(x.dtype), list(x.shape)], stored["step0/" + name], name)

    def test_what_is_off_is_wrong(self):
        self.assertLess(common.close("x", [1.0, 2.0], [1.0, 2.0001], 1e-4), 1e-4)
        for got in ([1.0, 2.1], [1.0, float("nan")], [1.0]):
            with self.assertRaises(common.Wrong):
                common.close("x", got, [1.0, 2.0], 1e-4)


if __name__ == "__main__":
    LIST = pathlib.Path(sys.argv.pop(1))
    unittest.main()
