/* The scan and the refinement, in whole numbers, for one set of instructions;
 * native.c includes this file once for each.
 *
 * Defined there: NAME(f), the function's name for the set; TARGET, the attribute that allows it;
 * INLINE, for what is part of other functions; AVX2 and VNNI, 1 or 0, whether it has them.
 * kernels.py and native.py describe the arrays.
 */

#if AVX2
INLINE __m256i NAME(at)(const uint8_t *row) { return _mm256_loadu_si256((const __m256i *)row); }

INLINE uint32_t NAME(total)(__m256i bytes)
{
    __m256i sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return (uint32_t)(_mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1));
}
#endif

/* Find the greatest of 32 columns over rows of the table; return their sum. */
INLINE uint32_t NAME(best32)(const uint8_t *table, int64_t stride, const uint16_t *rows,
                             int64_t count, uint8_t *best)
{
#if AVX2
    __m256i a = _mm256_setzero_si256(), b = a;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        __m256i r0 = NAME(at)(table + rows[i] * stride);
        __m256i r1 = NAME(at)(table + rows[i + 1] * stride);
        __m256i r2 = NAME(at)(table + rows[i + 2] * stride);
        __m256i r3 = NAME(at)(table + rows[i + 3] * stride);
        a = _mm256_max_epu8(a, _mm256_max_epu8(r0, r1));
        b = _mm256_max_epu8(b, _mm256_max_epu8(r2, r3));
    }
    for (; i < count; i++)
        a = _mm256_max_epu8(a, NAME(at)(table + rows[i] * stride));
    a = _mm256_max_epu8(a, b);
    _mm256_storeu_si256((__m256i *)best, a);
    return NAME(total)(a);
#else
    uint32_t sum = 0;
    memset(best, 0, 32);
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *row = table + rows[i] * stride;
        for (int j = 0; j < 32; j++)
            best[j] = row[j] > best[j] ? row[j] : best[j];
    }
    for (int j = 0; j < 32; j++)
        sum += best[j];
    return sum;
#endif
}

/* The same of 64 columns. */
INLINE uint32_t NAME(best64)(const uint8_t *table, int64_t stride, const uint16_t *rows,
                             int64_t count, uint8_t *best)
{
#if AVX2
    __m256i a = _mm256_setzero_si256(), b = a;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const uint8_t *r0 = table + rows[i] * stride, *r1 = table + rows[i + 1] * stride;
        const uint8_t *r2 = table + rows[i + 2] * stride, *r3 = table + rows[i + 3] * stride;
        __m256i low = _mm256_max_epu8(NAME(at)(r0), NAME(at)(r1));
        __m256i high = _mm256_max_epu8(NAME(at)(r0 + 32), NAME(at)(r1 + 32));
        a = _mm256_max_epu8(a, low);
        b = _mm256_max_epu8(b, high);
        low = _mm256_max_epu8(NAME(at)(r2), NAME(at)(r3));
        high = _mm256_max_epu8(NAME(at)(r2 + 32), NAME(at)(r3 + 32));
        a = _mm256_max_epu8(a, low);
        b = _mm256_max_epu8(b, high);
    }
    for (; i < count; i++) {
        a = _mm256_max_epu8(a, NAME(at)(table + rows[i] * stride));
        b = _mm256_max_epu8(b, NAME(at)(table + rows[i] * stride + 32));
    }
    _mm256_storeu_si256((__m256i *)best, a);
    _mm256_storeu_si256((__m256i *)(best + 32), b);
    return NAME(total)(a) + NAME(total)(b);
#else
    return NAME(best32)(table, stride, rows, count, best) +
           NAME(best32)(table + 32, stride, rows, count, best + 32);
#endif
}

/* Find the greatest of `width` columns, a multiple of 32; return their sum. */
INLINE uint32_t NAME(best)(const uint8_t *table, int64_t stride, int64_t width,
                           const uint16_t *rows, int64_t count, uint8_t *best)
{
    uint32_t sum = 0;
    int64_t j = 0;
    for (; j + 64 <= width; j += 64)
        sum += NAME(best64)(table + j, stride, rows, count, best + j);
    if (j < width)
        sum += NAME(best32)(table + j, stride, rows, count, best + j);
    return sum;
}

TARGET static void NAME(scan)(int64_t first, int64_t last, const struct scan *s)
{
    uint8_t best[64];
    for (int64_t d = first; d < last; d++)
        s->out[d] = 0;
    /* By 64 columns: those of all centroids fit in a processor's own cache. */
    for (int64_t j = 0; j < s->lanes; j += 64) {
        for (int64_t d = first; d < last; d++) {
            const uint16_t *rows = s->centroids + s->run_offsets[d];
            int64_t count = s->run_offsets[d + 1] - s->run_offsets[d];
            s->out[d] += (int32_t)(j + 64 <= s->lanes
                ? NAME(best64)(s->table + j, s->lanes, rows, count, best)
                : NAME(best32)(s->table + j, s->lanes, rows, count, best));
        }
    }
}

