// A libnvrtc that answers what its environment says.
#include <stdlib.h>
#include <string.h>

static int from(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

static const char PTX[] = "ptx of the fake compiler";
static const char LOG[] = "nvrtc: error: failed to open libnvrtc-builtins.so.13.0.\n  Make sure that it is there.\n";

int nvrtcVersion(int *major, int *minor) {
    *major = from("FAKE_NVRTC", 130) / 10;
    *minor = from("FAKE_NVRTC", 130) % 10;
    return 0;
}
int nvrtcGetNumSupportedArchs(int *count) { *count = 3; return 0; }
int nvrtcGetSupportedArchs(int *archs) {
    archs[0] = 75; archs[1] = 80; archs[2] = from("FAKE_NEWEST_ARCH", 90);
    return 0;
}
int nvrtcCreateProgram(void **program, const char *source, const char *name, int headers, const char *const *texts,
                       const char *const *names) {
    *program = (void *)PTX;
    return 0;
}
int nvrtcCompileProgram(void *program, int count, const char *const *options) { return from("FAKE_COMPILE", 0); }
int nvrtcGetProgramLogSize(void *program, size_t *bytes) { *bytes = sizeof LOG; return 0; }
int nvrtcGetProgramLog(void *program, char *log) { memcpy(log, LOG, sizeof LOG); return 0; }
int nvrtcGetPTXSize(void *program, size_t *bytes) { *bytes = sizeof PTX; return 0; }
int nvrtcGetPTX(void *program, char *ptx) { memcpy(ptx, PTX, sizeof PTX); return 0; }
int nvrtcDestroyProgram(void **program) { return 0; }
