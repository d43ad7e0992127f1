
// Four neighbours in memory of operand $X, zero where it ends: inner .. inner + 4 of line `outer`.
fn read_$X(start: u32, ld: u32, lines: u32, width: u32, outer: u32, inner: u32) -> vec4<f32> {
    let at = start + outer * ld + inner;
    var v = vec4<f32>();
    if (outer < lines && inner < width) {
#if QUAD
        v = vec4<f32>($X[at / 4u]);
#else
        v.x = f32($X[at]);
        if (inner + 1u < width) {
            v.y = f32($X[at + 1u]);
        }
        if (inner + 2u < width) {
            v.z = f32($X[at + 2u]);
        }
        if (inner + 3u < width) {
            v.w = f32($X[at + 3u]);
        }
#endif
    }
    return v;
}
