import { describe, expect, it } from 'vitest'
import { makePackager, splitLines } from '../../src/batch/lines.ts'
import { makeUuidSeries } from '../../src/batch/uuids.ts'
import { parsePackage, UUID_PATTERN } from '../../src/job/package.ts'
import type { HeaderDefaults } from '../../src/producer.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'

async function* from<T>(items: Iterable<T>) {
  yield* items
}

async function splitAll(chunks: (string | Buffer)[], options = {}) {
  const lines: string[] = []
  const ends: number[] = []
  for await (const block of splitLines(from(chunks.map((chunk) => Buffer.from(chunk))), options)) {
    lines.push(...block.lines)
    ends.push(...block.ends)
  }
  return { lines, ends }
}

describe('lines', () => {
  it('end with LF, with CRLF, or with the file, wherever the chunks are cut', async () => {
    const text = '\ufeffone\r\ntwo\n\n\u00fc\u20ac\ud83d\ude00\r\nlast'
    const bytes = Buffer.from(text)
    const expected = ['one', 'two', '', '\u00fc\u20ac\ud83d\ude00', 'last']
    for (let cut = 0; cut <= bytes.length; cut++) {
      expect((await splitAll([bytes.subarray(0, cut), bytes.subarray(cut)])).lines).toEqual(expected)
    }
    expect((await splitAll([...bytes].map((byte) => Buffer.from([byte])))).lines).toEqual(expected)
    expect((await splitAll([])).lines).toEqual([])
    expect((await splitAll(['a\n'])).lines).toEqual(['a'])
  })

  it('that are too long are refused before they are held', async () => {
    await expect(splitAll(['ok\n', 'x'.repeat(60), 'x'.repeat(60), '\n'], { maxBytes: 100 })).rejects.toThrow(
      'longer than 100 bytes',
    )
    await expect(splitAll([`ok\n${'x'.repeat(101)}\n`], { maxBytes: 100 })).rejects.toThrow('longer than 100 bytes')
    expect((await splitAll(['x'.repeat(60), 'x'.repeat(40), '\n'], { maxBytes: 100 })).lines).toHaveLength(1)
  })

  it('that are no UTF-8 are refused', async () => {
    await expect(splitAll([Buffer.from([0x61, 0xff, 0x0a])])).rejects.toMatchObject({ code: 'not_utf8' })
  })
})

describe('lines and their ends', () => {
  it('tell where each line ends in the text, so that a reader can go on there', async () => {
    const text = Buffer.from('\ufeffone\r\n\n\u00fc\u20ac\nlast')
    const { lines, ends } = await splitAll([text])
    expect(ends).toEqual([8, 9, 15, 19])
    for (const [i, end] of ends.entries()) {
      const rest = await splitAll([text.subarray(end)], { offset: end })
      expect(rest).toEqual({ lines: lines.slice(i + 1), ends: ends.slice(i + 1) })
    }
  })

  it('that come before a bad one are handed on before it is refused', async () => {
    const seen: string[] = []
    const bad = Buffer.concat([Buffer.from('\ufeffone\r\n\u00fc\n'), Buffer.from([0xff, 0x0a]), Buffer.from('after\n')])
    const read = async () => {
      for await (const block of splitLines(from([bad]))) seen.push(...block.lines)
    }
    await expect(read()).rejects.toMatchObject({ code: 'not_utf8' })
    expect(seen).toEqual(['one', '\u00fc'])
  })
})

describe('a series of uuids', () => {
  it('is the same for the same seed and line, in whatever order they are asked for, and no other', () => {
    const seed = Buffer.alloc(16, 7)
    const lines = Array.from({ length: 3000 }, (_, i) => i + 1)
    const forward = lines.map(makeUuidSeries(seed))
    expect([...lines].reverse().map(makeUuidSeries(seed)).reverse()).toEqual(forward)
    const other = lines.map(makeUuidSeries(Buffer.alloc(16, 8)))
    expect(new Set([...forward, ...other]).size).toBe(6000)
    for (const uuid of forward) expect(uuid).toMatch(/^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$/)
  })
})

describe('a line', () => {
  const packageFromLine = (line: string, defaults: HeaderDefaults) =>
    makePackager(defaults, makeUuidSeries(Buffer.alloc(16)))(line, 1)
  const parse = (line: string, defaults = {}) => {
    const { uuid, type, text } = packageFromLine(line, defaults)
    const made = parsePackage(Buffer.from(text))
    expect(made.header).toMatchObject({ uuid, type })
    return made
  }

  it('that is a whole package is sent as it is', () => {
    const line = `[ {"uuid":"${UUID}","type":"sleep","mine":[1]} , {"n":1.10} ]`
    expect(packageFromLine(line, { type: 'other', tags: { a: 'b' }, maxAttempts: 2 }).text).toBe(
      `[ {"max_attempts":2,"tags":{"a":"b"},"uuid":"${UUID}","type":"sleep","mine":[1]} , {"n":1.10} ]`,
    )
    expect(packageFromLine(line, {}).text).toBe(line)
  })

  it('that is a package without uuid or type gets them', () => {
    expect(parse('[{"type":"sleep"},{"n":1.10}]')).toEqual({
      header: { uuid: expect.stringMatching(UUID_PATTERN), type: 'sleep' },
      payloadJson: '{"n":1.10}',
    })
    expect(parse('[{},"$& $1"]', { type: 'sleep' }).payloadJson).toBe('"$& $1"')
    expect(parse(`[{"uuid":"${UUID}"},1]`, { type: 'sleep' }).header).toEqual({ uuid: UUID, type: 'sleep' })
  })

  it('that is anything else is a payload', () => {
    for (const line of ['{"a":1}', '[1,2]', '[{"type":"sleep"}]', '[{"t":1,"v":2},{"t":2,"v":3}]', '[[],{}]']) {
      expect(parse(line, { type: 'sleep' }).payloadJson).toBe(line)
    }
    expect(parse('text', { type: 'sleep', tags: { a: 'b' }, maxAttempts: 2 })).toMatchObject({
      header: { type: 'sleep', tags: { a: 'b' }, max_attempts: 2 },
      payloadJson: '{"payload":"text"}',
    })
  })

  it.each([
    ['{"a":1}', {}, 'bad_type'],
    [`[{"uuid":"${UUID}"},1]`, {}, 'bad_type'],
    ['[{"uuid":"../x","type":"sleep"},1]', {}, 'bad_uuid'],
    ['[{"uuid":null,"type":"sleep"},1]', {}, 'bad_uuid'],
    ['[{"type":"Sleep"},1]', {}, 'bad_type'],
    ['[{"type":"sleep","max_attempts":0},1]', {}, 'bad_max_attempts'],
    ['[{"type":"sleep"},1', { type: 'sleep' }, 'not_json'],
    [`[{"type":"sleep"},${'['.repeat(200)}${']'.repeat(200)}]`, {}, 'too_deep'],
    [`${'['.repeat(200)}${']'.repeat(200)}`, { type: 'sleep' }, 'too_deep'],
  ])('%s with defaults %j is refused: %s', (line, defaults, code) => {
    expect(() => packageFromLine(line, defaults)).toThrow(expect.objectContaining({ code }))
  })
})
