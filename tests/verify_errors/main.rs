//! Broken fixtures: each is an error of one clear sentence or a failed row, never a panic and never a pass.

mod broken;

use std::fs;
use std::path::Path;

use acrlpd::gpu::{DeviceChoice, Gpu};
use acrlpd::verify;
use broken::{Broken, Tensor};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device")
}

#[test]
fn missing_and_damaged_files() {
    let gpu = device();
    let group = Broken::copy("data_ops");
    fs::write(group.path(".json"), "{\"groups\": {").unwrap();
    group.assert_error(&gpu, &["data_ops.json cannot be read", "EOF"]);

    let group = Broken::copy("data_ops");
    fs::remove_file(group.path(".json")).unwrap();
    group.assert_error(&gpu, &["data_ops.json cannot be read", "No such file"]);

    let group = Broken::copy("data_ops");
    let path = group.path(".safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    group.assert_error(&gpu, &["data_ops.safetensors cannot be read"]);

    let group = Broken::copy("data_ops");
    fs::remove_file(group.path(".safetensors")).unwrap();
    group.assert_error(&gpu, &["norm/mean is missing from data_ops.safetensors"]);

    let group = Broken::copy("acrlpd_tiny");
    fs::remove_file(group.path(".moments.safetensors")).unwrap();
    group.assert_error(
        &gpu,
        &["is missing from acrlpd_tiny.moments.safetensors", "description lists"],
    );
}

#[test]
fn folders() {
    let error = |path: &Path| verify::find(path).unwrap_err().to_string();
    let dir = TempDir::new().unwrap();
    assert!(error(dir.path()).contains("no fixture groups here"));
    assert!(error(&dir.path().join("nothing")).contains("no fixture groups here"));
    fs::write(dir.path().join("notes.json"), "{\"a\": 1}").unwrap();
    fs::write(dir.path().join("broken.json"), "{").unwrap();
    assert!(error(dir.path()).contains("no fixture groups here"));
    fs::write(dir.path().join("table.json"), "{\"a\": [1, 2]}").unwrap();
    let found = verify::find(dir.path()).unwrap();
    assert_eq!(found.groups, [dir.path().join("table")]);
    assert_eq!(found.skipped, ["broken.json", "notes.json"].map(|n| dir.path().join(n)));
    assert_eq!(
        verify::find(&dir.path().join("table.json")).unwrap().groups,
        found.groups
    );

    // Tensors without a description must not be passed over.
    fs::write(dir.path().join("lost.grads.safetensors"), "").unwrap();
    let message = error(dir.path());
    assert!(
        message.contains("lost.grads.safetensors") && message.contains("description"),
        "{message}"
    );
}

#[test]
fn missing_tensors() {
    let gpu = device();
    let missing = |group, part, tensor, listed: &[&str], unlisted: &[&str]| {
        Broken::copy(group).without(part, tensor).assert_error(&gpu, listed);
        let broken = Broken::copy(group).without(part, tensor).unlisted();
        broken.assert_error(&gpu, unlisted);
    };
    let (file, bare) = (" is missing from ", " is missing; ");
    let op = "geglu/in/up";
    missing("ops", "", op, &[op, file, "ops.safetensors"], &["ops: ", op, bare]);
    let part = "chunk/valid";
    missing("data_ops", "", part, &[part, file], &["data_ops: ", part, bare]);
    let weight = "action_in_proj.bias";
    let key = "weights:action_in_proj.bias";
    missing(
        "pi0_tiny",
        ".weights",
        weight,
        &[weight, file],
        &["pi0_tiny: ", key, bare],
    );
    let noise = "step0/bc_noise";
    let key = "batches:step0/bc_noise";
    missing(
        "acrlpd_tiny",
        ".batches",
        noise,
        &[noise, file],
        &["acrlpd_tiny: ", key, bare],
    );
}

#[test]
fn misshapen_tensors() {
    let gpu = device();
    let misshapen = |group, part, tensor, listed: &[&str], unlisted: &[&str]| {
        Broken::copy(group).cut(part, tensor).assert_error(&gpu, listed);
        Broken::copy(group)
            .cut(part, tensor)
            .unlisted()
            .assert_error(&gpu, unlisted);
    };
    let says = "but the description says";
    for (op, tensor) in [
        ("rms_norm", "rms_norm/in/scale"),
        ("gqa_cached", "gqa_cached/in/mask"),
        ("patch_embed", "patch_embed/in/image"),
        ("critic", "critic/in/critic.layers.1.linear.weight"),
        ("critic", "critic/in/critic.layers.0.linear.weight"),
        ("vit_block", "vit_block/in/mlp.fc2.weight"),
        ("sincos", "sincos/out/y"),
        ("embed_lookup", "embed_lookup/cot/dy"),
    ] {
        misshapen("ops", "", tensor, &["ops: ", tensor, says], &["ops: ", op]);
    }
    let tensor = "aloha/model_actions";
    let should = "should be [b h w], b being [5], h being [8], w being";
    misshapen("data_ops", "", tensor, &[tensor, says], &["data_ops: aloha"]);
    let tensor = "aloha/model_actions_absolute";
    misshapen("data_ops", "", tensor, &[tensor, says], &[tensor, should]);
    let weight = "action_in_proj.weight";
    misshapen(
        "pi0_tiny",
        ".weights",
        weight,
        &[weight, says],
        &[weight, "its dims ask for [32, 32]"],
    );
    for tensor in [
        "obs/state",
        "obs/tokens",
        "obs/image_masks/base_0_rgb",
        "prefix_mask",
        "time",
    ] {
        let file = Broken::copy("pi0_tiny")
            .change(".forward", tensor, shortened)
            .unlisted();
        file.assert_error(&gpu, &["pi0_tiny: "]);
    }
    for tensor in [
        "step0/rewards",
        "step0/cand_noise",
        "step0/next_obs/state",
        "step0/positive",
    ] {
        let file = Broken::copy("acrlpd_tiny")
            .change(".batches", tensor, shortened)
            .unlisted();
        file.assert_error(&gpu, &["acrlpd_tiny: ", "batches:step0/"]);
    }
}

/// Without the last entry of the first axis.
fn shortened(name: &str, mut shape: Vec<usize>, data: Vec<u8>) -> Option<Tensor> {
    let keep = data.len() / shape[0] * (shape[0] - 1);
    shape[0] -= 1;
    Some((name.into(), shape, data[..keep].to_vec()))
}

#[test]
fn broken_descriptions() {
    let gpu = device();
    let remove = |group, parent: &'static str, key: &'static str| {
        Broken::copy(group).describe(move |json| {
            json.pointer_mut(parent)
                .unwrap()
                .as_object_mut()
                .unwrap()
                .remove(key)
                .unwrap();
        })
    };
    remove("pi0_tiny", "/dims", "vlm_mlp").assert_error(&gpu, &["pi0_tiny: ", "whole number at /dims/vlm_mlp"]);
    remove("pi0_tiny", "/dims", "cameras").assert_error(&gpu, &["dims.cameras should be a list of names"]);
    remove("pi0_tiny", "", "dims").assert_error(&gpu, &["none of the keys ops, groups, dims"]);
    remove("acrlpd_tiny", "/hyper", "huber_delta").assert_error(&gpu, &["no number at /hyper/huber_delta"]);
    remove("acrlpd_tiny", "", "batch").assert_error(&gpu, &["no whole number at /batch"]);
    remove("ops", "/ops/clip_0.5", "limit").assert_error(&gpu, &["ops: ", "/ops/clip_0.5/limit"]);
    remove("data_ops", "/groups/chunk", "discount").assert_error(&gpu, &["/groups/chunk/discount"]);
    let set = |group, pointer: &'static str, value: Value| {
        Broken::copy(group).describe(move |json| *json.pointer_mut(pointer).unwrap() = value)
    };
    set("acrlpd_tiny", "/dims/critic_hidden", json!([])).assert_error(&gpu, &["dims.critic_hidden"]);
    set("acrlpd_tiny", "/hyper/euler_steps", json!(0)).assert_error(&gpu, &["/hyper/euler_steps", "at least 1"]);
    set("acrlpd_tiny", "/hyper/target_q_agg", json!("max")).assert_error(&gpu, &["\"max\"", "min and mean"]);
    set("acrlpd_tiny", "/dims/real_action_dim", json!(33)).assert_error(&gpu, &["real_action_dim"]);
    set("acrlpd_tiny", "/batch", json!(5)).assert_error(&gpu, &["acrlpd_tiny: ", "batches:step0/"]);
    set("pi0_tiny", "/dims/head_dim", json!(15)).assert_error(&gpu, &["head_dim must be even"]);
    set("pi0_tiny", "/dims/vocab", json!(100)).assert_error(&gpu, &["its dims ask for"]);
    set("ops", "/ops/adamw/lr", json!("constant 1e-3")).assert_error(&gpu, &["adamw", "warmup_cosine"]);
    set("data_ops", "/files", json!({"else.safetensors": {}})).assert_error(&gpu, &["another group"]);
}

