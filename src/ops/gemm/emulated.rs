//! Cooperative matrices as plain WGSL, for devices without them: the kernel's own text, in which each of their operations
//! becomes a function on workgroup memory. So addresses, layouts, passes and edges are checked where there are no matrix
//! units; the operations themselves are not.
//!
//! A matrix of an operand is where it lies; one of sums is spread over the units of a subgroup, element `e` in unit
//! `e % lanes`. `documented` says which of the two names of a load is row by row: see [`crate::gpu::Dialect`].

/// `text` without cooperative matrices, in subgroups of `lanes` neighbouring units.
pub(super) fn plain(text: &str, lanes: usize, side: usize, documented: bool) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let word = line.trim();
        if word.starts_with("enable wgpu_cooperative_matrix") {
            continue;
        }
        if word.starts_with("alias Matrix") {
            // The last of the three makes way for all.
            if word.contains("MatrixC") {
                out += &types(lanes, side);
            }
            continue;
        }
        let line = match word {
            w if w.starts_with("@builtin(subgroup_id)") || w.starts_with("@builtin(num_subgroups)") => continue,
            "let p = locate(group.z);" => {
                format!(
                    "{line}\n    let subgroup = unit / {lanes}u;\n    let subgroups = (UNITS + {lanes}u - 1u) / {lanes}u;\n    \
                     lane = unit % {lanes}u;\n    zero = info[K] >> 31u;"
                )
            }
            _ => operation(line, documented),
        };
        out += &line;
        out.push('\n');
    }
    out
}

/// A line with at most one load or store of a matrix: `name<Matrix>(&tile[at], step)` or `name(matrix, &sums[at], step)`.
fn operation(line: &str, documented: bool) -> String {
    let mut line = line.to_owned();
    for (name, with_t) in [("coopLoadT", true), ("coopLoad", false)] {
        for (matrix, tile) in [("A", "tile_a"), ("B", "tile_b"), ("C", "sums")] {
            let call = format!("{name}<Matrix{matrix}>(&{tile}[");
            if let Some(at) = line.find(&call) {
                let by_rows = with_t == documented;
                let rest = line[at + call.len()..]
                    .replacen("],", ",", 1)
                    .replacen(");", &format!(", {by_rows});"), 1);
                line = format!("{}emulated_load_{matrix}({rest}", &line[..at]);
            }
        }
    }
    for (name, with_t) in [("coopStoreT(", true), ("coopStore(", false)] {
        if let Some(at) = line.find(name) {
            let by_rows = with_t == documented;
            let rest = line[at + name.len()..]
                .replacen("&sums[", "", 1)
                .replacen("],", ",", 1)
                .replacen(");", &format!(", {by_rows});"), 1);
            line = format!("{}emulated_store({rest}", &line[..at]);
        }
    }
    line.replace("coopMultiplyAdd(", "emulated_multiply(")
}

/// Bounds of loops have a `zero` that no compiler knows to be one: unrolled, all this would take minutes to compile.
fn types(lanes: usize, side: usize) -> String {
    let own = (side * side).div_ceil(lanes);
    let mut text = String::from("var<private> lane: u32;\nvar<private> zero: u32;\n");
    for (matrix, tile) in [("A", "tile_a"), ("B", "tile_b")] {
        text += &format!(
            "struct Matrix{matrix} {{ at: u32, step: u32, by_rows: bool }}\n\
             fn emulated_load_{matrix}(at: u32, step: u32, by_rows: bool) -> Matrix{matrix} {{\n    \
                 return Matrix{matrix}(at, step, by_rows);\n}}\n\
             fn element_{matrix}(m: Matrix{matrix}, row: u32, col: u32) -> f32 {{\n    \
                 return f32({tile}[m.at + select(col * m.step + row, row * m.step + col, m.by_rows)]);\n}}\n"
        );
    }
    text + &format!(
        "struct MatrixC {{ own: array<f32, {own}> }}\n\
         fn place_of(i: u32, step: u32, by_rows: bool) -> u32 {{\n    \
             let e = i * {lanes}u + lane;\n    let row = e / {side}u;\n    let col = e % {side}u;\n    \
             return select(col * step + row, row * step + col, by_rows);\n}}\n\
         fn emulated_load_C(at: u32, step: u32, by_rows: bool) -> MatrixC {{\n    var m: MatrixC;\n    \
             for (var i = 0u; i < {own}u + zero; i++) {{\n        if (i * {lanes}u + lane < {whole}u) {{\n            \
             m.own[i] = sums[at + place_of(i, step, by_rows)];\n        }}\n    }}\n    return m;\n}}\n\
         fn emulated_store(given: MatrixC, at: u32, step: u32, by_rows: bool) {{\n    var m = given;\n    \
             for (var i = 0u; i < {own}u + zero; i++) {{\n        if (i * {lanes}u + lane < {whole}u) {{\n            \
             sums[at + place_of(i, step, by_rows)] = m.own[i];\n        }}\n    }}\n}}\n\
         fn emulated_multiply(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC {{\n    var m = c;\n    \
             for (var i = 0u; i < {own}u + zero; i++) {{\n        let e = i * {lanes}u + lane;\n        \
             if (e < {whole}u) {{\n            for (var k = 0u; k < {side}u + zero; k++) {{\n                \
             m.own[i] = fma(element_A(a, e / {side}u, k), element_B(b, k, e % {side}u), m.own[i]);\n            \
             }}\n        }}\n    }}\n    return m;\n}}\n",
        whole = side * side
    )
}
