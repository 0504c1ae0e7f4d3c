/*
 * Pages from one place to another: what ttmfs.memory.native calls, where scripts/setup found a compiler.
 *
 * Whatever moves is larger than the caches, and nobody reads it soon: so the stores go past them (movnti's kin), which
 * saves reading each line of the target first, and the page that comes next is fetched while this one is copied, as
 * the processor cannot guess where that is.
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

static void copy_page(uint8_t *restrict to, const uint8_t *restrict from, const uint8_t *next)
{
#ifdef __SSE2__
	for (size_t at = 0; at < PAGE_SIZE; at += LINE) {
		const __m128i *source = (const __m128i *)(from + at);
		__m128i *target = (__m128i *)(to + at);
		__m128i a, b, c, d;

		__builtin_prefetch(next + at);
		a = _mm_load_si128(source);
		b = _mm_load_si128(source + 1);
		c = _mm_load_si128(source + 2);
		d = _mm_load_si128(source + 3);
		_mm_stream_si128(target, a);
		_mm_stream_si128(target + 1, b);
		_mm_stream_si128(target + 2, c);
		_mm_stream_si128(target + 3, d);
	}
#else
	for (size_t at = 0; at < PAGE_SIZE; at += LINE)
		__builtin_prefetch(next + at);
	memcpy(to, from, PAGE_SIZE);
#endif
}

/* Page number i: one of `pages`, or where there are none, one behind the other. */
static size_t number(const uint32_t *pages, size_t i)
{
	return (pages ? (size_t)pages[i] : i) * PAGE_SIZE;
}

/* Page i of `from` becomes page i of `to`, `count` of them. Both begin at a multiple of the page size; no page overlaps
 * another. */
void ttmfs_copy_pages(uint8_t *to, const uint32_t *to_pages, const uint8_t *from, const uint32_t *from_pages,
		      size_t count)
{
	for (size_t i = 0; i < count; i++) {
		size_t next = i + 1 < count ? i + 1 : i;

		copy_page(to + number(to_pages, i), from + number(from_pages, i), from + number(from_pages, next));
	}
#ifdef __SSE2__
	_mm_sfence();
#endif
}

/* The sum of word times key, modulo 2**32, of one page. */
static uint32_t sum_page(const uint8_t *from, const uint32_t *keys, const uint8_t *next)
{
#ifdef __SSE2__
	/* 64-bit products of the even words, and of the odd ones: only what is below 2**32 of their sum counts. */
	__m128i even = _mm_setzero_si128(), odd = _mm_setzero_si128();

	for (size_t at = 0; at < PAGE_SIZE; at += LINE) {
		const __m128i *source = (const __m128i *)(from + at);
		const uint32_t *key = keys + at / sizeof(*keys);

		__builtin_prefetch(next + at);
		for (int part = 0; part < 4; part++) {
			__m128i words = _mm_load_si128(source + part);
			__m128i factors = _mm_loadu_si128((const __m128i *)(key + 4 * part));

			even = _mm_add_epi64(even, _mm_mul_epu32(words, factors));
			odd = _mm_add_epi64(odd, _mm_mul_epu32(_mm_srli_epi64(words, 32), _mm_srli_epi64(factors, 32)));
		}
	}
	even = _mm_add_epi64(even, odd);
	even = _mm_add_epi64(even, _mm_srli_si128(even, 8));
	return (uint32_t)_mm_cvtsi128_si32(even);
#else
	const uint32_t *words = (const uint32_t *)from;
	uint32_t sum = 0;

	for (size_t i = 0; i < PAGE_SIZE / sizeof(*words); i++)
		sum += words[i] * keys[i];
	__builtin_prefetch(next);
	return sum;
#endif
}

/* As ttmfs_copy_pages; sums[i] is the keyed sum of page i. Without `to` nothing is copied. 1,024 `keys`. */
void ttmfs_sum_pages(uint8_t *to, const uint32_t *to_pages, const uint8_t *from, const uint32_t *from_pages,
		     size_t count, const uint32_t *keys, uint32_t *sums)
{
	for (size_t i = 0; i < count; i++) {
		const uint8_t *page = from + number(from_pages, i);
		const uint8_t *next = i + 1 < count ? from + number(from_pages, i + 1) : page;

		sums[i] = sum_page(page, keys, next);
		if (to)
			copy_page(to + number(to_pages, i), page, page);
	}
#ifdef __SSE2__
	_mm_sfence();
#endif
}
