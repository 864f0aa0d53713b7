/* The compressed index's inner loops in C, for several sets of instructions; native.py calls them.
 *
 * Every function may be called by several threads at once with the same `next`, from which each
 * takes `grain` items at a time until `count` are done. `set` is one of `sets()`. They return 0, or
 * -1 if memory ran out.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline)) TARGET
#define NONE (-1e30f)
#define TOGETHER 64 /* runs that the refinement looks at before it works on them */

struct scan {
    const uint8_t *table;
    int64_t lanes; /* columns of the table, a multiple of 32 */
    const uint16_t *centroids;
    const int64_t *run_offsets;
    int32_t *out;
};

struct refine {
    const int64_t *docs;
    const uint8_t *table;
    int64_t stride, width; /* of the table's rows, and columns to use, a multiple of 32 */
    int64_t margin;
    const float *exact; /* [centroids, lanes of the whole query] */
    int64_t columns;    /* of exact */
    const int8_t *query; /* [width, bytes], at most 63 */
    const float *steps, *shifts; /* [width]: the query's units; what the residuals' offsets add */
    const float *low, *lift, *norms; /* [width], [centroids], [width]: as in quantise */
    float entry; /* the table's unit */
    int64_t lanes, bytes, dim;
    const uint16_t *centroids;
    const int64_t *run_offsets;
    const uint16_t *run_starts;
    const int64_t *offsets;
    const uint8_t *residuals;
    const uint16_t *scales;
    float unit;
    int64_t four;
    float *out;
    int32_t *coarse;
};

/* Query vectors that are near to a run. */
struct chosen {
    const int32_t *which;
    const float *steps, *shifts;
    float *best;
};

struct products {
    const float *centers, *query;
    int64_t lanes, dim;
    const float *lift, *norms, *low;
    float *exact; /* [centers, lanes] */
    float *highest; /* the greatest of each row, lifted; or null */
};

struct quantise {
    const float *exact; /* [centroids, lanes] */
    int64_t lanes;
    const float *lift, *norms, *low;
    float scale;
    uint8_t *table;
    int64_t width; /* its columns */
};

struct along {
    const int8_t *rows;
    const uint16_t *scales;
    const float *vector;
    int64_t dim;
    float *out;
};

struct score {
    const int64_t *docs;
    const float *query;
    int64_t lanes, dim;
    const uint16_t *centroids;
    const int64_t *run_offsets;
    const uint16_t *run_starts;
    const int64_t *offsets;
    const float *centers;
    const int8_t *residuals;
    const uint8_t *fine;
    int64_t fine_width;
    const uint16_t *scales;
    const uint16_t *whole; /* float16 vectors, or null */
    float unit;
    int64_t four;
    float *out;
};

#define NAME(f) f##_plain
#define TARGET
#define AVX2 0
#define VNNI 0
#define LANES 4
#include "integers.h"
#include "floats.h"
#undef NAME
#undef TARGET
#undef AVX2
#undef VNNI
#undef LANES

#if defined(__x86_64__)
#define NAME(f) f##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define AVX2 1
#define VNNI 0
#define LANES 8
#include "integers.h"
#include "floats.h"
#undef NAME
#undef TARGET
#undef VNNI
#undef LANES
#define NAME(f) f##_avx512
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")))
#define VNNI 1
#define LANES 16
#include "integers.h"
#include "floats.h"
#define CHOOSE(set, f) ((set) == 2 ? f##_avx512 : (set) == 1 ? f##_avx2 : f##_plain)
#else
#define CHOOSE(set, f) ((void)(set), f##_plain)
#endif

#define EACH(call)                                                                                 \
    for (int64_t first; (first = __atomic_fetch_add(next, grain, __ATOMIC_RELAXED)) < count;) {    \
        int64_t last = first + grain < count ? first + grain : count;                              \
        call;                                                                                      \
    }

static void *room(int64_t bytes)
{
    void *found = NULL;
    return posix_memalign(&found, 64, (size_t)bytes + 64) ? NULL : found;
}

/* Return the greatest set of instructions that this processor has: 0 plain, 1 AVX2, 2 AVX-512. */
int sets(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")))
        return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")
               ? 2 : 1;
#else
    return 0;
#endif
}

int scan(int set, int64_t *next, int64_t count, int64_t grain, const struct scan *s)
{
    EACH(CHOOSE(set, scan)(first, last, s))
    return 0;
}

int refine(int set, int64_t *next, int64_t count, int64_t grain, const struct refine *s)
{
    /* What `refine_some` divides up. */
    int64_t groups = s->width / 32;
    uint8_t *scratch = room(21 * s->width + 4 * TOGETHER * groups + s->bytes);
    if (!scratch)
        return -1;
    EACH(CHOOSE(set, refine)(first, last, s, scratch))
    free(scratch);
    return 0;
}

int quantise(int set, int64_t *next, int64_t count, int64_t grain, const struct quantise *s)
{
    EACH(CHOOSE(set, quantise)(first, last, s))
    return 0;
}

int along(int set, int64_t *next, int64_t count, int64_t grain, const struct along *s)
{
    EACH(CHOOSE(set, along)(first, last, s))
    return 0;
}

static float *packed(int set, const float *query, int64_t lanes, int64_t dim)
{
    float *out = room(4 * (lanes + 32) * dim);
    if (out)
        CHOOSE(set, pack)(query, lanes, dim, out);
    return out;
}

int products(int set, int64_t *next, int64_t count, int64_t grain, const struct products *s)
{
    float *tiles = packed(set, s->query, s->lanes, s->dim);
    if (!tiles)
        return -1;
    EACH(CHOOSE(set, products)(first, last, s, tiles))
    free(tiles);
    return 0;
}

int score(int set, int64_t *next, int64_t count, int64_t grain, const struct score *s)
{
    int64_t most = 0;
    for (int64_t x = 0; x < count; x++) {
        int64_t length = s->offsets[s->docs[x] + 1] - s->offsets[s->docs[x]];
        most = length > most ? length : most;
    }
    float *rows = room(4 * (most + 6) * s->dim), *tiles = packed(set, s->query, s->lanes, s->dim);
    if (rows && tiles)
        EACH(CHOOSE(set, score)(first, last, s, tiles, rows))
    int bad = !rows || !tiles ? -1 : 0;
    free(rows);
    free(tiles);
    return bad;
}

/* Return the checksum of the files that this was compiled from. */
const char *source(void) { return SOURCE; }