#[test]
fn one_percent_is_found() {
    let gpu = device();
    let nudged = |group, part, tensor, rows: &[&str]| {
        Broken::copy(group).nudged(part, tensor).assert_failing(&gpu, rows);
    };
    nudged("ops", "", "rms_norm/out/y", &["rms_norm/out/y"]);
    nudged("ops", "", "critic/grad/feats", &["critic/grad/feats"]);
    for tensor in [
        "norm/un_quantile32",
        "aloha/actions_pi_delta",
        "resize2/f32_out",
        "chunk/cum_reward",
    ] {
        nudged("data_ops", "", tensor, &[tensor]);
    }
    nudged(
        "data_ops",
        "",
        "u8_to_model/out",
        &["u8_to_model/out", "u8_to_model/out (device)"],
    );
    let tensor = "hidden/layer0/suffix";
    nudged("pi0_tiny", ".forward", tensor, &[tensor]);
    nudged("acrlpd_tiny", ".losses", "q", &["q"]);
    // A byte that is off by one.
    let group = Broken::copy("data_ops").change("", "resize0/u8_out", |name, shape, mut data| {
        let middle = data.len() / 2;
        data[middle] ^= 1;
        Some((name.into(), shape, data))
    });
    group.assert_failing(&gpu, &["resize0/u8_out"]);
}

