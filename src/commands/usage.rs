//! Wrong flags, told in one sentence as every other mistake.

use clap::Error;

/// clap's message without its usage text: what is wrong, where, and clap's tip.
pub fn sentence(error: &Error) -> String {
    let rendered = error.render().to_string();
    let told = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty());
    let mut sentence = String::new();
    for line in told {
        let line = line.strip_prefix("error: ").unwrap_or(line);
        let between = match sentence.chars().last() {
            None => "",
            Some(':') => " ",
            Some(_) => "; ",
        };
        sentence = format!("{sentence}{between}{line}");
    }
    format!("{sentence}; --help lists the flags")
}
