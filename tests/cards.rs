//! The table of cards in the guide is the program's own.

use assert_cmd::Command;

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/GUIDE.md");
const BEGIN: &str = "<!-- acrlpd plan --config rl_fold_box --cards -->\n";
const END: &str = "<!-- end -->\n";

/// With ACRLPD_UPDATE_GUIDE set, writes the table instead of comparing it.
#[test]
fn the_guide_has_the_table_of_cards_that_the_program_prints() {
    let mut command = Command::cargo_bin("acrlpd").expect("the program is built with the tests");
    command.args(["plan", "--config", "rl_fold_box", "--cards"]);
    let out = command
        .env_remove("ACRLPD_MEMORY_FRACTION")
        .output()
        .expect("it starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let table = String::from_utf8(out.stdout).expect("text");
    let guide = std::fs::read_to_string(GUIDE).expect("the guide is there");
    let (before, rest) = guide.split_once(BEGIN).expect("the table has a beginning");
    let (written, after) = rest.split_once(END).expect("the table has an end");
    if std::env::var_os("ACRLPD_UPDATE_GUIDE").is_some() {
        let fresh = [before, BEGIN, &table, END, after].concat();
        return std::fs::write(GUIDE, fresh).expect("the guide can be written");
    }
    assert!(
        written == table,
        "docs/GUIDE.md is behind: run ACRLPD_UPDATE_GUIDE=1 cargo test --release --test cards\n{table}"
    );
}
