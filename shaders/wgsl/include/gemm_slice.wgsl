
// A slice of operand $X: 128 rows (columns of B), 8 deep. In workgroup memory it lies depth by depth, four rows a vector.
var<workgroup> tile_$X: array<vec4<f32>, 512>;

#if ALONG_K
// Its lines run along k. 64 units load four rows of four and turn them around.
fn fetch_$X(p: Place, first: u32, k0: u32, unit: u32) -> mat4x4<f32> {
    var block = mat4x4<f32>();
    let u = unit - $FIRST_UNIT;
    if (u < 64u) {
        let row = first + u / 2u * 4u;
        let k = k0 + u % 2u * 4u;
        block[0] = read_$X(p.$X, info[$LD], $ROWS, p.k, row, k);
        block[1] = read_$X(p.$X, info[$LD], $ROWS, p.k, row + 1u, k);
        block[2] = read_$X(p.$X, info[$LD], $ROWS, p.k, row + 2u, k);
        block[3] = read_$X(p.$X, info[$LD], $ROWS, p.k, row + 3u, k);
    }
    return block;
}

fn keep_$X(buffer: u32, unit: u32, block: mat4x4<f32>) {
    let u = unit - $FIRST_UNIT;
    if (u < 64u) {
        let at = buffer + u % 2u * 128u + u / 2u;
        let turned = transpose(block);
        tile_$X[at] = turned[0];
        tile_$X[at + 32u] = turned[1];
        tile_$X[at + 64u] = turned[2];
        tile_$X[at + 96u] = turned[3];
    }
}
#else
// Its lines run along the rows: each unit loads one vector, as it stays.
fn fetch_$X(p: Place, first: u32, k0: u32, unit: u32) -> vec4<f32> {
    return read_$X(p.$X, info[$LD], p.k, $ROWS, k0 + unit / 32u, first + unit % 32u * 4u);
}

fn keep_$X(buffer: u32, unit: u32, block: vec4<f32>) {
    tile_$X[buffer + unit] = block;
}
#endif
