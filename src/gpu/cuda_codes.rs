//! Codes of the CUDA driver, as sentences: what they mean, and what to do.

/// Name, meaning and remedy of an error of the driver API. Codes are numbers here, not an enumeration: newer drivers
/// have newer ones.
pub(super) struct Code {
    pub number: i32,
    pub name: &'static str,
    pub what: &'static str,
    pub fix: &'static str,
}

const NVIDIA_SMI: &str = "see whether `nvidia-smi` works";
const AGAIN: &str = "run again, with --resume if a checkpoint was saved; if it returns, `nvidia-smi -q` and the kernel's \
                     log (`dmesg | grep -i xid`) name the cause";
const REPORT: &str = "this is a mistake of the program or of a kernel: please report it with the command line";
const NEWER_DRIVER: &str = "update the NVIDIA driver, or put an older NVRTC first in LD_LIBRARY_PATH";
/// What makes a step smaller, or leaves it more room.
pub(super) const SMALLER: &str = "use a smaller micro-batch (acrlpd.gradient_accumulation_steps), memory.preset or a lower --memory-fraction, and see \
     with `nvidia-smi` whether another program holds memory";

const CODES: [Code; 26] = [
    code(2, "CUDA_ERROR_OUT_OF_MEMORY", "the device has no memory left", SMALLER),
    code(
        34,
        "CUDA_ERROR_STUB_LIBRARY",
        "the libcuda that was found is the toolkit's stub, not the driver's",
        "take the toolkit's `stubs` folder out of LD_LIBRARY_PATH",
    ),
    code(
        46,
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "the device is in use by another process alone, or switched off",
        "end the other process or set the compute mode with `nvidia-smi -c DEFAULT`",
    ),
    code(
        100,
        "CUDA_ERROR_NO_DEVICE",
        "the driver finds no device",
        "see whether `nvidia-smi` lists one and CUDA_VISIBLE_DEVICES hides none, or use --device vulkan",
    ),
    code(101, "CUDA_ERROR_INVALID_DEVICE", "there is no such device", NVIDIA_SMI),
    code(
        209,
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "a kernel was compiled for another device",
        "start again with --no-kernel-cache",
    ),
    code(
        214,
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "the device's memory had an error",
        AGAIN,
    ),
    code(
        218,
        "CUDA_ERROR_INVALID_PTX",
        "the driver does not take a compiled kernel",
        "start again with --no-kernel-cache; if it returns, update the NVIDIA driver",
    ),
    code(
        220,
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "the link between devices had an error",
        AGAIN,
    ),
    code(
        221,
        "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        "libnvidia-ptxjitcompiler, which is part of the driver, was not found",
        "install the whole NVIDIA driver (in a container: with the `compute` capability)",
    ),
    code(
        222,
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the driver is older than the NVRTC that compiled a kernel",
        NEWER_DRIVER,
    ),
    code(
        226,
        "CUDA_ERROR_CONTAINED",
        "the device had an error that it contained",
        AGAIN,
    ),
    code(
        304,
        "CUDA_ERROR_OPERATING_SYSTEM",
        "a call of the operating system failed",
        NVIDIA_SMI,
    ),
    code(
        700,
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "a kernel touched memory that is not its own",
        REPORT,
    ),
    code(
        701,
        "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        "a kernel needs more registers than a block may have",
        REPORT,
    ),
    code(
        702,
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "a kernel ran longer than a device that also drives a display may",
        "use a device without a display, or a smaller micro-batch",
    ),
    code(
        715,
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "a kernel has an instruction that the device lacks",
        REPORT,
    ),
    code(
        716,
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "a kernel touched memory at an odd address",
        REPORT,
    ),
    code(719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed on the device", AGAIN),
    code(
        802,
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "the system is not ready for CUDA yet",
        "see whether nvidia-fabricmanager (machines with NVSwitch) and nvidia-persistenced run",
    ),
    code(
        803,
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "libcuda and the loaded kernel module are of different driver versions",
        "reboot, or load the nvidia modules again after the update of the driver",
    ),
    code(
        804,
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "the compatibility libcuda (cuda-compat) that was found does not work with this device",
        "take its folder out of LD_LIBRARY_PATH and update the driver instead",
    ),
    code(
        805,
        "CUDA_ERROR_MPS_CONNECTION_FAILED",
        "the MPS server does not answer",
        "start nvidia-cuda-mps-control, or unset CUDA_MPS_PIPE_DIRECTORY",
    ),
    code(911, "CUDA_ERROR_EXTERNAL_DEVICE", "an external device failed", AGAIN),
    code(
        919,
        "CUDA_ERROR_FABRIC_NOT_READY",
        "the fabric between devices is not ready",
        "start nvidia-fabricmanager",
    ),
    code(
        999,
        "CUDA_ERROR_UNKNOWN",
        "the driver failed without a reason",
        "see whether `nvidia-smi` works and the modules nvidia and nvidia_uvm are loaded",
    ),
];

const fn code(number: i32, name: &'static str, what: &'static str, fix: &'static str) -> Code {
    Code {
        number,
        name,
        what,
        fix,
    }
}

/// A code by its number.
pub(super) fn by_number(number: i32) -> Option<&'static Code> {
    CODES.iter().find(|c| c.number == number)
}

/// The code whose name a text has.
pub(super) fn named_in(text: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| text.contains(c.name))
}

/// `what (NAME)` and the remedy for a number that may not be known.
pub(super) fn told(number: i32) -> (String, String) {
    match by_number(number) {
        Some(code) => (format!("{} ({})", code.what, code.name), code.fix.into()),
        None => (format!("the driver answered with error {number}"), NVIDIA_SMI.into()),
    }
}
