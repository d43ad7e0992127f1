
// A slice of operand $X in workgroup memory: its lines as they are in memory, $WIDTH elements each, $STEP apart.
var<workgroup> tile_$X: array<$T, $SIZE>;

fn read_vector_$X(p: Place, first: u32, k0: u32, e: u32) -> vec4<f32> {
    let outer = e / ($WIDTH / 4u);
    let inner = e % ($WIDTH / 4u) * 4u;
#if ALONG_K
    return read_$X(p.$X, info[$LD], $ROWS, p.k, first + outer, k0 + inner);
#else
    return read_$X(p.$X, info[$LD], p.k, $ROWS, k0 + outer, first + inner);
#endif
}

fn keep_vector_$X(e: u32, vector: vec4<f32>) {
    let at = e / ($WIDTH / 4u) * $STEP + e % ($WIDTH / 4u) * 4u;
    tile_$X[at] = $T(vector.x);
    tile_$X[at + 1u] = $T(vector.y);
    tile_$X[at + 2u] = $T(vector.z);
    tile_$X[at + 3u] = $T(vector.w);
}

// Four vectors a unit.
fn fetch_$X(p: Place, first: u32, k0: u32, unit: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
        read_vector_$X(p, first, k0, unit),
        read_vector_$X(p, first, k0, unit + UNITS),
        read_vector_$X(p, first, k0, unit + 2u * UNITS),
        read_vector_$X(p, first, k0, unit + 3u * UNITS),
    );
}

fn keep_$X(unit: u32, block: mat4x4<f32>) {
    keep_vector_$X(unit, block[0]);
    keep_vector_$X(unit + UNITS, block[1]);
    keep_vector_$X(unit + 2u * UNITS, block[2]);
    keep_vector_$X(unit + 3u * UNITS, block[3]);
}
