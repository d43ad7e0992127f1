# The GPU run of ./x gpu: everything there is to know about a device, in one file, in under ten minutes.
# Sourced by ../x, which has set $ACRLPD. Needs no Rust: a prebuilt program, this checkout, and, for the peers, a python3
# that has torch.

gpu_usage() {
    cat <<'TEXT'
./x gpu [--device cuda|vulkan] [--quick] [--filter PATTERN] [--out FILE]
    Checks a GPU, measures every kernel on it, and writes benches/results/DEVICE-DATE.md.
    --device   only this one; without it everything on CUDA, and f32 checks on Vulkan
    --quick    small shapes, the fixtures of single operations alone: for software devices
    --filter   only cases whose name contains this
    --out      the file to write
TEXT
}

# Seconds for everything. A stage gets its own limit or what is left, and one that gets nothing has failed.
GPU_SECONDS=570

# stage TITLE SECONDS COMMAND…: runs a command of the program or of a peer, and notes how it went. Never ends the run.
# The output goes to $work/log; with $keep set it is kept in the file though nothing failed.
stage() {
    local title=$1 limit=$2 left code=0 began took shown
    shift 2
    shown="$*"
    shown="${shown//"$ACRLPD"/acrlpd}"
    shown="${shown//"$work/"/}"
    # Software devices are slow, and share their cores.
    [ -z "$quick" ] || limit=$((3 * limit))
    left=$((GPU_SECONDS - SECONDS))
    say "$title: $shown"
    began=$SECONDS
    if [ $left -le 0 ]; then
        code="not run"
        echo "the time was up" >"$work/log"
    else
        timeout -k 5 "$((limit < left ? limit : left))" "$@" >"$work/log" 2>&1 || code=$?
    fi
    took=$((SECONDS - began))
    tail -n 15 "$work/log"
    [ "$code" != 124 ] && [ "$code" != 137 ] || code="$code (time limit)"
    [ "$code" = 0 ] || failures=$((failures + 1))
    printf '| %s | `%s` | %s | %s s |\n' "$title" "$shown" "$code" "$took" >>"$work/stages"
    if [ "$code" != 0 ] || [ -n "${keep:-}" ]; then
        printf '\n### %s\n\n`%s`: exit code %s\n\n```text\n' "$title" "$shown" "$code" >>"$work/details"
        if [ "$code" = 0 ]; then cat "$work/log"; else tail -n 60 "$work/log"; fi >>"$work/details"
        printf '```\n' >>"$work/details"
    fi
    [ "$code" = 0 ]
}

# note TITLE TEXT: a stage that there is nothing to run for.
note() {
    say "$1: $2"
    printf '| %s | %s | - | - |\n' "$1" "$2" >>"$work/stages"
}

gpu() {
    local device="" quick="" out="" filters=()
    while [ $# != 0 ]; do
        case "$1" in
        --quick) quick=1 ;;
        --device | --filter | --out)
            [ $# -gt 1 ] || {
                echo "error: $1 needs a value; ./x gpu --help" >&2
                exit 2
            }
            case "$1" in
            --device) device=$2 ;;
            --filter) filters+=(--filter "$2") ;;
            --out) out=$2 ;;
            esac
            shift
            ;;
        -h | --help)
            gpu_usage
            exit 0
            ;;
        *)
            echo "error: ./x gpu does not know $1" >&2
            gpu_usage >&2
            exit 2
            ;;
        esac
        shift
    done
    case "$device" in
    "" | cuda | cuda:* | vulkan | vulkan:* | metal | dx12) ;;
    *)
        echo "error: ./x gpu does not know the device $device; use cuda or vulkan" >&2
        exit 2
        ;;
    esac
    command -v timeout >/dev/null || {
        echo "error: ./x gpu needs the command timeout (GNU coreutils)" >&2
        exit 2
    }
    gpu_program
    SECONDS=0
    local failures=0 keep="" fixtures=tests/golden main=${device:-cuda} dtype=bf16 sizes=() steps=20
    # One step at full size, with few candidates and with many; without dropout, which the peers do not know.
    local whole=(--config rl_fold_box --set critic.dropout_rate=0 --ladder 1 --candidates 4,32)
    # Not local: the trap runs when the function is over.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    : >"$work/stages" >"$work/details"
    if [ -n "$quick" ]; then
        fixtures=tests/golden/ops
        sizes=(--quick)
        steps=3
        whole=(--config debug --set critic.dropout_rate=0 --ladder 2 --candidates 4)
    fi
    # Only CUDA has bf16.
    case "$main" in cuda*) ;; *)
        dtype=f32
        whole+=(--set model.dtype=float32)
        ;;
    esac

    keep=1 stage "devices" 60 "$ACRLPD" doctor --device "$main" || true
    stage "correct in f32" 100 "$ACRLPD" verify "$fixtures" --device "$main" --brief || true
    if [ "$dtype" = bf16 ]; then
        stage "correct in bf16" 100 "$ACRLPD" verify "$fixtures" --device "$main" --dtype bf16 --brief || true
    else
        note "correct in bf16" "only CUDA stores bf16"
    fi
    if [ -z "$device" ]; then
        stage "correct on Vulkan" 100 "$ACRLPD" verify "$fixtures" --device vulkan --brief || true
    fi
    stage "kernels" 150 "$ACRLPD" bench kernels --device "$main" --dtype $dtype "${sizes[@]}" "${filters[@]}" \
        --minutes 2.3 --save "$work/kernels.json" || true
    gpu_peers || true
    local beside=()
    [ ! -e "$work/peers.json" ] || beside=(--peer "$work/peers.json")
    if [ -e "$work/kernels.json" ]; then
        printf '\n### Kernels\n\nof peer: how fast, beside the best way of the peer.\n\n' >>"$work/details"
        # Exit code 1 says again that cases failed.
        "$ACRLPD" bench kernels --from "$work/kernels.json" "${beside[@]}" >>"$work/details" || [ $? = 1 ] \
            || failures=$((failures + 1))
    fi
    keep=1 stage "a step" 30 "$ACRLPD" bench step --device "$main" --config debug --steps "$steps" || true
    # The peers first: theirs are in the table of ours.
    gpu_step_peers || true
    beside=()
    [ ! -e "$work/step_peers.json" ] || beside=(--peer "$work/step_peers.json")
    keep=1 stage "whole steps" 150 "$ACRLPD" bench step --device "$main" "${whole[@]}" "${beside[@]}" \
        --steps 5 || true
    gpu_report
    say "$out"
    if [ $failures != 0 ]; then
        echo "$failures stages failed; the file says which and why" >&2
        exit 1
    fi
}

