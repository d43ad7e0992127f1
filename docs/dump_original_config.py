#!/usr/bin/env python3
"""Writes a configuration of the original (a Python dataclass) as JSON, which acrlpd loads.

    python3 dump_original_config.py MODULE NAME > NAME.json
    acrlpd config show NAME.json

Run it where MODULE can be imported. NAME is a variable of MODULE, or the `name` of a configuration in one of its
lists or dictionaries. What JSON cannot say (functions, filters) is left out and told on stderr.
"""

import dataclasses
import importlib
import json
import os
import sys

# The original's camera names, and the model's.
CAMERAS = {"cam_high": "base_0_rgb", "cam_left_wrist": "left_wrist_0_rgb", "cam_right_wrist": "right_wrist_0_rgb"}
DROP = object()


def find(module, name):
    """The configuration called `name`."""
    if hasattr(module, name):
        return getattr(module, name)
    for value in vars(module).values():
        many = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        for config in many:
            if dataclasses.is_dataclass(config) and getattr(config, "name", None) == name:
                return config
    sys.exit(f"error: {module.__name__} has no configuration {name!r}; give the name of a variable or of a configuration")


def plain(value, path):
    """What JSON can say of `value`; DROP if nothing."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        items = {str(key): plain(inner, f"{path}.{key}") for key, inner in value.items()}
        return {key: inner for key, inner in items.items() if inner is not DROP}
    if isinstance(value, (list, tuple)):
        items = [plain(inner, f"{path}[{i}]") for i, inner in enumerate(value)]
        return [inner for inner in items if inner is not DROP]
    print(f"left out {path.lstrip('.')}: {type(value).__name__} has no JSON form", file=sys.stderr)
    return DROP


def repacked(data):
    """Moves a RepackTransform's mapping to data.cameras, data.state_key and data.action_key."""
    group = data.get("repack_transforms")
    inputs = group.get("inputs", []) if isinstance(group, dict) else []
    if len(inputs) != 1 or "structure" not in inputs[0]:
        return
    structure = inputs[0]["structure"]
    data["cameras"] = {CAMERAS.get(name, name): feature for name, feature in structure.get("images", {}).items()}
    for ours, theirs in (("state_key", "state"), ("action_key", "actions")):
        if theirs in structure:
            data[ours] = structure[theirs]
    del data["repack_transforms"]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.path.insert(0, os.getcwd())
    config = plain(find(importlib.import_module(sys.argv[1]), sys.argv[2]), "")
    if isinstance(config.get("data"), dict):
        repacked(config["data"])
    json.dump(config, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


if __name__ == "__main__":
    main()
