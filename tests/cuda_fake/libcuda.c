// A libcuda that answers what its environment says, up to the point where a device would be used.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int from(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuInit(unsigned flags) { return from("FAKE_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = from("FAKE_DRIVER", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = from("FAKE_DEVICES", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int room, int device) { snprintf(name, room, "Fake %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &cuInit; return from("FAKE_CONTEXT", 0); }
int cuCtxSetCurrent(void *context) { return 0; }
int cuModuleUnload(void *module) { return 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = from("FAKE_CAPABILITY", 90);
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 1024;
    return 0;
}

// The driver takes what the compiler next to it has written.
int cuModuleLoadData(void **module, const char *ptx) {
    return strcmp(ptx, "ptx of the fake compiler") ? 218 : from("FAKE_LOAD", 0);
}
