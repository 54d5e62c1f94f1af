/* cuBLAS, cuSOLVER, cuSPARSE, cuFFT and NCCL: every function of theirs that torch calls succeeds and does nothing.
 *
 * build.py makes a weak function for every name that torch's own libraries import. Those with results are here.
 * No kernel of these libraries is counted: how many they launch is not known. Collectives are counted.
 */
#include "null.h"

long null_collectives;

static int create(void **handle) {
    *handle = malloc(64);
    return 0;
}

int cublasCreate_v2(void **handle) { return create(handle); }
int cusolverDnCreate(void **handle) { return create(handle); }
int cusparseCreate(void **handle) { return create(handle); }

int cufftXtMakePlanMany(int plan, int rank, long long *n, long long *in_shape, long long in_stride, long long in_step,
                        int in_type, long long *out_shape, long long out_stride, long long out_step, int out_type,
                        long long batch, size_t *workspace_bytes, int compute_type) {
    *workspace_bytes = 0;
    return 0;
}

int ncclGetVersion(int *version) {
    *version = 23007;
    return 0;
}

int ncclGetUniqueId(char *id) {
    memset(id, 7, 128);
    return 0;
}

int ncclCommInitRank(void **communicator, int ranks, ...) { return create(communicator); }
int ncclCommInitRankConfig(void **communicator, ...) { return create(communicator); }

int ncclCommGetAsyncError(void *communicator, int *error) {
    *error = 0;
    return 0;
}

const char *ncclGetErrorString(int error) { return "no error"; }
const char *ncclGetLastError(void *communicator) { return "no error"; }

static int collective(void) {
    null_collectives++;
    return 0;
}

int ncclAllReduce(void) { return collective(); }
int ncclBroadcast(void) { return collective(); }
int ncclBcast(void) { return collective(); }
int ncclAllGather(void) { return collective(); }