# A program: the one that is named, the one that is built, or one that can be built.
gpu_program() {
    local built="${CARGO_TARGET_DIR:-target}/release/acrlpd"
    if [ -n "${ACRLPD:-}" ]; then
        [ -x "$ACRLPD" ] || {
            echo "error: ACRLPD=$ACRLPD is no program" >&2
            exit 2
        }
    elif [ -x "$built" ]; then
        ACRLPD=$built
    else
        rust && system && build
    fi
    if [ -z "${XDG_RUNTIME_DIR:-}" ]; then
        export XDG_RUNTIME_DIR="${TMPDIR:-/tmp}"
    fi
}

# PyTorch on the same cases, if there is one.
gpu_peers() {
    if ! python3 -c 'import torch' 2>/dev/null; then
        note "peers" "python3 has no torch: no ratios"
        return
    fi
    "$ACRLPD" bench kernels --list --json --dtype $dtype "${sizes[@]}" "${filters[@]}" >"$work/cases.json"
    local peer=auto
    [ -z "$quick" ] || [ $dtype != f32 ] || peer=cpu
    stage "peers" 115 python3 benches/peers/kernels.py "$work/cases.json" --save "$work/peers.json" --device $peer \
        --minutes 1.7
}

# PyTorch on whole steps, in the schedule of acrlpd and in the original one.
gpu_step_peers() {
    if ! python3 -c 'import torch, numpy, safetensors' 2>/dev/null; then
        note "step peers" "python3 has not all of torch, numpy and safetensors: no ratios"
        return
    fi
    "$ACRLPD" bench step "${whole[@]}" --list --json >"$work/steps.json"
    local peer=auto
    [ $dtype != f32 ] || peer=cpu
    stage "step peers" 120 python3 benches/peers/step_torch.py "$work/steps.json" --save "$work/step_peers.json" \
        --device $peer --check-eager --steps 3 --minutes 1.7
}

gpu_report() {
    local name
    name=$(sed -n 's/^chosen  *\(.*\) (.*)$/\1/p' "$work/details" | head -n 1)
    if [ -z "$out" ]; then
        mkdir -p benches/results
        out="benches/results/$(printf '%s' "${name:-unknown}" | tr -cs 'A-Za-z0-9' '-' | sed 's/-*$//')-$(date +%Y-%m-%d)"
        [ ! -e "$out.md" ] || out="$out-$(date +%H%M%S)"
        out="$out.md"
    fi
    {
        printf '# %s, %s\n\n' "${name:-unknown device}" "$(date +%Y-%m-%d)"
        printf 'Written by `./x gpu`%s: %s, %s stages failed.\n' "${quick:+ --quick}" "$("$ACRLPD" --version)" "$failures"
        printf '\n| stage | command | exit code | took |\n|---|---|---|---|\n'
        cat "$work/stages" "$work/details"
    } >"$out"
}
