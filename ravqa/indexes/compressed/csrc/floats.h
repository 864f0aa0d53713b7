/* Tables of products and final scores, in float32, for one set of instructions;
 * native.c includes this file once for each.
 *
 * Defined there: NAME(f), the function's name for the set; TARGET, the attribute that allows it;
 * INLINE, for what is part of other functions; LANES, the number of floats in one of its vectors.
 * kernels.py and native.py describe the arrays.
 */

typedef float NAME(floats) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAME(masks) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define FLOATS NAME(floats)
#define MASKS NAME(masks)
#define WIDTH (2 * LANES) /* query vectors of a tile */

INLINE FLOATS NAME(greater)(FLOATS a, FLOATS b)
{
    MASKS which = a > b;
    return (FLOATS)((which & (MASKS)a) | (~which & (MASKS)b));
}

/* Compute the products of six rows [6, dim] with a tile of query vectors [dim, WIDTH]. */
INLINE void NAME(tile)(const float *rows, int64_t stride, const float *query, int64_t dim,
                       FLOATS out[6][2])
{
    FLOATS a0 = {0}, a1 = {0}, b0 = {0}, b1 = {0}, c0 = {0}, c1 = {0};
    FLOATS d0 = {0}, d1 = {0}, e0 = {0}, e1 = {0}, f0 = {0}, f1 = {0};
    for (int64_t h = 0; h < dim; h++) {
        FLOATS x = *(const FLOATS *)(query + h * WIDTH);
        FLOATS y = *(const FLOATS *)(query + h * WIDTH + LANES);
        float r;
        r = rows[h];
        a0 += r * x, a1 += r * y;
        r = rows[stride + h];
        b0 += r * x, b1 += r * y;
        r = rows[2 * stride + h];
        c0 += r * x, c1 += r * y;
        r = rows[3 * stride + h];
        d0 += r * x, d1 += r * y;
        r = rows[4 * stride + h];
        e0 += r * x, e1 += r * y;
        r = rows[5 * stride + h];
        f0 += r * x, f1 += r * y;
    }
    out[0][0] = a0, out[0][1] = a1, out[1][0] = b0, out[1][1] = b1;
    out[2][0] = c0, out[2][1] = c1, out[3][0] = d0, out[3][1] = d1;
    out[4][0] = e0, out[4][1] = e1, out[5][0] = f0, out[5][1] = f1;
}

/* Arrange query vectors [lanes, dim] in tiles [dim, WIDTH]; missing ones are 0. */
TARGET static void NAME(pack)(const float *query, int64_t lanes, int64_t dim, float *out)
{
    for (int64_t j = 0; j < lanes; j += WIDTH, out += dim * WIDTH)
        for (int64_t h = 0; h < dim; h++)
            for (int64_t k = 0; k < WIDTH; k++)
                out[h * WIDTH + k] = j + k < lanes ? query[(j + k) * dim + h] : 0;
}

/* Return the greatest of a row's entries, lifted. */
INLINE float NAME(highest)(const float *row, const float *norms, const float *low, float lift,
                           int64_t lanes)
{
    FLOATS best = (FLOATS){0} + NONE;
    float most = NONE;
    int64_t j = 0;
    for (; j + LANES <= lanes; j += LANES)
        best = NAME(greater)(best, *(const FLOATS *)(row + j) + lift * *(const FLOATS *)(norms + j) -
                                       *(const FLOATS *)(low + j));
    for (int k = 0; k < LANES; k++)
        most = best[k] > most ? best[k] : most;
    for (; j < lanes; j++) {
        float value = row[j] + lift * norms[j] - low[j];
        most = value > most ? value : most;
    }
    return most;
}

TARGET static void NAME(products)(int64_t first, int64_t last, const struct products *s,
                                  const float *packed)
{
    int64_t dim = s->dim;
    FLOATS sums[6][2];
    /* Some rows at a time, which stay in the cache while the tiles pass. */
    for (int64_t c = first; c < last; c += 48) {
        int64_t stop = c + 48 < last ? c + 48 : last;
        for (int64_t j = 0; j < s->lanes; j += WIDTH) {
            const float *tile = packed + j * dim;
            int64_t some = s->lanes - j < WIDTH ? s->lanes - j : WIDTH;
            for (int64_t r = c; r < stop; r += 6) {
                /* The last six may begin earlier than they would: products are computed twice. */
                int64_t six = r + 6 <= stop ? r : (stop - 6 >= first ? stop - 6 : first);
                if (last - first < 6) {
                    for (int64_t one = r; one < stop; one++)
                        for (int64_t k = 0; k < some; k++) {
                            float sum = 0;
                            for (int64_t h = 0; h < dim; h++)
                                sum += s->centers[one * dim + h] * tile[h * WIDTH + k];
                            s->exact[one * s->lanes + j + k] = sum;
                        }
                    break;
                }
                NAME(tile)(s->centers + six * dim, dim, tile, dim, sums);
                for (int n = 0; n < 6; n++) {
                    float *to = s->exact + (six + n) * s->lanes + j;
                    if (some == WIDTH)
                        memcpy(to, sums[n], 4 * WIDTH);
                    else
                        memcpy(to, sums[n], 4 * (size_t)some);
                }
            }
        }
        for (int64_t r = c; r < stop && s->highest; r++)
            s->highest[r] = NAME(highest)(s->exact + r * s->lanes, s->norms, s->low, s->lift[r],
                                          s->lanes);
    }
}

