/* What the files of the null GPU share. Each file says at its top which rules of CUDA it keeps. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    unsigned long long capture; /* number of the capture that this stream is part of, or 0 */
    long nodes;                 /* operations recorded from this stream in that capture */
    long joined;                /* how many of them another stream of the capture waits for */
} Stream;

Stream *null_stream(cudaStream_t handle);
cudaError_t null_fail(cudaError_t error);  /* remembers the error for cudaGetLastError, and returns it */
cudaError_t null_check_unsafe_call(void);  /* an error, and an invalid capture, if the call is prohibited now */
cudaError_t null_record(cudaStream_t stream, int *is_captured); /* one operation: recorded, or to be run now */
cudaError_t null_launch(cudaStream_t stream);
