/* Memory of the device and pinned memory: zeroed pages of this process, so that copies work and a kernel leaves what was
 * there.
 *
 * Rules kept: an allocation is an unsafe call in a capture; a recorded copy does not run; null_limit bounds the device's
 * memory (0: 80 GB); copies from pageable memory to the device, which make the host wait, are counted.
 */
#include "null.h"
#include <sys/mman.h>

enum { MAX_BLOCKS = 200000, PAGE = 4096 };

typedef struct {
    char *start;
    size_t bytes;
    int is_host;
} Block;

long null_memcpy, null_memset, null_h2d_pageable, null_malloc, null_hostalloc, null_used, null_limit;

static const size_t TOTAL = 80UL << 30;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block blocks[MAX_BLOCKS];
static int num_blocks;

static size_t round_up(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

static void add_block(void *start, size_t bytes, int is_host) {
    int i = 0;
    pthread_mutex_lock(&lock);
    while (i < num_blocks && blocks[i].start) i++;
    if (i >= MAX_BLOCKS) abort();
    if (i == num_blocks) num_blocks++;
    blocks[i] = (Block){start, bytes, is_host};
    pthread_mutex_unlock(&lock);
}

static Block *find_block(const void *address) { /* call it with the lock held */
    for (int i = num_blocks - 1; i >= 0; i--)
        if (blocks[i].start && blocks[i].start <= (char *)address && (char *)address < blocks[i].start + blocks[i].bytes)
            return &blocks[i];
    return 0;
}

static cudaError_t allocate(void **address, size_t bytes, int is_host) {
    cudaError_t error = null_check_unsafe_call();
    if (error) return error;
    if (!is_host && null_limit && null_used + (long)bytes > null_limit) return null_fail(cudaErrorMemoryAllocation);
    *address = mmap(0, round_up(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*address == MAP_FAILED) return null_fail(cudaErrorMemoryAllocation);
    null_used += is_host ? 0 : bytes;
    add_block(*address, bytes, is_host);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **address, size_t bytes) {
    null_malloc++;
    return allocate(address, bytes, 0);
}

cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    null_hostalloc++;
    return allocate(address, bytes, 1);
}

cudaError_t cudaFree(void *address) {
    cudaError_t error = address ? null_check_unsafe_call() : cudaSuccess;
    if (error || !address) return error;
    pthread_mutex_lock(&lock);
    Block *block = find_block(address);
    if (block) {
        null_used -= block->is_host ? 0 : block->bytes;
        munmap(block->start, round_up(block->bytes));
        block->start = 0;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *address) { return cudaFree(address); }

cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t stream) {
    return cudaMalloc(address, bytes);
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { return cudaFree(address); }

cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) {
    add_block(address, bytes, 1);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *address) {
    pthread_mutex_lock(&lock);
    Block *block = find_block(address);
    if (block) block->start = 0;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = null_limit ? (size_t)null_limit : TOTAL;
    *available = *total - null_used;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    memset(attributes, 0, sizeof *attributes);
    pthread_mutex_lock(&lock);
    Block *block = find_block(address);
    attributes->type = !block           ? cudaMemoryTypeUnregistered
                       : block->is_host ? cudaMemoryTypeHost
                                        : cudaMemoryTypeDevice;
    pthread_mutex_unlock(&lock);
    attributes->devicePointer = attributes->hostPointer = (void *)address;
    return cudaSuccess;
}

/* --- copies --- */

static cudaError_t copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    int is_captured;
    cudaError_t error = null_record(stream, &is_captured);
    null_memcpy++;
    if (kind == cudaMemcpyHostToDevice) {
        pthread_mutex_lock(&lock);
        null_h2d_pageable += find_block(from) == 0;
        pthread_mutex_unlock(&lock);
    }
    if (!error && !is_captured) memmove(to, from, bytes);
    return error;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    return copy(to, from, bytes, kind, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    cudaError_t error = null_check_unsafe_call();
    return error ? error : copy(to, from, bytes, kind, 0);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t bytes,
                                       cudaStream_t stream) {
    return copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    cudaError_t error = copy(to, from, height ? width : 0, kind, stream);
    int is_captured = null_stream(stream)->capture != 0;
    for (size_t row = 1; !error && !is_captured && row < height; row++)
        memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return error;
}

cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t bytes, size_t offset,
                                      enum cudaMemcpyKind kind) {
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) { return cudaMalloc(address, 1 << 20); }

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    int is_captured;
    cudaError_t error = null_record(stream, &is_captured);
    null_memset++;
    if (!error && !is_captured) memset(to, value, bytes);
    return error;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    cudaError_t error = null_check_unsafe_call();
    return error ? error : cudaMemsetAsync(to, value, bytes, 0);
}