TARGET static void NAME(quantise)(int64_t first, int64_t last, const struct quantise *s)
{
    int64_t lanes = s->lanes, padding = s->width - lanes;
    const float *restrict norms = s->norms, *restrict low = s->low;
    float scale = s->scale;
    for (int64_t c = first; c < last; c++) {
        const float *restrict row = s->exact + c * lanes;
        uint8_t *restrict to = s->table + c * s->width;
        float lift = s->lift[c];
        for (int64_t j = 0; j < lanes; j++) {
            float value = (row[j] + lift * norms[j] - low[j]) * scale;
            value = value > 0 ? value : 0;
            value = value < 255 ? value : 255;
            to[j] = (uint8_t)(int32_t)value;
        }
        memset(to + lanes, 0, (size_t)padding);
    }
}

#if AVX2
INLINE __m256 NAME(eight)(const int8_t *row)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)row)));
}
#endif

TARGET static void NAME(along)(int64_t first, int64_t last, const struct along *s)
{
    int64_t dim = s->dim;
    for (int64_t x = first; x < last; x++) {
        const int8_t *row = s->rows + x * dim;
        float sum = 0;
        int64_t h = 0;
#if AVX2
        __m256 a = _mm256_setzero_ps(), b = a;
        float parts[8];
        for (; h + 16 <= dim; h += 16) {
            a = _mm256_fmadd_ps(NAME(eight)(row + h), _mm256_loadu_ps(s->vector + h), a);
            b = _mm256_fmadd_ps(NAME(eight)(row + h + 8), _mm256_loadu_ps(s->vector + h + 8), b);
        }
        _mm256_storeu_ps(parts, _mm256_add_ps(a, b));
        for (int k = 0; k < 8; k++)
            sum += parts[k];
#endif
        for (; h < dim; h++)
            sum += (float)row[h] * s->vector[h];
        s->out[x] = sum * (float)s->scales[x];
    }
}

/* Decode `count` stored vectors that begin at `t` and share a centroid. */
INLINE void NAME(decode)(const struct score *s, const float *center, int64_t t, int64_t count,
                         float *out)
{
    int64_t dim = s->dim, half = dim / 2, fine = s->fine_width;
    for (; count > 0; count--, t++, out += dim) {
        float scale = s->unit * s->scales[t];
        if (s->four) {
            const uint8_t *from = (const uint8_t *)s->residuals + t * half;
            for (int64_t h = 0; h < half; h++) {
                out[h] = center[h] + scale * ((float)(from[h] & 15) - 7.5f);
                out[half + h] = center[half + h] + scale * ((float)(from[h] >> 4) - 7.5f);
            }
        } else {
            const int8_t *from = s->residuals + t * dim;
            for (int64_t h = 0; h < dim; h++)
                out[h] = center[h] + scale * (float)from[h];
        }
        if (fine) {
            const uint8_t *bits = s->fine + t * fine;
            float step = scale * 0.5f, less = s->four ? scale * 0.25f : 0;
            for (int k = 0; k < 8; k++) {
                int64_t some = dim - k * fine < fine ? dim - k * fine : fine;
                for (int64_t b = 0; b < some; b++)
                    out[k * fine + b] += step * (float)((bits[b] >> k) & 1) - less;
            }
        }
    }
}

/* Convert `count` values of float16, all finite. */
INLINE void NAME(widen)(const uint16_t *from, int64_t count, float *out)
{
    for (int64_t h = 0; h < count; h++) {
        uint32_t bits = (uint32_t)(from[h] & 0x7fff) << 13, sign = (uint32_t)(from[h] & 0x8000) << 16;
        float value;
        memcpy(&value, &bits, 4);
        value *= 0x1p112f; /* the exponents' offsets differ by 112 */
        memcpy(&bits, &value, 4);
        bits |= sign;
        memcpy(out + h, &bits, 4);
    }
}

TARGET static void NAME(score)(int64_t first, int64_t last, const struct score *s,
                               const float *packed, float *rows)
{
    int64_t dim = s->dim;
    FLOATS sums[6][2];
    for (int64_t x = first; x < last; x++) {
        int64_t d = s->docs[x], begin = s->run_offsets[d], end = s->run_offsets[d + 1];
        int64_t t = s->offsets[d], count = s->offsets[d + 1] - t;
        if (count == 0) {
            s->out[x] = -INFINITY;
            continue;
        }
        if (s->whole)
            NAME(widen)(s->whole + t * dim, count * dim, rows);
        for (int64_t i = begin; i < end && !s->whole; i++) {
            int64_t from = s->run_starts[i], to = i + 1 < end ? s->run_starts[i + 1] : count;
            NAME(decode)(s, s->centers + s->centroids[i] * dim, t + from, to - from,
                         rows + from * dim);
        }
        /* Six vectors are multiplied at a time: the last is repeated. */
        for (int64_t more = count; more % 6; more++)
            memcpy(rows + more * dim, rows + (count - 1) * dim, 4 * (size_t)dim);
        float total = 0;
        for (int64_t j = 0; j < s->lanes; j += WIDTH) {
            float best[WIDTH];
            FLOATS low = (FLOATS){0} + NONE, high = low;
            for (int64_t r = 0; r < count; r += 6) {
                NAME(tile)(rows + r * dim, dim, packed + j * dim, dim, sums);
                for (int n = 0; n < 6; n++) {
                    low = NAME(greater)(low, sums[n][0]);
                    high = NAME(greater)(high, sums[n][1]);
                }
            }
            memcpy(best, &low, sizeof low);
            memcpy(best + LANES, &high, sizeof high);
            for (int64_t k = 0; k < WIDTH && j + k < s->lanes; k++)
                total += best[k];
        }
        s->out[x] = total;
    }
}

#undef FLOATS
#undef MASKS
#undef WIDTH
