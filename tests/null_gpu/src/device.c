/* The device: NULL_GPUS of them (1), of compute capability NULL_CC (90; 75 is Turing), with the sizes of an H100. */
#include "null.h"

static __thread int current_device;

static int setting(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = setting("NULL_GPUS", 1);
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *device, int number) {
    memset(device, 0, sizeof *device);
    strcpy(device->name, "Null GPU");
    device->major = setting("NULL_CC", 90) / 10;
    device->minor = setting("NULL_CC", 90) % 10;
    device->totalGlobalMem = 80UL << 30;
    device->l2CacheSize = 50 << 20;
    device->memoryBusWidth = 5120;
    device->textureAlignment = 512;
    device->warpSize = 32;
    device->multiProcessorCount = 132;
    device->maxBlocksPerMultiProcessor = 32;
    device->maxThreadsPerMultiProcessor = 2048;
    device->maxThreadsPerBlock = device->maxThreadsDim[0] = device->maxThreadsDim[1] = 1024;
    device->maxThreadsDim[2] = 64;
    device->maxGridSize[0] = 2147483647;
    device->maxGridSize[1] = device->maxGridSize[2] = 65535;
    device->regsPerBlock = device->regsPerMultiprocessor = 65536;
    device->sharedMemPerBlock = 49152;
    device->sharedMemPerBlockOptin = 232448;
    device->sharedMemPerMultiprocessor = 233472;
    device->concurrentKernels = device->unifiedAddressing = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, device);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = properties.warpSize; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = properties.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = properties.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxGridDimX: *value = properties.maxGridSize[0]; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = properties.maxThreadsPerMultiProcessor; break;
    default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can_access, int device, int other) {
    *can_access = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device) {
    snprintf(text, bytes, "0000:%02x:00.0", device);
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

/* --- functions of the driver that torch asks the runtime for --- */

static int succeed(void) { return 0; }

static int get_context(void **context) {
    *context = (void *)8;
    return 0;
}

static int get_primary_context_state(unsigned device, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = 1;
    return 0;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *result) {
    *function = succeed;
    if (strstr(name, "PrimaryCtxGetState")) *function = get_primary_context_state;
    if (!strcmp(name, "cuCtxGetCurrent")) *function = get_context;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