/* Which of 32 bytes of the row are greater than those of the least. */
INLINE uint32_t NAME(above)(const uint8_t *row, const uint8_t *least)
{
#if AVX2
    __m256i low = NAME(at)(least);
    __m256i same = _mm256_cmpeq_epi8(_mm256_max_epu8(NAME(at)(row), low), low);
    return ~(uint32_t)_mm256_movemask_epi8(same);
#else
    uint32_t found = 0;
    for (int j = 0; j < 32; j++)
        found |= (uint32_t)(row[j] > least[j]) << j;
    return found;
#endif
}

/* ---- products of a residual and query vectors, in whole numbers ------------------------------ */

#if AVX2
INLINE __m256i NAME(add_products)(__m256i sum, __m256i residual, __m256i query)
{
#if VNNI
    return _mm256_dpbusd_epi32(sum, residual, query);
#else
    /* No sum of two exceeds 16 bits: 2 x 255 x 63. */
    __m256i pairs = _mm256_maddubs_epi16(residual, query);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

INLINE __m128i NAME(halves)(__m256i sum)
{
    return _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
}

/* Compute the products of one residual and four query vectors, of `bytes` components, a multiple of
 * 32. `flip` is added to the residual's bytes modulo 256. */
INLINE __m128i NAME(dot4)(const uint8_t *residual, __m256i flip, const int8_t *queries,
                          const int32_t *which, int64_t bytes)
{
    const uint8_t *q0 = (const uint8_t *)queries + which[0] * bytes;
    const uint8_t *q1 = (const uint8_t *)queries + which[1] * bytes;
    const uint8_t *q2 = (const uint8_t *)queries + which[2] * bytes;
    const uint8_t *q3 = (const uint8_t *)queries + which[3] * bytes;
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t h = 0; h < bytes; h += 32) {
        __m256i r = _mm256_xor_si256(NAME(at)(residual + h), flip);
        s0 = NAME(add_products)(s0, r, NAME(at)(q0 + h));
        s1 = NAME(add_products)(s1, r, NAME(at)(q1 + h));
        s2 = NAME(add_products)(s2, r, NAME(at)(q2 + h));
        s3 = NAME(add_products)(s3, r, NAME(at)(q3 + h));
    }
    return NAME(halves)(_mm256_hadd_epi32(_mm256_hadd_epi32(s0, s1), _mm256_hadd_epi32(s2, s3)));
}

/* The same with one. */
INLINE __m128i NAME(dot1)(const uint8_t *residual, __m256i flip, const int8_t *query, int64_t bytes)
{
    __m256i sum = _mm256_setzero_si256();
    for (int64_t h = 0; h < bytes; h += 32)
        sum = NAME(add_products)(sum, _mm256_xor_si256(NAME(at)(residual + h), flip),
                                 NAME(at)((const uint8_t *)query + h));
    __m128i four = NAME(halves)(sum);
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
}
#endif

/* Raise the best products of the chosen query vectors by those with one stored vector. The arrays
 * have room for a multiple of 4; what is written beyond `count` has no meaning. */
INLINE void NAME(raise)(const uint8_t *residual, uint8_t flip, float scale, const int8_t *queries,
                        const struct chosen *c, int count, int64_t bytes)
{
#if AVX2
    __m256i flips = _mm256_set1_epi8((char)flip);
    __m128 scales = _mm_set1_ps(scale);
    for (int k = 0; k < count; k += 4) {
        __m128i sums = count - k > 1
                           ? NAME(dot4)(residual, flips, queries, c->which + k, bytes)
                           : NAME(dot1)(residual, flips, queries + c->which[k] * bytes, bytes);
        __m128 found = _mm_fmsub_ps(_mm_loadu_ps(c->steps + k), _mm_cvtepi32_ps(sums),
                                    _mm_loadu_ps(c->shifts + k));
        found = _mm_max_ps(_mm_mul_ps(found, scales), _mm_loadu_ps(c->best + k));
        _mm_storeu_ps(c->best + k, found);
    }
#else
    for (int k = 0; k < count; k++) {
        const int8_t *query = queries + c->which[k] * bytes;
        int32_t sum = 0;
        for (int64_t h = 0; h < bytes; h++)
            sum += (residual[h] ^ flip) * query[h];
        float found = (c->steps[k] * (float)sum - c->shifts[k]) * scale;
        c->best[k] = found > c->best[k] ? found : c->best[k];
    }
#endif
}

/* Copy a residual whose length is no multiple of 32, or which has 4 bits per component. */
INLINE void NAME(unpack)(const uint8_t *from, int64_t dim, int64_t four, int64_t bytes, uint8_t *out)
{
    if (four) {
        int64_t half = dim / 2, most = bytes / 2;
        for (int64_t h = 0; h < half; h++) {
            out[h] = from[h] & 15;
            out[most + h] = from[h] >> 4;
        }
    } else
        memcpy(out, from, (size_t)dim);
}

