// to[to_at + i] = from[from_at + i] for i < n, on 32-bit words. Each unit moves 16 words, strided by the workgroup.
@group(0) @binding(0) var<storage, read_write> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> target_: array<u32>;
@group(0) @binding(2) var<storage, read> info: array<u32>; // n, from_at, to_at, workgroups along x

@compute @workgroup_size(64)
fn copy_words(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) unit: u32) {
    let n = info[0];
    let from_at = info[1];
    let to_at = info[2];
    let first = (group.y * info[3] + group.x) * 1024u + unit;
    for (var i = 0u; i < 1024u; i += 64u) {
        let at = first + i;
        if (at < n) {
            target_[to_at + at] = source[from_at + at];
        }
    }
}
