import { describe, expect, test } from 'vitest'
import { chooseRange, isFresh } from '../../src/http/precondition.ts'

const modified = new Date('2024-05-06T07:08:09.750Z')
const inHttp = 'Mon, 06 May 2024 07:08:09 GMT'
const validators = { etag: '"abc"', modified }

describe('a representation is fresh', () => {
  test.each([
    [{}, false],
    [{ 'if-none-match': '"abc"' }, true],
    [{ 'if-none-match': 'W/"abc"' }, true],
    [{ 'if-none-match': '"x", "abc"' }, true],
    [{ 'if-none-match': '*' }, true],
    [{ 'if-none-match': 'abc' }, false],
    [{ 'if-none-match': '"x"', 'if-modified-since': inHttp }, false],
    [{ 'if-modified-since': inHttp }, true],
    [{ 'if-modified-since': 'Mon, 06 May 2024 07:08:10 GMT' }, true],
    [{ 'if-modified-since': 'Mon, 06 May 2024 07:08:08 GMT' }, false],
    [{ 'if-modified-since': 'yesterday' }, false],
  ])('%j: %s', (headers, fresh) => {
    expect(isFresh(headers, validators)).toBe(fresh)
  })
})

describe('the range of a file of 100 bytes', () => {
  test.each([
    ['bytes=0-9', { start: 0, end: 9 }],
    ['bytes=90-', { start: 90, end: 99 }],
    ['bytes=-5', { start: 95, end: 99 }],
    ['bytes=-500', { start: 0, end: 99 }],
    ['bytes=50-5000', { start: 50, end: 99 }],
    ['BYTES= 0-0 ', { start: 0, end: 0 }],
    ['bytes=100-', 'unsatisfiable'],
    [`bytes=${'9'.repeat(400)}-`, 'unsatisfiable'],
    ['bytes=-0', 'unsatisfiable'],
    ['bytes=9-3', undefined],
    ['bytes=-', undefined],
    ['bytes=0-1,5-6', undefined],
    ['bytes=a-b', undefined],
    ['bytes=-5-10', undefined],
    ['lines=0-9', undefined],
    ['', undefined],
  ])('%s', (range, chosen) => {
    expect(chooseRange({ range }, validators, 100)).toEqual(chosen)
  })

  test.each([
    ['"abc"', true],
    ['"x"', false],
    ['W/"abc"', false],
    [inHttp, true],
    ['Mon, 06 May 2024 07:08:10 GMT', false],
    ['nonsense', false],
  ])('is given with If-Range %s: %s', (ifRange, given) => {
    const chosen = chooseRange({ range: 'bytes=0-9', 'if-range': ifRange }, validators, 100)
    expect(chosen).toEqual(given ? { start: 0, end: 9 } : undefined)
  })

  test('is ignored for an empty file', () => {
    expect(chooseRange({ range: 'bytes=0-9' }, validators, 0)).toBeUndefined()
  })
})