/* For constant `bytes` and `direct`, the compiler unrolls the loops over components. */
INLINE void NAME(refine_some)(int64_t first, int64_t last, const struct refine *s, int64_t bytes,
                              int direct, uint8_t *scratch)
{
    int64_t width = s->width, groups = width / 32;
    int64_t packed = s->four ? s->dim / 2 : s->dim;
    uint8_t flip = s->four ? 0 : 0x80;
    float *value = (float *)scratch, *steps = value + width, *shifts = steps + width;
    float *best = shifts + width;
    int32_t *which = (int32_t *)(best + width);
    uint32_t *masks = (uint32_t *)(which + width); /* [TOGETHER, groups] */
    uint8_t *least = (uint8_t *)(masks + TOGETHER * groups), *copy = least + width;
    struct chosen chosen = {which, steps, shifts, best};
    int64_t near[TOGETHER];
    memset(copy, 0, (size_t)bytes);
    for (int64_t x = first; x < last; x++) {
        int64_t d = s->docs[x], begin = s->run_offsets[d], end = s->run_offsets[d + 1];
        int64_t vectors = s->offsets[d], after = s->offsets[d + 1];
        s->coarse[x] = (int32_t)NAME(best)(s->table, s->stride, width, s->centroids + begin,
                                           end - begin, least);
        uint8_t margin = (uint8_t)(s->margin < 255 ? s->margin + 1 : 255);
        for (int64_t j = 0; j < width; j++) {
            least[j] = least[j] > margin ? (uint8_t)(least[j] - margin) : 0;
            value[j] = NONE;
        }
        /* Some runs at a time: what is needed of all is asked for before any is worked on. */
        for (int64_t i = begin; i < end; i += TOGETHER) {
            int64_t stop = i + TOGETHER < end ? i + TOGETHER : end;
            int some = 0;
            for (int64_t r = i; r < stop; r++) {
                const uint8_t *row = s->table + s->centroids[r] * s->stride;
                uint32_t any = 0, *mask = masks + some * groups;
                for (int64_t g = 0; g < groups; g++) {
                    mask[g] = NAME(above)(row + 32 * g, least + 32 * g);
                    any |= mask[g];
                }
                near[some] = r;
                if (any) {
                    const uint8_t *at = s->residuals + (vectors + s->run_starts[r]) * packed;
                    for (int64_t h = 0; h < packed; h += 64)
                        __builtin_prefetch(at + h);
                    some++;
                }
            }
            for (int n = 0; n < some; n++) {
                int64_t r = near[n];
                int count = 0;
                for (int64_t g = 0; g < groups; g++)
                    for (uint32_t m = masks[n * groups + g]; m; m &= m - 1)
                        which[count++] = (int32_t)(32 * g + __builtin_ctz(m));
                for (int k = count; k % 4; k++)
                    which[k] = which[0];
                for (int k = 0; k < count; k++) {
                    steps[k] = s->steps[which[k]];
                    shifts[k] = s->shifts[which[k]];
                    best[k] = NONE;
                }
                int64_t t = vectors + s->run_starts[r];
                int64_t upto = r + 1 < end ? vectors + s->run_starts[r + 1] : after;
                for (; t < upto; t++) {
                    const uint8_t *residual = s->residuals + t * packed;
                    if (!direct) {
                        NAME(unpack)(residual, s->dim, s->four, bytes, copy);
                        residual = copy;
                    }
                    NAME(raise)(residual, flip, s->unit * s->scales[t], s->query, &chosen, count,
                                bytes);
                }
                /* A centroid's product is what its entry in the table was made from. */
                const uint8_t *row = s->table + s->centroids[r] * s->stride;
                float lift = s->lift[s->centroids[r]];
                for (int k = 0; k < count; k++) {
                    int32_t j = which[k];
                    float product = s->low[j] - lift * s->norms[j] + s->entry * row[j];
                    float score = product + best[k];
                    value[j] = score > value[j] ? score : value[j];
                }
            }
        }
        float total = 0;
        for (int64_t j = 0; j < s->lanes; j++) {
            if (value[j] == NONE) /* nothing of the passage is above the mean of all centroids */
                for (int64_t i = begin; i < end; i++) {
                    float product = s->exact[s->centroids[i] * s->columns + j];
                    value[j] = product > value[j] ? product : value[j];
                }
            total += value[j];
        }
        s->out[x] = total;
    }
}

TARGET static void NAME(refine)(int64_t first, int64_t last, const struct refine *s,
                                uint8_t *scratch)
{
    if (s->bytes == 128 && s->dim == 128 && !s->four)
        NAME(refine_some)(first, last, s, 128, 1, scratch);
    else
        NAME(refine_some)(first, last, s, s->bytes, 0, scratch);
}

