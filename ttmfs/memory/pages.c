/*
 * Pages from one place to another: what ttmfs.memory.native calls, where scripts/setup found a compiler.
 *
 * Whatever moves is larger than the caches, and nobody reads it soon: so the stores go past them (movnti's kin), which
 * saves reading each line of the target first. Of single pages the processor cannot guess where the next one is: that
 * is fetched ahead, into the second cache, as more lines can be on their way to that than to the first.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { PAGE_SIZE = 4096, LINE = 64 };

/* Changes when a function below takes other arguments: a library of another checkout is not used then. */
int ttmfs_pages_version(void)
{
	return 1;
}

#define INLINE static inline __attribute__((always_inline))

/* One line, to the first cache or to the second. */
#define FETCH_NEAR(line) __builtin_prefetch(line, 0, 3)
#define FETCH(line) __builtin_prefetch(line, 0, 2)

/* How many pages ahead single pages are fetched: one is not always there in time. */
enum { AHEAD = 2 };

#ifdef __SSE2__
/* Words times keys, as 64-bit products of the even words and of the odd ones: only what is below 2**32 of their sum
 * counts. */
typedef struct {
	__m128i even, odd;
} sum_t;

INLINE void add_words(sum_t *sum, __m128i words, const uint32_t *key)
{
	__m128i factors = _mm_loadu_si128((const __m128i *)key);

	sum->even = _mm_add_epi64(sum->even, _mm_mul_epu32(words, factors));
	sum->odd = _mm_add_epi64(sum->odd, _mm_mul_epu32(_mm_srli_epi64(words, 32), _mm_srli_epi64(factors, 32)));
}

/* One page, if there is a `to`; returns the sum of word times key, modulo 2**32, if there are `keys`. Each byte is read
 * once. `soon` is a page to be fetched, or NULL; else it is the one behind `from` in a run. */
INLINE uint32_t do_page(uint8_t *to, const uint8_t *from, const uint8_t *soon, const uint32_t *keys)
{
	sum_t sum = { _mm_setzero_si128(), _mm_setzero_si128() };
	__m128i both;

	for (size_t at = 0; at < PAGE_SIZE; at += LINE) {
		const __m128i *source = (const __m128i *)(from + at);
		__m128i a, b, c, d;

		if (soon)
			FETCH(soon + at);
		else if (to)
			FETCH_NEAR(from + PAGE_SIZE + at);
		a = _mm_load_si128(source);
		b = _mm_load_si128(source + 1);
		c = _mm_load_si128(source + 2);
		d = _mm_load_si128(source + 3);
		if (keys) {
			const uint32_t *key = keys + at / sizeof(*keys);

			add_words(&sum, a, key);
			add_words(&sum, b, key + 4);
			add_words(&sum, c, key + 8);
			add_words(&sum, d, key + 12);
		}
		if (to) {
			__m128i *target = (__m128i *)(to + at);

			_mm_stream_si128(target, a);
			_mm_stream_si128(target + 1, b);
			_mm_stream_si128(target + 2, c);
			_mm_stream_si128(target + 3, d);
		}
	}
	both = _mm_add_epi64(sum.even, sum.odd);
	return (uint32_t)_mm_cvtsi128_si32(_mm_add_epi64(both, _mm_srli_si128(both, 8)));
}

static void end_of_stores(void)
{
	_mm_sfence();
}
#else
INLINE uint32_t do_page(uint8_t *to, const uint8_t *from, const uint8_t *soon, const uint32_t *keys)
{
	const uint32_t *words = (const uint32_t *)from;
	uint32_t sum = 0;

	for (size_t at = 0; soon && at < PAGE_SIZE; at += LINE)
		FETCH(soon + at);
	for (size_t i = 0; keys && i < PAGE_SIZE / sizeof(*words); i++)
		sum += words[i] * keys[i];
	if (to)
		memcpy(to, from, PAGE_SIZE);
	return sum;
}

static void end_of_stores(void)
{
}
#endif

/* Page number i: one of `pages`, or where there are none, one behind the other. */
INLINE size_t number(const uint32_t *pages, size_t i)
{
	return (pages ? (size_t)pages[i] : i) * PAGE_SIZE;
}

/* `do_page` of each; what is NULL here the compiler leaves out. */
INLINE void do_pages(uint8_t *to, const uint32_t *to_pages, const uint8_t *from, const uint32_t *from_pages, size_t count,
		     const uint32_t *keys, uint32_t *sums)
{
	for (size_t i = 0; i < count; i++) {
		size_t ahead = i + AHEAD < count ? i + AHEAD : i;
		const uint8_t *soon = from_pages ? from + number(from_pages, ahead) : NULL;
		uint32_t sum = do_page(to ? to + number(to_pages, i) : NULL, from + number(from_pages, i), soon, keys);

		if (keys)
			sums[i] = sum;
	}
	end_of_stores();
}

/* Page i of `from` becomes page i of `to`, `count` of them. Both begin at a multiple of the page size; no page overlaps
 * another. */
void ttmfs_copy_pages(uint8_t *to, const uint32_t *to_pages, const uint8_t *from, const uint32_t *from_pages,
		      size_t count)
{
	if (from_pages)
		do_pages(to, to_pages, from, from_pages, count, NULL, NULL);
	else
		do_pages(to, to_pages, from, NULL, count, NULL, NULL);
}

/* As ttmfs_copy_pages; sums[i] is the keyed sum of page i. Without `to` nothing is copied. 1,024 `keys`. */
void ttmfs_sum_pages(uint8_t *to, const uint32_t *to_pages, const uint8_t *from, const uint32_t *from_pages,
		     size_t count, const uint32_t *keys, uint32_t *sums)
{
	if (to && from_pages)
		do_pages(to, to_pages, from, from_pages, count, keys, sums);
	else if (to)
		do_pages(to, to_pages, from, NULL, count, keys, sums);
	else if (from_pages)
		do_pages(NULL, NULL, from, from_pages, count, keys, sums);
	else
		do_pages(NULL, NULL, from, NULL, count, keys, sums);
}
