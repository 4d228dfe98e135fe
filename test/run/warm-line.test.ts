import fc from 'fast-check'
import { expect, test } from 'vitest'
import { MAX_RESULT_BYTES } from '../../src/run/run.ts'
import { encodeJobLine, type JobLine, memberText, parseAnswer } from '../../src/run/warm-line.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'
const JOB: JobLine = {
  uuid: UUID,
  type: 'pi',
  attempt: 2,
  max_attempts: 5,
  deadline: '2026-01-01T00:00:00.000Z',
  ttr: 60,
  tube: 'default',
  priority: 1337,
  workdir: '/var/tmp/x',
}
const parse = (text: string | Buffer) => parseAnswer(Buffer.from(text), JOB)

test('a job is one line, whatever is within its payload; the numbers in it stay as they are', () => {
  const payload = '{\r\n "a": [1e400,\n 12345678901234567890],\t"b": "\u2028\u2029\u0085\\n"\n}'
  const line = encodeJobLine(JOB, payload)
  expect(line.match(/[\n\r\u0085\u2028\u2029]/g)).toEqual(['\n'])
  expect(line.endsWith('\n')).toBe(true)
  expect(JSON.parse(line)).toEqual({ ...JOB, payload: JSON.parse(payload) })
  expect(line).toContain('[1e400,  12345678901234567890]')
})

test('any payload is the same on the other side', () => {
  fc.assert(
    fc.property(fc.json({ stringUnit: 'binary' }), fc.constantFrom(0, 1, 2), (json, indent) => {
      const payload = JSON.stringify(JSON.parse(json), null, indent)
      const line = encodeJobLine(JOB, payload)
      expect(line.slice(0, -1)).not.toMatch(/[\n\r\u0085\u2028\u2029]/)
      expect(JSON.parse(line).payload).toEqual(JSON.parse(payload))
    }),
  )
})

test('the text of a member is what JSON.parse reads of it, with blanks, escapes and keys that stand twice', () => {
  const blank = fc.constantFrom('', ' ', '\t ', '\r\n')
  const key = fc.constantFrom('"result"', '"re\\u0073ult"', '"uuid"', '"a\\"result\\":1"', '""', '"resul"', '"\\\\"')
  const value = fc.oneof(
    fc.json({ stringUnit: 'binary' }),
    fc.constantFrom('-0.0', '1e400', '"]}"', '"\\""', '[{}]', '{"result": 1}', 'true', '"\\\\"'),
  )
  const member = fc.tuple(blank, key, blank, value, blank)
  fc.assert(
    fc.property(fc.array(member, { maxLength: 5 }), blank, (members, end) => {
      const text = `${end}{${members.map(([a, k, b, v, c]) => `${a}${k}${b}:${b}${v}${c}`).join(',')}${end}}${end}`
      const whole = JSON.parse(text) as Record<string, unknown>
      const found = memberText(text, 'result')
      expect(found === undefined).toBe(!Object.hasOwn(whole, 'result'))
      if (found === undefined) return
      expect(found).toBe(found.trim())
      expect(JSON.parse(found)).toEqual(whole.result)
    }),
    { numRuns: 500 },
  )
})

test.each([['{"a": 12345678901234567890, "b": 1e400, "c": "\u00e9"}'], ['null'], ['"text"'], ['-0.0'], ['[]']])(
  'a result is passed on as it stands there: %s',
  (json) => {
    expect(parse(`{"uuid":"${UUID}","x":{"result":1},"result": ${json} ,"attempt":2}\r`)).toEqual({
      kind: 'result',
      json,
    })
  },
)

test.each([
  ['{"error": "no such city"}', { kind: 'error', error: 'no such city', mayRetry: true }],
  ['{"error": "two\\nlines", "retry": true}', { kind: 'error', error: 'two lines', mayRetry: true }],
  ['{"error": "bad", "retry": false}', { kind: 'error', error: 'bad', mayRetry: false }],
])('an error: %s', (text, answer) => {
  expect(parse(JSON.stringify({ uuid: UUID, ...JSON.parse(text) }))).toEqual(answer)
})

test.each([
  ['', /no JSON object/],
  ['words \u001b[31m', /"words .u001b\[31m", which is no JSON object/],
  ['[1]', /no JSON object/],
  ['null', /no JSON object/],
  [`{"uuid":"${UUID}"`, /no JSON object/],
  [Buffer.from([0x22, 0xff, 0x22]), /a line of 3 bytes that is not UTF-8 text/],
  ['{"result":1}', /uuid is missing/],
  ['{"uuid":7,"result":1}', /uuid is 7/],
  [`{"uuid":"${UUID}"}`, /neither a result nor an error/],
  [`{"uuid":"${UUID}","result":1,"error":"x"}`, /a result and an error/],
  [`{"uuid":"${UUID}","error":""}`, /an error that is "", not a text/],
  [`{"uuid":"${UUID}","error":{"a":1}}`, /an error that is an object/],
  [`{"uuid":"${UUID}","error":"x","retry":"no"}`, /whose retry is "no"/],
  [`{"uuid":"${UUID}","result":${'['.repeat(1001)}${']'.repeat(1001)}}`, /nested deeper than 1000 levels/],
  [`{"uuid":"${UUID}","result":"${'x'.repeat(MAX_RESULT_BYTES)}"}`, /a result of 4194306 bytes/],
])('no answer: %s', (text, problem) => {
  expect(parse(text)).toEqual({ kind: 'invalid', problem: expect.stringMatching(problem) })
})

test('1000 levels of a result are as deep as it may be', () => {
  const json = `${'['.repeat(1000)}${']'.repeat(1000)}`
  expect(parse(`{"uuid":"${UUID}","result":${json}}`)).toEqual({ kind: 'result', json })
})

test('an answer to another job, or to another attempt, is told apart from one that is no answer', () => {
  const other = '0'.repeat(32)
  expect(parse(`{"uuid":"${other}","result":1}`)).toMatchObject({ kind: 'foreign', uuid: other })
  expect(parse(`{"uuid":"${UUID}","attempt":1,"result":1}`)).toMatchObject({ kind: 'foreign', uuid: UUID })
  expect(parse(`{"uuid":"${UUID}","attempt":2,"result":1}`)).toMatchObject({ kind: 'result' })
})

test('whatever is written, it is an answer or a problem of one line', () => {
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc.json().map((text) => Buffer.from(text)),
  )
  fc.assert(
    fc.property(bytes, (line) => {
      const answer = parseAnswer(line, JOB)
      expect(['foreign', 'invalid']).toContain(answer.kind)
      if ('problem' in answer) expect(answer.problem).toMatch(/^[^\n\r]{1,300}$/)
    }),
  )
})
