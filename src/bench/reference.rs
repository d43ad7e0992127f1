//! Scalar functions of the references, in float64, from their definitions.

/// GELU, tanh form.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + inner(x).tanh())
}

/// Derivative of [`gelu`].
pub fn gelu_slope(x: f64) -> f64 {
    let t = inner(x).tanh();
    let rise = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * rise
}

fn inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}

/// `x · sigmoid(x)`.
pub fn swish(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Derivative of [`swish`].
pub fn swish_slope(x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * (1.0 + x * (1.0 - s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_functions() {
        for x in [-3.0, -0.7, 0.0, 0.2, 1.5, 4.0] {
            let slope = |f: fn(f64) -> f64| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
            assert!((gelu_slope(x) - slope(gelu)).abs() < 1e-8, "{x}");
            assert!((swish_slope(x) - slope(swish)).abs() < 1e-8, "{x}");
        }
        assert!((gelu(1.0) - 0.841_191_990_608_276_7).abs() < 1e-12);
    }
}
