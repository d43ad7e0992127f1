//! Shapes of a group's tensors, stated with names: `in/x *n d; in/scale d` says that the last axis of `in/x` is as
//! long as the only one of `in/scale`.
//!
//! An axis is a name (the same length wherever it occurs), a number, a multiple of a name (`3d`), or `*name`: any
//! number of axes. No axis may be empty: kernels have nothing to do there, and callers divide by lengths.

use std::collections::HashMap;

use super::{Fixture, Result};

/// Fails unless the tensors `prefix` + name are as `spec` says.
pub(super) fn expect(f: &Fixture, prefix: &str, spec: &str) -> Result<()> {
    let mut known: HashMap<&str, Vec<usize>> = HashMap::new();
    for tensor in spec.split(';').map(str::trim).filter(|t| !t.is_empty()) {
        let (name, axes) = tensor.split_once(' ').unwrap_or((tensor, ""));
        let shape = f.shape(&format!("{prefix}{name}"))?;
        if !fits(shape, axes, &mut known) {
            let mut lengths: Vec<String> = known
                .iter()
                .filter(|(axis, _)| axes.contains(*axis))
                .map(|(axis, n)| format!(", {axis} being {n:?}"))
                .collect();
            lengths.sort();
            return Err(f.broken(format!(
                "{prefix}{name} is {shape:?}, but should be [{axes}]{}",
                lengths.concat()
            )));
        }
    }
    Ok(())
}

fn fits<'a>(shape: &[usize], axes: &'a str, known: &mut HashMap<&'a str, Vec<usize>>) -> bool {
    let axes: Vec<&str> = axes.split(' ').filter(|a| !a.is_empty()).collect();
    let several = axes.iter().filter(|a| a.starts_with('*')).count();
    if shape.contains(&0) || (several == 0 && shape.len() != axes.len()) || shape.len() + several < axes.len() {
        return false;
    }
    let mut rest = shape;
    for (i, axis) in axes.iter().enumerate() {
        let take = if axis.starts_with('*') {
            rest.len() - (axes.len() - i - 1)
        } else {
            1
        };
        let (mine, behind) = rest.split_at(take);
        rest = behind;
        let name = axis.trim_start_matches(|c: char| c.is_ascii_digit() || c == '*');
        let times = axis[..axis.len() - name.len()].parse().unwrap_or(1);
        let lengths: Vec<usize> = mine.iter().map(|n| n / times).collect();
        let whole = mine.iter().all(|n| n.is_multiple_of(times));
        let same = match name {
            "" => mine == [times],
            name => *known.entry(name).or_insert_with(|| lengths.clone()) == lengths,
        };
        if !(whole && same) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(tensors: &[(&[usize], &'static str)]) -> bool {
        let mut known = HashMap::new();
        tensors.iter().all(|(shape, axes)| fits(shape, axes, &mut known))
    }

    #[test]
    fn names_stand_for_lengths() {
        assert!(all(&[(&[2, 3, 5], "*n d"), (&[5], "d"), (&[2, 3, 7], "*n e")]));
        assert!(!all(&[(&[2, 3, 5], "*n d"), (&[4], "d")]));
        assert!(!all(&[(&[2, 3, 5], "*n d"), (&[3, 2, 5], "*n d")]));
        assert!(all(&[(&[5], "*n d"), (&[], "*n")]), "no axes in front");
        assert!(!all(&[(&[], "*n d")]) && !all(&[(&[2, 2], "d")]) && !all(&[(&[2], "")]));
        assert!(all(&[(&[4], "d"), (&[12, 4], "3d d")]) && !all(&[(&[4], "d"), (&[13, 4], "3d d")]));
        assert!(all(&[(&[7, 3], "n 3")]) && !all(&[(&[7, 4], "n 3")]));
        assert!(!all(&[(&[0, 3], "n 3")]));
    }
}
