/* Streams, events, captures and graphs. Nothing runs asynchronously: an operation outside a capture is done at once.
 *
 * Rules kept, from "CUDA Graphs" in the CUDA programming guide and the reference of cudaThreadExchangeStreamCaptureMode:
 * - The legacy stream cannot be captured or join a capture. A stream that is captured cannot begin another capture.
 * - A capture is invalidated by a synchronisation or query of its streams, by a synchronisation of the device from any
 *   thread, and by an unsafe call (an allocation, a query of an event, cudaMemcpy) from a thread that its mode covers.
 * - The calls that follow in an invalidated capture fail with another error. Its end returns no graph.
 * - A stream joins a capture when it waits for an event of it, and must be joined before the end. Waiting inside a
 *   capture for work outside it is an error. An event recorded in a capture cannot be queried or waited for outside.
 * - A capture in thread-local mode ends in the thread that began it.
 */
#include "null.h"

enum { MAX_STREAMS = 4096, MAX_CAPTURES = 4096 };

typedef struct {
    int is_active, is_invalid;
    pthread_t owner;
    Stream *origin;
    enum cudaStreamCaptureMode mode;
} Capture;

typedef struct {
    Stream *stream; /* where it was recorded; null: never */
    unsigned long long capture;
    long nodes;
} Event;

typedef struct {
    long nodes;
} Graph;

long null_captured, null_captures, null_graph_launches, null_sync;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Stream legacy, per_thread; /* the handles 0 and 1, and 2 */
static Stream *streams[MAX_STREAMS] = {&per_thread};
static int num_streams = 1;
static Capture captures[MAX_CAPTURES]; /* by number, from 1 */
static unsigned long long num_captures;
static __thread cudaError_t last_error;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

/* --- errors --- */

cudaError_t null_fail(cudaError_t error) {
    if (error) last_error = error;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorName(cudaError_t error) { return error ? "nullError" : "cudaSuccess"; }

const char *cudaGetErrorString(cudaError_t error) {
    static __thread char text[64];
    switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnmatched: return "capture was not ended in the same stream as it began";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
    default: snprintf(text, sizeof text, "error %d of the null GPU", error); return text;
    }
}

/* --- captures --- */

Stream *null_stream(cudaStream_t handle) {
    if (handle == 0 || handle == cudaStreamLegacy) return &legacy;
    return handle == cudaStreamPerThread ? &per_thread : (Stream *)handle;
}

static cudaError_t invalidate(Capture *capture, cudaError_t error) {
    capture->is_invalid = 1;
    return null_fail(error);
}

