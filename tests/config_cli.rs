//! The configuration at the command line: `config show|schema`, flags over files, completions, man pages.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use acrlpd::config::Config;
use tempfile::TempDir;

fn acrlpd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_acrlpd"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

fn stdout(args: &[&str]) -> String {
    let out = acrlpd(args);
    assert!(
        out.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

fn write(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn show_says_where_each_value_comes_from() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "mine.json", "{\n\"base\": \"rl_libero\",\n\"bc_weight\": 0.3\n}");
    let shown = stdout(&["config", "show", &file, "--pi0_lr=0.5", "--set", "acrlpd.discount=0.9"]);
    let line = |start: &str| {
        shown
            .lines()
            .find(|l| l.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {shown}"))
    };
    assert!(
        line("bc_loss_weight = 0.3").ends_with(&format!("# `{file}` line 3")),
        "{shown}"
    );
    assert!(line("actor_lr = 0.5").ends_with("# --pi0-lr"), "{shown}");
    assert!(line("discount = 0.9").ends_with("# --set acrlpd.discount"), "{shown}");
    assert!(line("batch_size = 256").contains("rl_libero"), "{shown}");
    assert!(line("#weights is unset").ends_with("# default"), "{shown}");
    assert!(line("#remat is unset: \"none\"").contains("rl_libero"), "{shown}");
    assert!(
        line(&format!("# `{file}` line 3: `bc_weight`")).ends_with("is acrlpd.bc_loss_weight"),
        "{shown}"
    );
    // The places stand in one column.
    let columns = shown
        .lines()
        .filter_map(|l| l.find("  # ").map(|at| l[..at].chars().count()));
    let columns: Vec<usize> = columns.filter(|column| *column <= 70).collect();
    assert!(
        columns.len() > 70 && columns.iter().all(|c| *c == columns[0]),
        "{columns:?}"
    );
    // And it is a configuration.
    let config = Config::parse(&stdout(&["config", "show", "debug"]), "shown.toml").unwrap();
    assert_eq!(config, Config::load("debug").unwrap());
}

#[test]
fn what_show_prints_for_programs_loads_again() {
    let dir = TempDir::new().unwrap();
    for (format, name) in [("--json", "again.json"), ("--toml", "again.toml")] {
        let text = stdout(&["config", "show", "--config", "rl_droid", "--seed=7", format]);
        let file = write(&dir, name, &text);
        let again = Config::load(&file).unwrap();
        assert_eq!((again.seed, again.name.as_str()), (7, "rl_droid"));
        assert_eq!(stdout(&["config", "show", &file, format]), text);
    }
    let schema: serde_json::Value = serde_json::from_str(&stdout(&["config", "schema"])).unwrap();
    assert_eq!(schema, Config::schema());
}

/// Every flag of `train`, with dashes and underscores, lands where it says.
#[test]
fn flags_reach_their_keys() {
    for (flag, key, value) in [
        ("max_steps", "num_train_steps", "7"),
        ("batch-size", "batch_size", "4"),
        ("pi0_lr", "acrlpd.actor_lr", "0.25"),
        ("critic-lr", "acrlpd.critic_lr", "0.125"),
        ("grad_accum", "acrlpd.gradient_accumulation_steps", "4"),
        ("seed", "seed", "9"),
        ("data", "data.path", "/sets/a"),
    ] {
        let text = stdout(&["config", "show", "debug", "--toml", &format!("--{flag}"), value]);
        let name = key.rsplit('.').next().unwrap();
        let shown = [format!("{name} = {value}"), format!("{name} = \"{value}\"")];
        assert!(text.lines().any(|l| shown.contains(&l.to_owned())), "{flag}: {text}");
    }
    let help = stdout(&["train", "--help"]);
    for flag in [
        "config",
        "exp-name",
        "max-steps",
        "batch-size",
        "pi0-lr",
        "critic-lr",
        "grad-accum",
        "seed",
        "device",
        "memory-fraction",
        "data",
        "checkpoint-dir",
        "resume",
        "overwrite",
        "log-interval",
        "save-interval",
        "eval-interval",
        "debug",
        "dry-run",
        "no-wandb",
        "wandb-project",
        "set",
    ] {
        assert!(help.contains(&format!("--{flag}")), "{flag}: {help}");
    }
    assert!(help.contains("ACRLPD_MEMORY_FRACTION"), "{help}");
}

#[test]
fn completions_are_scripts_of_their_shells() {
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef acrlpd"),
        ("fish", "complete -c acrlpd"),
    ] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains(word) && script.contains("memory-fraction"), "{shell}");
        if shell == "bash" {
            let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            assert!(bash.wait().unwrap().success());
        }
    }
}

/// Flags of a command as its help lists them.
fn flags(help: &str) -> Vec<String> {
    let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let words = words.filter(|w| w.starts_with("--") && w.len() > 3);
    words.map(String::from).collect()
}

#[test]
fn man_pages_have_every_flag() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("man");
    stdout(&["man", &folder.display().to_string()]);
    let all = stdout(&["man"]).replace("\\-", "-");
    let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap().replace("\\-", "-");
    for (args, name) in [
        (&["train", "--help"][..], "acrlpd-train.1"),
        (&["plan", "--help"], "acrlpd-plan.1"),
        (&["config", "show", "--help"], "acrlpd-config-show.1"),
        (&["sample", "--help"], "acrlpd-sample.1"),
    ] {
        let listed = flags(&stdout(args));
        assert!(listed.len() > 4, "{listed:?}");
        for flag in listed {
            assert!(page(name).contains(&flag) && all.contains(&flag), "{name} lacks {flag}");
        }
    }
    assert!(page("acrlpd.1").contains("acrlpd-train(1)"));
    assert!(Path::new(&folder).join("acrlpd-man.1").exists());
}

/// `acrlpd config schema | head -1` ends without a word.
#[test]
fn a_reader_that_goes_away_is_no_mistake() {
    for args in [
        &["config", "schema"][..],
        &["config", "show", "debug"],
        &["completions", "zsh"],
        &["man"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        child.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert!(
            out.status.success() && out.stderr.is_empty(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
