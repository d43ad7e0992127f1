//! docs/EXTENDING.md shows the code that ships: every excerpt is in the file it names, in the order it is shown.

use std::fs;
use std::path::Path;

use acrlpd::config::Config;

/// What an excerpt leaves out.
const LEFT_OUT: &str = "// …";

fn file(path: &str) -> Result<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(path)).map_err(|e| format!("{path}: {e}"))
}

/// One space wherever there is any.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Excerpts with the files they are from: code blocks that open with "```rust PATH".
fn excerpts(page: &str) -> Result<Vec<(&str, &str)>, String> {
    let blocks = page.split("```").skip(1).step_by(2);
    let named = blocks.map(|block| {
        let (head, code) = block.split_once('\n').unwrap_or((block, ""));
        match head.split_whitespace().collect::<Vec<_>>()[..] {
            ["rust", path] => Ok((path, code)),
            _ => Err(format!("a code block opens with {head:?}, not with rust and a path")),
        }
    });
    named.collect()
}

/// Whether every part of every excerpt is where it is said to be.
fn check(page: &str) -> Result<usize, String> {
    let all = excerpts(page)?;
    for (path, code) in &all {
        let source = plain(&file(path)?);
        let mut rest = &source[..];
        for part in code.split(LEFT_OUT).map(plain).filter(|part| !part.is_empty()) {
            let at = rest
                .find(&part)
                .ok_or_else(|| format!("{path} does not go on with: {part}"))?;
            rest = &rest[at + part.len()..];
        }
    }
    Ok(all.len())
}

#[test]
fn every_excerpt_is_in_the_file_it_names() {
    let page = file("docs/EXTENDING.md").unwrap();
    assert_eq!(check(&page), Ok(14));
    // Files that are named in the text exist too.
    let paths = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains('/') && word.contains('.'));
    for path in paths.filter(|word| !word.contains(' ')) {
        assert!(path.starts_with("./") || file(path).is_ok(), "{path}");
    }
}

#[test]
fn an_excerpt_that_is_out_of_date_is_noticed() {
    let page = file("docs/EXTENDING.md").unwrap();
    for (now, then) in [
        ("sign(n.beta1 * m", "sign(n.beta2 * m"),
        ("Erase = \"erase\";", "Erase = \"random_erasing\";"),
        ("```rust src/ops/smoothness.rs", "```rust src/ops/jerk.rs"),
        ("```rust src/model/critic_networks.rs", "```text"),
    ] {
        assert!(page.contains(now), "{now}");
        assert!(check(&page.replace(now, then)).is_err(), "{then}");
    }
}

#[test]
fn what_is_not_there_or_makes_no_sense_is_refused() {
    for (text, parts) in [
        ("optimizer.actor.kind = \"sgd\"", ["optimizer.actor.kind", "`lion`"]),
        ("data.augmentations = [\"blur\"]", ["data.augmentations", "`erase`"]),
        ("data.transforms = [\"ur5e\"]", ["data.transforms", "`aloha`"]),
        (
            "acrlpd.critic_network = \"cnn\"",
            ["acrlpd.critic_network", "`residual`"],
        ),
        (
            "acrlpd.critic_network = \"residual\"\nacrlpd.critic_hidden_dims = [64, 32]",
            ["acrlpd.critic_network", "same width"],
        ),
        (
            "acrlpd.smoothness_weight = 0.1\nmodel.action_horizon = 1",
            ["acrlpd.smoothness_weight", "action_horizon = 1"],
        ),
        (
            "acrlpd.smoothness_weight = -1",
            ["acrlpd.smoothness_weight", "at least 0"],
        ),
    ] {
        let whole = format!("data.prompt_from_task = true\n{text}");
        let error = Config::parse(&whole, "x.toml").expect_err(text).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
