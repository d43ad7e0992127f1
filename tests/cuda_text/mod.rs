//! What can be seen in the text of CUDA C++ without a compiler: operands of `asm`, and parameters of kernels.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use acrlpd::gpu::{DryKernel, Operands};

/// The source without comments; lines stay where they are.
pub fn without_comments(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(next) = rest.chars().next() {
        let (keep, skip) = if rest.starts_with("//") {
            (0, rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (0, rest.find("*/").map_or(rest.len(), |end| end + 2))
        } else if next == '"' {
            let length = string_end(rest);
            (length, length)
        } else {
            (next.len_utf8(), next.len_utf8())
        };
        out.push_str(&rest[..keep]);
        if keep == 0 {
            out.extend(rest[..skip].chars().filter(|&c| c == '\n'));
        }
        rest = &rest[skip..];
    }
    out
}

/// Bytes of the string literal that `text` starts with.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Splits at `separator` outside of strings, parentheses and brackets.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut at) = (Vec::new(), 0, 0i32, 0);
    while let Some(c) = text[at..].chars().next() {
        let mut step = c.len_utf8();
        match c {
            '"' => step = string_end(&text[at..]),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ if c == separator && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + step;
            }
            _ => {}
        }
        at += step;
    }
    parts.push(&text[start..]);
    parts
}

/// What is between the parenthesis or brace at `open` and its partner.
fn enclosed(text: &str, open: usize) -> Option<&str> {
    let (mut depth, mut at) = (0, open);
    while let Some(c) = text[at..].chars().next() {
        let mut step = c.len_utf8();
        match c {
            '"' => step = string_end(&text[at..]),
            '(' | '{' => depth += 1,
            ')' | '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(&text[open + 1..at]);
                }
            }
            _ => {}
        }
        at += step;
    }
    None
}

/// Places of a word that is not part of a longer one.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !letter(text[..at].chars().next_back()) && !letter(text[at + word.len()..].chars().next()))
}

/// The `asm` statements of a source without comments: line, and what stands in the parentheses.
pub fn asm_statements(source: &str) -> Vec<(usize, &str)> {
    let statement = |at: usize| {
        let line = source[..at].lines().count();
        let open = at + source[at..].find('(')?;
        let between = source[at + 3..open].trim();
        (between.is_empty() || between == "volatile").then_some(())?;
        Some((line, enclosed(source, open)?))
    };
    words(source, "asm").filter_map(statement).collect()
}

/// What is wrong with the operands of an `asm` statement: the template must name each listed one, and no other.
pub fn asm_fault(statement: &str) -> Option<String> {
    let parts = split(statement, ':');
    let mut template = String::new();
    // Literals that stand side by side are one.
    for (i, text) in parts[0].split('"').enumerate() {
        match text.trim() {
            _ if i % 2 == 1 => template.push_str(text),
            "" => {}
            other => return Some(format!("`{other}` in the template is not text")),
        }
    }
    if parts.len() > 4 {
        return Some("more than outputs, inputs and clobbers".into());
    }
    let operands = |part: Option<&&'_ str>| -> Vec<String> {
        let list = part.map_or(Vec::new(), |part| split(part, ','));
        list.iter()
            .map(|o| o.trim().to_string())
            .filter(|o| !o.is_empty())
            .collect()
    };
    let (outputs, inputs) = (operands(parts.get(1)), operands(parts.get(2)));
    let mut tied = Vec::new();
    for (at, operand) in outputs.iter().chain(&inputs).enumerate() {
        let constraint = operand.strip_prefix('"').and_then(|o| o.split_once('"'));
        let Some((constraint, _)) = constraint else {
            return Some(format!("operand `{operand}` has no constraint"));
        };
        let output = at < outputs.len();
        if output != constraint.starts_with(['=', '+']) {
            let side = if output { "an output" } else { "an input" };
            return Some(format!("`{operand}` is listed as {side}"));
        }
        // An input that shares the register of an output needs no name of its own.
        if let Ok(of) = constraint.parse::<usize>() {
            if of >= outputs.len() {
                return Some(format!("`{operand}` shares the register of no output"));
            }
            tied.push(at);
        }
    }
    let listed = outputs.len() + inputs.len();
    let mut named = vec![false; listed];
    // `%%` is a percent sign of the instruction itself.
    for piece in template.replace("%%", "").split('%').skip(1) {
        let digits: String = piece.chars().take_while(char::is_ascii_digit).collect();
        match digits.parse::<usize>() {
            Ok(n) if n < listed => named[n] = true,
            Ok(n) => return Some(format!("%{n} is named, but {listed} operands are listed")),
            Err(_) => return Some("a % without a number; the sign itself is written %%".into()),
        }
    }
    // Without an instruction the operands are only held where they are: a fence for the compiler.
    let fence = template.trim().is_empty();
    let unused = (0..listed).find(|at| !fence && !named[*at] && !tied.contains(at))?;
    Some(format!("operand {unused} is listed, but %{unused} is not named"))
}