#[test]
fn what_nobody_knows_fails() {
    let gpu = device();
    let renamed = |group, part, tensor, new: &'static str| {
        let change = |_: &str, shape, data| Some((new.to_string(), shape, data));
        Broken::copy(group).change(part, tensor, change).unlisted()
    };
    let left = ["norm/un_quantile32", "norm/un_zscore32", "norms"];
    renamed("data_ops", "", "norm/x32", "norms/x32").assert_unknown(&gpu, &left);
    renamed("data_ops", "", "u8_to_model/out", "gamma/out").assert_error(&gpu, &["u8_to_model/out is missing"]);
    let more = |group, part, tensor, new: &'static str, unknown: &[&str]| {
        let golden = Broken::copy(group);
        let path = golden.path(&format!("{part}.safetensors"));
        let bytes = fs::read(&path).unwrap();
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let mut views: Vec<_> = all.iter().map(|(n, t)| (n.to_string(), t)).collect();
        views.push((new.to_string(), all.tensor(tensor).unwrap()));
        serialize_to_file(views, None, &path).unwrap();
        golden.assert_unknown(&gpu, unknown);
    };
    more("data_ops", "", "norm/mean", "norms/mean", &["norms"]);
    more("data_ops", "", "norm/mean", "norm/median", &["norm/median"]);
    more("ops", "", "relu/in/x", "tanh/in/x", &["tanh"]);
    more("ops", "", "relu/in/x", "relu/grad/z", &["relu/grad/z"]);
    more("pi0_tiny", ".forward", "loss", "loss_scale", &["forward:loss_scale"]);
    more("acrlpd_tiny", ".losses", "q", "q_max", &["losses:q_max"]);
}

#[test]
fn a_published_table_must_be_ours() {
    let gpu = device();
    let name = "action_in_proj.bias";
    let other = Broken::copy("pi0_full_shapes").describe(|json| json[name] = json!([1025]));
    other.assert_failing(&gpu, &[name]);
    let missing = Broken::copy("pi0_full_shapes").describe(|json| {
        json.as_object_mut().unwrap().remove(name).unwrap();
    });
    missing.assert_failing(&gpu, &[name]);
    let more = Broken::copy("pi05_full_shapes").describe(|json| json["adapter.weight"] = json!([2, 2]));
    more.assert_unknown(&gpu, &["adapter.weight"]);
}
