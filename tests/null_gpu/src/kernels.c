/* Kernels: each launch is counted and computes nothing.
 *
 * Rules kept: in a capture a launch becomes a node of the graph; in an invalidated capture it fails.
 * With NULL_COUNT=1 launches are also counted by kernel: null_dump(n) prints the n most frequent, null_clear() begins again.
 */
#include "null.h"

enum { MAX_KERNELS = 400000 };

typedef struct {
    unsigned x, y, z;
} Size;

typedef struct {
    const void *function;
    const char *name;
    long launches;
} Kernel;

long null_launches;

static Kernel kernels[MAX_KERNELS];
static int num_kernels;
static __thread struct {
    Size grid, block;
    size_t shared;
    void *stream;
} configuration;

static void count(const void *function) {
    static int is_counting = -1;
    if (is_counting < 0) is_counting = getenv("NULL_COUNT") != 0;
    for (int i = 0; is_counting && i < num_kernels; i++)
        if (kernels[i].function == function) {
            kernels[i].launches++;
            return;
        }
}

static cudaError_t launch(const void *function, cudaStream_t stream) {
    int is_captured;
    null_launches++;
    count(function);
    return null_record(stream, &is_captured);
}

cudaError_t null_launch(cudaStream_t stream) { return launch(0, stream); }

void null_clear(void) {
    for (int i = 0; i < num_kernels; i++) kernels[i].launches = 0;
}

void null_dump(int top) {
    while (top--) {
        Kernel *most = &kernels[0];
        for (int i = 1; i < num_kernels; i++)
            if (kernels[i].launches > most->launches) most = &kernels[i];
        if (!most->launches) break;
        printf("%6ld %.150s\n", most->launches, most->name);
        most->launches = 0;
    }
    fflush(stdout);
}

/* --- what the compiler makes of kernel<<<grid, block>>>() --- */

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[2];
    return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) {}

void __cudaUnregisterFatBinary(void **handle) {}

char __cudaInitModule(void **handle) { return 1; }

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int is_extern, size_t bytes,
                              int is_constant, int is_global) {}

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit,
                                   void *thread, void *block, void *block_size, void *grid, int *warp) {
    if (num_kernels < MAX_KERNELS) kernels[num_kernels++] = (Kernel){host, name, 0};
}

unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared, void *stream) {
    configuration.grid = grid, configuration.block = block;
    configuration.shared = shared, configuration.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(Size *grid, Size *block, size_t *shared, void *stream) {
    *grid = configuration.grid, *block = configuration.block;
    *shared = configuration.shared, *(void **)stream = configuration.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(void **kernel, const void *function) {
    *kernel = (void *)function;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(void *kernel, Size grid, Size block, void **arguments, size_t shared,
                                      cudaStream_t stream) {
    return launch(kernel, stream);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                    cudaStream_t stream) {
    return launch(function, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
    return launch(function, config->stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                                               size_t shared, cudaStream_t stream) {
    return launch(function, stream);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int block_size,
                                                                 size_t shared) {
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                          int block_size, size_t shared,
                                                                          unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}