/// What the kernel `entry` of a source expects, from its list of parameters; the error says what is out of order.
pub fn parameters(source: &str, entry: &str) -> Result<Operands, String> {
    let source = without_comments(source);
    let open = words(&source, entry)
        .map(|at| at + entry.len())
        .find(|&at| {
            source[..at]
                .rfind("__global__")
                .is_some_and(|g| !source[g..at].contains(['{', ';']))
        })
        .and_then(|at| Some(at + source[at..].find('(')?))
        .ok_or_else(|| format!("there is no kernel {entry}"))?;
    let list = enclosed(&source, open).ok_or("its list of parameters has no end")?;
    let (mut maps, mut pointers, mut info) = (0, 0, 0);
    for parameter in split(list, ',').into_iter().map(str::trim).filter(|p| !p.is_empty()) {
        let by_value = words(parameter, "__grid_constant__").next().is_some() && !parameter.contains('*');
        let out_of_order = |what: &str| Err(format!("{what} after what comes later: `{parameter}`"));
        if by_value && words(parameter, "CUtensorMap").next().is_some() {
            maps += 1;
            if pointers + info > 0 {
                return out_of_order("a tensor map");
            }
        } else if by_value && words(parameter, "info_st").next().is_some() {
            info += 1;
        } else if parameter.contains('*') {
            pointers += 1;
            if info > 0 {
                return out_of_order("a pointer");
            }
        } else {
            return Err(format!("`{parameter}` is no tensor map, pointer or info_st"));
        }
    }
    if pointers < maps {
        return Err(format!(
            "{maps} tensor maps, but {pointers} pointers: one comes with each map"
        ));
    }
    Ok(Operands {
        tensor_maps: maps,
        buffers: pointers - maps,
        info_words: match info {
            0 => 0,
            1 => info_words(&source)?,
            more => return Err(format!("{more} info_st")),
        },
    })
}

/// 32-bit words of `struct info_st`, padded to an even count.
fn info_words(source: &str) -> Result<usize, String> {
    let at = source.find("struct info_st").ok_or("info_st is not defined")?;
    let open = at + source[at..].find('{').ok_or("info_st is not defined")?;
    let fields = enclosed(source, open).ok_or("info_st has no end")?;
    let mut words = 0;
    for field in fields.split(';').map(str::trim).filter(|f| !f.is_empty()) {
        let (kind, names) = field
            .split_once(char::is_whitespace)
            .ok_or(format!("`{field}` in info_st"))?;
        let size = match kind {
            "u32" | "int" | "float" => 1,
            // Scalars are uploaded as 32-bit words: one that is wider would have to be aligned.
            _ => return Err(format!("`{kind}` in info_st is not a 32-bit scalar")),
        };
        words += size * names.split(',').count();
    }
    Ok(words.next_multiple_of(2))
}