static cudaError_t forbid(Stream *stream) { /* a synchronisation or query of this stream */
    return stream->capture ? invalidate(&captures[stream->capture], cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t null_check_unsafe_call(void) {
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    for (unsigned long long i = 1; i <= num_captures; i++) {
        Capture *capture = &captures[i];
        int is_own = capture->is_active && pthread_equal(capture->owner, pthread_self());
        int is_prohibited = is_own ? capture->mode != cudaStreamCaptureModeRelaxed
                                   : capture->is_active && capture->mode == cudaStreamCaptureModeGlobal &&
                                         thread_mode == cudaStreamCaptureModeGlobal;
        if (is_prohibited) return invalidate(capture, cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

cudaError_t null_record(cudaStream_t handle, int *is_captured) {
    Stream *stream = null_stream(handle);
    *is_captured = stream->capture != 0;
    if (!stream->capture) return cudaSuccess;
    if (captures[stream->capture].is_invalid) return null_fail(cudaErrorStreamCaptureInvalidated);
    stream->nodes++;
    null_captured++;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
    Stream *stream = null_stream(handle);
    if (stream == &legacy) return null_fail(cudaErrorStreamCaptureUnsupported);
    if (stream->capture) return null_fail(cudaErrorIllegalState);
    pthread_mutex_lock(&lock);
    if (num_captures + 1 >= MAX_CAPTURES) abort();
    captures[++num_captures] = (Capture){1, 0, pthread_self(), stream, mode};
    *stream = (Stream){num_captures, 0, 0};
    pthread_mutex_unlock(&lock);
    null_captures++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
    Stream *stream = null_stream(handle);
    unsigned long long number = stream->capture;
    Capture *capture = &captures[number];
    long nodes = 0, unjoined = 0;
    *graph = 0;
    if (!number) return null_fail(cudaErrorIllegalState);
    if (capture->origin != stream) return null_fail(cudaErrorStreamCaptureUnmatched);
    if (capture->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(capture->owner, pthread_self()))
        return null_fail(cudaErrorStreamCaptureWrongThread);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_streams; i++) {
        if (streams[i]->capture != number) continue;
        nodes += streams[i]->nodes;
        unjoined += streams[i] != stream && streams[i]->joined < streams[i]->nodes;
        *streams[i] = (Stream){0, 0, 0};
    }
    capture->is_active = 0;
    pthread_mutex_unlock(&lock);
    if (capture->is_invalid) return null_fail(cudaErrorStreamCaptureInvalidated);
    if (unjoined) return null_fail(cudaErrorStreamCaptureUnjoined);
    Graph *result = calloc(1, sizeof *result);
    result->nodes = nodes;
    *graph = (cudaGraph_t)result;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status) {
    Stream *stream = null_stream(handle);
    *status = cudaStreamCaptureStatusNone;
    if (stream->capture)
        *status = captures[stream->capture].is_invalid ? cudaStreamCaptureStatusInvalidated
                                                       : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *number, cudaGraph_t *graph,
                                            const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges,
                                            size_t *num_dependencies) {
    if (number) *number = null_stream(handle)->capture;
    if (graph) *graph = 0;
    if (num_dependencies) *num_dependencies = 0;
    return cudaStreamIsCapturing(handle, status);
}

/* --- streams --- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    Stream *created = calloc(1, sizeof *created);
    pthread_mutex_lock(&lock);
    if (num_streams >= MAX_STREAMS) abort();
    streams[num_streams++] = created;
    pthread_mutex_unlock(&lock);
    *stream = (cudaStream_t)created;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return cudaStreamCreate(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return forbid(null_stream(stream)); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    null_sync++;
    return forbid(null_stream(stream));
}

cudaError_t cudaDeviceSynchronize(void) {
    null_sync++;
    cudaError_t error = cudaSuccess;
    for (unsigned long long i = 1; i <= num_captures; i++)
        if (captures[i].is_active) error = invalidate(&captures[i], cudaErrorStreamCaptureUnsupported);
    return error;
}

/* --- events --- */

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = calloc(1, sizeof(Event));
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }

cudaError_t cudaEventDestroy(cudaEvent_t event) { return cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    Stream *stream = null_stream(stream_handle);
    *(Event *)handle = (Event){stream, stream->capture, stream->nodes};
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned flags) {
    Stream *stream = null_stream(handle);
    Event *event = (Event *)event_handle;
    if (!event->stream) return cudaSuccess;
    if (!event->capture) /* the work is done already, so only a capture cannot depend on it */
        return stream->capture ? invalidate(&captures[stream->capture], cudaErrorStreamCaptureIsolation) : cudaSuccess;
    if (!captures[event->capture].is_active) return null_fail(cudaErrorCapturedEvent);
    if (stream == &legacy) return invalidate(&captures[event->capture], cudaErrorStreamCaptureImplicit);
    if (!stream->capture) *stream = (Stream){event->capture, 0, 0};
    if (stream->capture != event->capture)
        return invalidate(&captures[stream->capture], cudaErrorStreamCaptureMerge);
    if (stream != event->stream) event->stream->joined = event->nodes;
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return ((Event *)event)->capture ? null_fail(cudaErrorCapturedEvent) : null_check_unsafe_call();
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    null_sync++;
    return cudaEventQuery(event);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1;
    return cudaSuccess;
}

/* --- graphs --- */

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = graph ? ((Graph *)graph)->nodes : 0;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    *exec = (cudaGraphExec_t)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    null_graph_launches++;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return cudaSuccess; }

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaSuccess; }
