/* The driver's library libcuda.so.1, which Triton and NVRTC open by name. Rules kept: launches count as in kernels.c. */
#include <string.h>

extern int null_launch(void *stream) __attribute__((weak)); /* in the preloaded library */

static int launch(void *stream) { return null_launch ? null_launch(stream) : 0; }

static int set(int *value, int to) {
    *value = to;
    return 0;
}

static int set_handle(void **handle) {
    *handle = (void *)8;
    return 0;
}

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return set(version, 13000); }
int cuDeviceGet(int *device, int number) { return set(device, number); }
int cuDeviceGetCount(int *count) { return set(count, 1); }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) { /* CUdevice_attribute in cuda.h */
    case 75: return set(value, 9); /* compute capability */
    case 76: return set(value, 0);
    case 16: return set(value, 132);    /* multiprocessors */
    case 10: return set(value, 32);     /* warp */
    case 1: return set(value, 1024);    /* threads per block */
    case 39: return set(value, 2048);   /* threads per multiprocessor */
    case 8: return set(value, 49152);   /* shared memory per block */
    case 97: return set(value, 232448); /* the same, at most */
    case 81: return set(value, 233472); /* shared memory per multiprocessor */
    case 12:
    case 82: return set(value, 65536); /* registers */
    case 13:
    case 36: return set(value, 1500000); /* clocks in kHz */
    case 37: return set(value, 5120);    /* bits of the memory bus */
    default: return set(value, 1);
    }
}

int cuGetErrorString(int error, const char **text) {
    *text = "error of the null GPU";
    return 0;
}

int cuGetErrorName(int error, const char **text) { return cuGetErrorString(error, text); }

int cuCtxGetCurrent(void **context) { return set_handle(context); }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { return set(device, 0); }
int cuCtxSetLimit(int limit, unsigned long value) { return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return set_handle(context); }

int cuCtxGetLimit(unsigned long *value, int limit) {
    *value = 1 << 20;
    return 0;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    *flags = 0;
    return set(is_active, 1);
}

int cuModuleLoad(void **module, const char *file) { return set_handle(module); }
int cuModuleLoadData(void **module, const void *image) { return set_handle(module); }
int cuModuleLoadDataEx(void **module, const void *image, unsigned n, void *o, void *v) { return set_handle(module); }
int cuModuleGetFunction(void **function, void *module, const char *name) { return set_handle(function); }
int cuModuleUnload(void *module) { return 0; }
int cuLinkCreate_v2(void) { return 0; }
int cuLinkAddData_v2(void) { return 0; }
int cuLinkComplete(void) { return 0; }

int cuFuncGetAttribute(int *value, int attribute, void *function) {
    return set(value, attribute == 0 ? 1024 : attribute == 4 ? 40 : 0); /* threads per block; registers */
}

int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int size, unsigned long shared) { return set(n, 2); }
int cuOccupancyMaxActiveClusters(int *n, void *function, const void *config) { return set(n, 1); }

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    return launch(stream);
}

int cuLaunchKernelEx(const void *config, void *function, void **arguments, void **extra) {
    void *stream;
    memcpy(&stream, (const char *)config + 32, sizeof stream); /* CUlaunchConfig: seven unsigned, then the stream */
    return launch(stream);
}

int cuLaunchCooperativeKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared, void *stream, void **arguments) {
    return launch(stream);
}

int cuPointerGetAttribute(void *value, int attribute, unsigned long pointer) {
    *(unsigned long *)value = pointer;
    return 0;
}

int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
int cuMemAlloc_v2(void **address, unsigned long bytes) { return 1; }
int cuMemFree_v2(void *address) { return 0; }