/// Is a hand-written kernel launched with what it expects?
pub fn launch_fault(kernel: &DryKernel) -> Option<String> {
    match parameters(&kernel.source, &kernel.entry) {
        Err(why) => Some(format!("{}: {why}", kernel.entry)),
        Ok(expected) if expected != kernel.operands => Some(format!(
            "{} expects {expected:?} but is launched with {:?}",
            kernel.entry, kernel.operands
        )),
        Ok(_) => None,
    }
}

/// The CUDA sources under `shaders/cuda`, and whether each is one of the shared headers. (`emulated.h` is not CUDA.)
pub fn sources() -> Vec<(PathBuf, String, bool)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders/cuda");
    let mut found = Vec::new();
    for (folder, shared) in [(folder.clone(), false), (folder.join("include"), true)] {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("a file").path();
            if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                found.push((path, text, shared));
            }
        }
    }
    found.sort();
    found
}

/// The entry points of the hand-written kernels.
pub fn entries() -> BTreeSet<String> {
    let kernels = sources().into_iter().filter(|(.., shared)| !shared);
    kernels
        .flat_map(|(_, source, _)| declared(&without_comments(&source)))
        .collect()
}

/// Names of the kernels that a source without comments declares.
fn declared(source: &str) -> Vec<String> {
    source
        .match_indices("extern \"C\"")
        .map(|(at, _)| entry(&source[at..]).to_string())
        .collect()
}

