// to[i] = from[i] for i < n, on 128-bit words. Each unit moves 4 of them, strided by the workgroup.
@group(0) @binding(0) var<storage, read_write> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> target_: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> info: array<u32>; // n, workgroups along x

@compute @workgroup_size(256)
fn copy_quads(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) unit: u32) {
    let n = info[0];
    let first = (group.y * info[1] + group.x) * 1024u + unit;
    for (var i = 0u; i < 1024u; i += 256u) {
        let at = first + i;
        if (at < n) {
            target_[at] = source[at];
        }
    }
}