/// Name of the kernel that is declared here: the word before its list of parameters.
fn entry(declaration: &str) -> &str {
    let head = declaration.split('{').next().unwrap_or("");
    // The launch bounds come before the list, in parentheses too.
    let list = head
        .rfind("__launch_bounds__")
        .map_or(0, |at| at + head[at..].find(')').unwrap_or(0) + 1);
    let list = list + head[list..].find('(').unwrap_or(0);
    let name = head[..list].trim_end();
    name.rsplit(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
        .unwrap_or("")
}

#[test]
fn every_asm_names_the_operands_it_lists() {
    let mut statements = 0;
    for (path, source, shared) in sources() {
        let source = without_comments(&source);
        for (line, statement) in asm_statements(&source) {
            statements += 1;
            let place = format!("{}:{line}", path.display());
            assert!(
                shared,
                "{place}: kernels contain no asm; prelude.cuh has the place for it"
            );
            if let Some(fault) = asm_fault(statement) {
                panic!("{place}: {fault}");
            }
        }
        assert_eq!(
            words(&source, "asm").count(),
            asm_statements(&source).len(),
            "{}",
            path.display()
        );
    }
    assert!(statements > 20, "{statements} asm statements found");
}

#[test]
fn every_kernel_has_its_parameters_in_order() {
    for (path, source, shared) in sources() {
        let entries = declared(&without_comments(&source));
        assert_eq!(entries.is_empty(), shared, "{}", path.display());
        for entry in entries {
            // Where info_st is in a shared header, the order of the parameters can be told all the same.
            let found = parameters(&format!("{source}\nstruct info_st {{ u32 any; }};"), &entry);
            assert!(found.is_ok(), "{}: {entry}: {found:?}", path.display());
        }
    }
}

#[test]
fn wrong_operands_of_asm_are_found() {
    let fault = |text: &str| {
        let source = without_comments(text);
        let statements = asm_statements(&source);
        assert_eq!(statements.len(), 1, "{text}");
        asm_fault(statements[0].1).unwrap_or_default()
    };
    for (text, expected) in [
        (r#"asm("add %0, %1, %2;" : "=r"(x) : "r"(a), "r"(b));"#, ""),
        (
            r#"asm volatile("add %0, %0, %1;" : "+r"(x) : "r"(f(a, b)) : "memory");"#,
            "",
        ),
        (r#"asm volatile("bar.sync 0;" ::: "memory");"#, ""),
        (r#"asm("mov %0, %%laneid;" : "=r"(x));"#, ""),
        (r#"asm volatile("" : "+f"(x)::"memory");"#, ""),
        (r#"asm("mad %0, %1, %2, %0;" : "=r"(x) : "r"(a), "r"(b), "0"(x));"#, ""),
        (r#"asm("a %0, " /* %7 */ "%1;" ::"r"(x ? y : z), "l"(p));"#, ""),
        (
            r#"asm("add %0, %1, %2;" : "=r"(x) : "r"(a));"#,
            "%2 is named, but 2 operands are listed",
        ),
        (
            r#"asm("add %0, %1;" : "=r"(x) : "r"(a), "r"(b));"#,
            "operand 2 is listed, but %2 is not named",
        ),
        (
            r#"asm("mov %0, %1;" : "r"(x) : "r"(a));"#,
            "`\"r\"(x)` is listed as an output",
        ),
        (
            r#"asm("mov %0, %1;" : "=r"(x) : "=r"(a));"#,
            "`\"=r\"(a)` is listed as an input",
        ),
        (r#"asm("mov %0, %1;" : "=r"(x) : a);"#, "operand `a` has no constraint"),
        (
            r#"asm("mov %0, %laneid;" : "=r"(x));"#,
            "a % without a number; the sign itself is written %%",
        ),
        (
            r#"asm("mov %0, %1;" : "=r"(x) : "3"(a));"#,
            "`\"3\"(a)` shares the register of no output",
        ),
        (
            r#"asm("mov %0, " TEXT ";" : "=r"(x));"#,
            "`TEXT` in the template is not text",
        ),
    ] {
        assert_eq!(fault(text), expected, "{text}");
    }
}

#[test]
fn wrong_parameters_are_found() {
    let found = |list: &str| {
        let text = format!(
            "struct info_st {{ u32 n, m; float scale; }};\n__device__ void k_of(int x) {{}}\n\
             extern \"C\" __global__ void __launch_bounds__(64) k({list}) {{ k_of(1); }}"
        );
        assert_eq!(entry(&text[text.find("extern").expect("a kernel")..]), "k");
        parameters(&text, "k")
    };
    const INFO: &str = "const __grid_constant__ info_st info";
    const MAP: &str = "const __grid_constant__ CUtensorMap map";
    let operands = |tensor_maps, buffers, info_words| Operands {
        tensor_maps,
        buffers,
        info_words,
    };
    assert_eq!(found(&format!("const u32* a, T* b, {INFO}")), Ok(operands(0, 2, 4)));
    assert_eq!(
        found(&format!("{MAP}, const bf16*, float* b, {INFO}")),
        Ok(operands(1, 1, 4))
    );
    assert_eq!(found("u32* a"), Ok(operands(0, 1, 0)));
    for (list, expected) in [
        (format!("const u32* a, {INFO}, u32* b"), "a pointer after"),
        (format!("const bf16*, {MAP}, {INFO}"), "a tensor map after"),
        (
            format!("{MAP}, {MAP}, const bf16*, {INFO}"),
            "2 tensor maps, but 1 pointers",
        ),
        (format!("u32* a, u32 n, {INFO}"), "`u32 n` is no tensor map"),
        (format!("u32* a, {INFO}, {INFO}"), "2 info_st"),
    ] {
        let error = found(&list).expect_err("it is out of order");
        assert!(error.starts_with(expected), "{error}");
    }
    let mut kernel = DryKernel {
        entry: "k".into(),
        source: format!("struct info_st {{ u32 n; }}; extern \"C\" __global__ void k(u32* a, u32* b, {INFO}) {{}}"),
        operands: operands(0, 2, 2),
        ..DryKernel::default()
    };
    assert_eq!(launch_fault(&kernel), None);
    kernel.operands = operands(0, 1, 2);
    let fault = launch_fault(&kernel).expect("a buffer is missing");
    assert!(fault.contains("k expects") && fault.contains("buffers: 1"), "{fault}");
    kernel.operands = operands(0, 2, 4);
    assert!(launch_fault(&kernel).is_some(), "there are more scalars than fields");
}
